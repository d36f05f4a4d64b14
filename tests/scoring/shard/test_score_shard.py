import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from imgcls.errors import (
    AccessDeniedError,
    BundleError,
    CorruptImageError,
    DecoderCrashError,
    DecodeTimeoutError,
    ImageTooLargeError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
    UnsupportedImageError,
)
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.outcome import outcome_of
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.predictor import Predictor
from imgcls.model.bundle import Bundle
from imgcls.schema import PLAN_SCHEMA
from imgcls.scoring.shard.rows import Provenance
from imgcls.scoring.shard.score_shard import score_shard
from imgcls.sources import read as reading
from imgcls.storage.objects import list_objects, put
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import make_bundle, run_facts, tiff_frames, write_images


def provenance_of(bundle: Bundle) -> Provenance:
    return Provenance(run_facts(), bundle.class_names.names)


def plan_rows(folder: Path) -> pa.Table:
    columns = {
        name: [getattr(info, name) for info in list_objects(str(folder))]
        for name in PLAN_SCHEMA.names
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ObjectMissingError("x"), "missing"),
        (ObjectChangedError("x"), "changed"),
        (ObjectUnreadableError("x"), "unreadable"),
        (UnsupportedImageError("x"), "unsupported"),
        (CorruptImageError("x"), "corrupt"),
        (ImageTooLargeError("x"), "too_large"),
        (DecodeTimeoutError("x"), "timeout"),
        (DecoderCrashError("x"), "decoder_crash"),
    ],
)
def test_each_failure_of_an_image_is_a_status(error: Exception, status: str) -> None:
    assert outcome_of(error, "x.png", None)[0] == status


@pytest.mark.parametrize("error", [StorageError("x"), AccessDeniedError("x"), ValueError("x")])
def test_failures_of_the_infrastructure_are_raised_never_rows(error: Exception) -> None:
    with pytest.raises(type(error)):
        outcome_of(error, "x.png", None)


def test_rows_come_in_plan_order_one_per_image(tmp_path: Path) -> None:
    write_images(str(tmp_path), 75)
    bundle = make_bundle()
    with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 2) as pool:
        rows = score_shard(
            plan_rows(tmp_path),
            predictor=open_predictor(bundle, batch_size=16),
            pool=pool,
            provenance=provenance_of(bundle),
        ).rows
    assert rows["uri"].to_pylist() == plan_rows(tmp_path)["uri"].to_pylist()


def test_memory_of_batches_is_used_again_once_they_were_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that reads late would see the images of a later batch."""
    write_images(str(tmp_path), 75)
    bundle = make_bundle()

    def labels(predictor: Predictor) -> list[tuple[int, float]]:
        with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 2) as pool:
            rows = score_shard(
                plan_rows(tmp_path),
                predictor=predictor,
                pool=pool,
                provenance=provenance_of(bundle),
            ).rows
        return [
            (row["label"], pytest.approx(row["confidence"], abs=1e-4)) for row in rows.to_pylist()
        ]

    expected = labels(open_predictor(bundle, device="cpu", batch_size=75))
    late = open_predictor(bundle, device="cpu", batch_size=4, num_streams=2)
    real, real_batch, made = late._model, late.new_batch, list[tuple[int, ...]]()

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return real(x_BCHW)

    def new_batch(like_CHW: Any) -> Any:
        made.append(like_CHW.shape)
        return real_batch(like_CHW)

    late._model = forward
    monkeypatch.setattr(late, "new_batch", new_batch)
    assert labels(late) == expected
    assert 1 <= len(made) <= 2 + 2, "at work, waiting and filling"
    assert set(made) == {(3, 32, 32)}


def test_every_frame_of_a_multi_frame_file_is_a_row(tmp_path: Path) -> None:
    put(str(tmp_path / "a.tif"), tiff_frames(5))
    put(str(tmp_path / "b.tif"), tiff_frames(1))
    spec, preprocess_spec = DecodeSpec(frames="all"), PreprocessSpec.for_image_px(32)
    bundle = make_bundle()
    with DecoderPool(spec, preprocess_spec, 1) as pool:
        rows = score_shard(
            plan_rows(tmp_path),
            predictor=open_predictor(bundle, batch_size=4),
            pool=pool,
            provenance=provenance_of(bundle),
        ).rows.to_pylist()
    found = [(Path(row["uri"]).name, row["frame"]) for row in rows]
    assert found[:5] == [("a.tif", number) for number in range(5)]
    assert len(found) == 6
    assert {row["status"] for row in rows} == {"ok"}


def test_output_that_is_not_finite_is_a_model_error_of_that_image_alone(tmp_path: Path) -> None:
    write_images(str(tmp_path), 20)
    bundle = make_bundle()
    predictor = open_predictor(bundle, batch_size=16)
    real = predictor._model

    class BreaksOneRow(torch.nn.Module):
        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            logits_BK = real(x_BCHW).clone()
            logits_BK[3] = float("nan")
            return logits_BK

    predictor._model = BreaksOneRow()
    with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool:
        rows = score_shard(
            plan_rows(tmp_path),
            predictor=predictor,
            pool=pool,
            provenance=provenance_of(bundle),
        ).rows.to_pylist()
    broken = [row for row in rows if row["status"] == "model_error"]
    assert len(broken) == 2, "row 3 of each of the two batches"
    assert all(row["label"] is None and "not finite" in row["error"] for row in broken)
    assert all(row["label"] is not None for row in rows if row["status"] == "ok")


def test_lost_outcome_is_an_error_not_a_shorter_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(str(tmp_path), 5)
    bundle = make_bundle()
    real = reading.get_many
    monkeypatch.setattr(
        reading, "get_many", lambda *args, **how: (one for one in list(real(*args, **how))[:-1])
    )
    with (
        DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool,
        pytest.raises(AssertionError, match="1 planned rows got no outcome"),
    ):
        score_shard(
            plan_rows(tmp_path),
            predictor=open_predictor(bundle, batch_size=4),
            pool=pool,
            provenance=provenance_of(bundle),
        )


def test_golden_mismatch_stops_before_anything_is_scored() -> None:
    bundle = make_bundle()
    weights = {**bundle.state_dict}
    name = [name for name in weights if name.endswith("weight")][-1]
    weights[name] = -weights[name]
    changed = Bundle(**{**vars(bundle), "state_dict": weights})
    with pytest.raises(BundleError, match="golden"):
        open_predictor(changed)
