"""A trained model, its data, and rows that were published."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from imgcls.model.bundle import Bundle, write_bundle
from imgcls.model.registry import register
from imgcls.runs.published import FORMAT_VERSION, Manifest
from imgcls.schema import prediction_schema
from imgcls.storage import objects
from tests.evaluation.shades import (
    NAMES,
    NIGHT,
    shade,
    trained_bundle,
)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    torch.set_num_threads(1)
    return trained_bundle()


@pytest.fixture
def registry(bundle: Bundle, tmp_path: Path) -> str:
    register(str(tmp_path / "reg"), "lamp", bundle)
    return str(tmp_path / "reg")


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> str:
    write_bundle(bundle, str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """20 images of each class."""
    for number in range(40):
        path = tmp_path / "data" / NAMES[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shade(number % 2 == 1, number))
    return tmp_path / "data"


@pytest.fixture
def publish(model: str, tmp_path: Path) -> Callable[..., str]:
    """Publish rows as a run of `tmp_path/out`, one part per row, and return that prefix."""

    def publish_rows(run_id: str, *rows: dict[str, Any], night: int = 0, root: str = "") -> str:
        output = root or str(tmp_path / "out")
        folder = f"{output}/date=2026-03-{night + 1:02}/run={run_id}"
        parts = []
        for number, row in enumerate(rows):
            scored = {"run_id": run_id, "scored_at": NIGHT + timedelta(days=night)}
            buffer = io.BytesIO()
            schema = prediction_schema({"multi_label"} if "labels" in row else ())
            pq.write_table(pa.Table.from_pylist([row | scored], schema=schema), buffer)
            data = buffer.getvalue()
            name = f"part-{number:05}.parquet"
            objects.put(f"{folder}/{name}", data)
            sha256 = hashlib.sha256(data).hexdigest()
            facts = {"sha256": sha256, "num_rows": 1, "size_bytes": len(data), "num_shards": 1}
            parts.append({"path": name} | facts)
        manifest = Manifest(
            run_id=run_id,
            date="2026-11-22",
            source="",
            model=model,
            model_uri=model,
            model_digest="",
            spec_digest="",
            parts=tuple(parts),
            counts={},
            status_counts={},
            published_at="",
        )
        text = json.dumps({"format_version": FORMAT_VERSION} | asdict(manifest))
        objects.put(f"{folder}/_manifest.json", text.encode())
        return output

    return publish_rows
