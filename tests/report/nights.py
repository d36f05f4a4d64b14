"""Published nights as their readers find them, without a model: rows, manifest, facts."""

import hashlib
import io
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from imgcls.runs.commits import Commit
from imgcls.runs.facts import FACTS_SCHEMA
from imgcls.runs.published import FORMAT_VERSION, MANIFEST, Manifest, Part
from imgcls.runs.run import Run
from imgcls.schema import prediction_schema
from imgcls.storage.objects import put
from imgcls.storage.records import record_text
from imgcls.storage.uri import join

START = datetime(2026, 11, 1, 4, tzinfo=UTC)
KINDS = ("ok", "scratch", "dent", "stain")


def row_of(number: int, **changes: Any) -> dict[str, Any]:
    """One row of a night of a factory: most parts are good, some are not, a few cannot be read."""
    chance = (number * 2654435761 % 2**32) / 2**32
    is_bad, is_close = chance > 0.96, 0.93 < chance <= 0.96
    failed = number % 97 == 5
    probability = (
        0.5 + (chance - 0.96) * 12 if is_bad else 0.42 + chance * 0.05 if is_close else chance / 4
    )
    row = {
        "uri": f"s3://line-3/camera {number % 4}/2026-11-24/part {number:06d}.jpg",
        "etag": f"{number:x}", "size_bytes": 48_211, "last_modified": START, "frame": None,
        "status": "corrupt" if failed else "ok",
        "error": "JPEG: it ends in the middle of a scan" if failed else None,
        "format": "jpeg",
        "width_px": None if failed else 1600, "height_px": None if failed else 400,
        "label": 1, "class_name": KINDS[1 + number % 3] if is_bad else "ok",
        "confidence": probability, "calibrated_prob": probability,
        "decision": "positive" if is_bad else "review" if is_close else "negative",
        "threshold_id": "defect:recall>=0.9", "topk_label": [1], "topk_prob": [probability],
        "model": "s3://models/strips@production", "model_digest": "b1c2" * 16,
        "spec_digest": "d3e4" * 16, "run_id": "", "scored_at": START,
    }  # fmt: skip
    if failed:
        row |= dict.fromkeys(("label", "class_name", "confidence", "calibrated_prob", "decision",
                              "threshold_id", "topk_label", "topk_prob"))  # fmt: skip
    return row | changes


def publish_night(
    output: str, rows: list[dict[str, Any]], *, run_id: str = "nightly-2026-11-24", day: int = 24,
    extra: tuple[pa.Field, ...] = (), with_pictures: bool = True,
    model_uri: str = "/nowhere/strips/v4",
) -> tuple[str, Manifest]:  # fmt: skip
    """Publish rows; return the folder and the manifest."""
    run, date = Run(output, run_id), f"2026-11-{day:02d}"
    folder = run.published(date)
    schema = prediction_schema({"calibrated", "operating_point"})
    for field in extra:
        schema = schema.append(field)
    rows = [row | {"run_id": run_id} for row in rows]
    table = pa.Table.from_pylist(rows, schema=schema)
    data = parquet(table)
    if with_pictures:
        facts = [fact_of(row) for row in rows]
        path = "facts/000000-x.parquet"
        put(
            run.file(path),
            parquet(pa.Table.from_pylist(facts, schema=FACTS_SCHEMA)),
            is_private=True,
        )
        commit = Commit("000000", "attempts/x.parquet", "", len(rows), {}, facts=path)
        put(run.commit("000000"), record_text(commit))
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    part = Part("part-00000.parquet", hashlib.sha256(data).hexdigest(), len(rows), len(data), 1)
    manifest = Manifest(
        run_id=run_id, date=date, source="s3://line-3", model="s3://models/strips@production",
        model_uri=model_uri, model_digest="b1c2" * 16, spec_digest="d3e4" * 16,
        counts={"listed": len(rows), "planned": len(rows), "skipped": 0, "rows": len(rows)},
        parts=(part,) if rows else (), status_counts=counts,
        published_at=(START + timedelta(days=day)).isoformat(),
    )  # fmt: skip
    if rows:
        put(join(folder, part.path), data)
    put(join(folder, MANIFEST), record_text(manifest, format_version=FORMAT_VERSION))
    return folder, manifest


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def fact_of(row: dict[str, Any]) -> dict[str, Any]:
    fact = {name: row.get(name) for name in ("uri", "frame", "format", "width_px", "height_px")}
    if row["status"] != "ok":
        return fact
    return fact | {"brightness": 120.0, "thumbnail": strip(row), "thumbnail_for": "sample"}


def strip(row: dict[str, Any]) -> bytes:
    """A small picture of a brushed metal strip, scratched where the row says so."""
    number = int(hashlib.sha256(row["uri"].encode()).hexdigest()[:6], 16)
    draw = np.random.default_rng(number)
    grey = (
        150
        + 25 * np.sin(np.linspace(0, 6, 160))
        + draw.normal(0, 6, (40, 1))
        + draw.normal(0, 2, (40, 160))
    )
    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if row["decision"] == "positive":
        x, y, turn = draw.integers(20, 140), draw.integers(8, 32), draw.uniform(0, math.pi)
        line = (x, y, x + 14 * math.cos(turn), y + 14 * math.sin(turn))
        ImageDraw.Draw(image).line(line, fill=60, width=2)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
