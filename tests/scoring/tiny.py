"""A small real model and small real images, for every test that scores."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from imgcls.data.class_names import ClassNames
from imgcls.image.png import encode_png
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.model.architectures import build_model, find_head
from imgcls.model.bundle import Bundle, make_golden
from imgcls.runs.plan import Plan, RunFacts
from imgcls.runs.published import read_manifest
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.storage.objects import list_objects, put, read
from imgcls.storage.uri import join

TEMPERATURE = 1.7
POSITIVE = "class-3"
THRESHOLD_ID = f"{POSITIVE}:recall>=0.9"
IMAGE_PX = 32


def make_bundle(
    seed: int = 0,
    num_classes: int = 7,
    *,
    calibration: Calibration | None = None,
    multi_label: bool = False,
    decode_spec: DecodeSpec | None = None,
) -> Bundle:
    """A simple_cnn with random weights: what it says is arbitrary, and always the same."""
    torch.manual_seed(seed)
    spec = PreprocessSpec.for_image_px(IMAGE_PX)
    model = build_model("simple_cnn", num_classes).eval()
    with torch.no_grad():
        # Random weights answer nearly the same for every image; larger ones tell images apart.
        for parameter in model.parameters():
            parameter.mul_(2.5)
    generator = torch.Generator().manual_seed(seed)
    golden_x_BCHW = torch.randint(0, 256, (4, 3, IMAGE_PX, IMAGE_PX), generator=generator).to(
        torch.uint8
    )
    return Bundle(
        arch="simple_cnn",
        class_names=ClassNames(tuple(f"class-{label}" for label in range(num_classes))),
        decode_spec=decode_spec or DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="",
        training={},
        golden_x_BCHW=golden_x_BCHW,
        golden_probs_BK=make_golden(model, golden_x_BCHW, spec, multi_label=multi_label),
        calibration=calibration.to_dict() if calibration is not None else None,
        multi_label=multi_label,
    )


def make_sure_bundle() -> Bundle:
    """The same, but sure of class 0: no rounding makes it change its mind."""
    bundle = make_bundle()
    model = bundle.to_model()
    _, head = find_head(model)
    with torch.no_grad():
        head.bias[0] += 1e4
    golden_probs_BK = make_golden(model, bundle.golden_x_BCHW, bundle.preprocess_spec)
    return replace(bundle, state_dict=model.state_dict(), golden_probs_BK=golden_probs_BK)


def image_bytes(number: int) -> bytes:
    """The PNG of test image `number`: noise of its own seed."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(20, 60, size=2)
    return encode_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tiff_frames(count: int) -> bytes:
    """A TIFF of `count` pages, each of its own grey."""
    pages = [Image.new("L", (40, 40), 255 * number // count) for number in range(count)]
    buffer = io.BytesIO()
    pages[0].save(buffer, format="TIFF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def write_images(root: str, count: int) -> list[str]:
    """Write `count` images under a prefix and return their uris, sorted."""
    uris = [join(root, f"lot-{number % 7}", f"{number:05d}.png") for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, uris, map(image_bytes, range(count))))
    return sorted(uris)


def make_calibration(*bounds: float) -> Calibration:
    """A calibration with one operating point of (review_low, threshold, review_high), or none."""
    points = []
    if bounds:
        review_low, threshold, review_high = bounds
        points = [
            OperatingPoint(
                threshold_id=THRESHOLD_ID,
                positive_class=POSITIVE,
                target="recall",
                target_value=0.9,
                threshold=threshold,
                review_low=review_low,
                review_high=review_high,
                review_fraction=0.5,
                recall=0.9,
                recall_interval=None,
                specificity=0.5,
                specificity_interval=None,
                num_positive=10,
                num_negative=10,
            )
        ]
    return Calibration(TEMPERATURE, "by hand", 20, 1.0, 1.0, 0.1, 0.1, tuple(points))


def run_facts(run_id: str = "run") -> RunFacts:
    """What rows, plan and manifest say alike of a run that was never made."""
    places = {"date": "2026-11-22", "source": "s3://bucket", "model_uri": "reg/m/v1"}
    return RunFacts(
        run_id=run_id, model="m", model_digest="d", spec_digest="s", counts={}, **places
    )


def plan_record(shard_rows: tuple[int, ...], output: str = "") -> Plan:
    """A plan of shards of so many images, that is nowhere stored."""
    facts = run_facts("night").facts() | {"counts": {"planned": sum(shard_rows)}}
    return Plan(**facts, config={}, files=(), shard_rows=shard_rows, created_at="", output=output)


def published_rows(output: str) -> pa.Table:
    """Read what a reader of Parquet sees: every part that a manifest names."""
    tables = []
    for info in list_objects(output):
        folder, _, name = info.uri.rpartition("/")
        if name == "_manifest.json":
            manifest = read_manifest(folder)
            assert manifest is not None
            tables += [
                pq.read_table(io.BytesIO(read(join(folder, part.path)))) for part in manifest.parts
            ]
    return pa.concat_tables(tables, promote_options="default")


def comparable(rows: pa.Table) -> list[dict[str, object]]:
    """Rows without what may differ between two runs over the same images."""
    return sorted(
        rows.drop_columns(["run_id", "scored_at"]).to_pylist(),
        key=lambda row: (row["uri"], row["frame"] or 0),
    )


def prediction_rows(uris: list[str], statuses: list[str]) -> pa.Table:
    """Prediction rows that no model made, for tests of what happens to rows."""
    constants = {
        "etag": "e",
        "size_bytes": 1,
        "last_modified": datetime(2026, 11, 22, tzinfo=UTC),
        "model": "m",
        "model_digest": "d",
        "spec_digest": "s",
        "run_id": "night",
        "scored_at": datetime(2026, 11, 22, tzinfo=UTC),
    }
    rows = [
        {"uri": uri, "status": status, **constants}
        for uri, status in zip(uris, statuses, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
