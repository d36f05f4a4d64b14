"""Every figure that `imgcls bench` promises, on few and small images; no figure is judged."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.bench import driver as bench
from imgcls.bench.agreement import label_agreement
from imgcls.config.operations import BenchConfig
from imgcls.errors import ConfigError
from imgcls.image.decoders.pool import decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.scoring.shard import gpu_decode
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import make_bundle

STAGES = {
    "decode": ["decoding in one process", "decoding alone"],
    "predict": ["network alone", "predicting alone"],
    "score": [
        "decoding in one process",
        "decoding alone",
        "network alone",
        "predicting alone",
        "steady: get, decode, predict",
        "whole run, from start to Parquet",
    ],
}


@pytest.mark.parametrize("what", ["decode", "predict", "score"])
def test_each_stage_has_a_row_with_its_limit(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.bench(
        BenchConfig(
            what=what,  # type: ignore[arg-type]
            arch="simple_cnn",
            image_px=32,
            num_images=70,
            batch_size=8,
            repeats=2,
            num_decoders=1,
        )
    )
    assert [row["stage"] for row in result["stages"]] == STAGES[what]
    printed = capsys.readouterr().out
    for row in result["stages"]:
        assert row["images_per_s"] > 0
        assert len(row["measured_images_per_s"]) == 2
        assert (row["ratio"] is None) == (row["limit"] is None)
        assert row["stage"] in printed
    assert result["engine"] == (None if what == "decode" else "eager fp32 on cpu")
    assert f"peak memory of all processes: {result['peak_memory_bytes'] / 2**30:.2f} GiB" in printed
    assert result["peak_memory_bytes"] > 2**26
    if what == "decode":
        assert result["label_agreement"] is None
    else:
        agreement = result["label_agreement"]
        assert (agreement["num_equal_labels"], agreement["fraction"]) == (64, 1.0)
    if what == "score":
        assert "steady, bottleneck: " in printed
        # The round that is thrown away, and two more.
        assert {
            times["items"] for stage, times in result["pipeline"].items() if stage != "write"
        } == {3 * 70}


def test_gpu_decodes_too_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the GPU's place."""
    pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu-decode is not installed")
    config = BenchConfig(
        "score", arch="simple_cnn", image_px=224, num_images=24, repeats=1, gpu_decode="on"
    )
    with pytest.raises(ConfigError, match="--gpu-decode on: the model runs on cpu here"):
        bench.bench(config)
    monkeypatch.setattr(gpu_decode, "DEVICES", {"cpu"})
    pipeline = bench.bench(config)["pipeline"]
    assert pipeline["decode_gpu"]["items"] > 0
    assert pipeline["decode"]["items"] + pipeline["decode_gpu"]["items"] == 2 * 24


def test_labels_that_differ_from_plain_fp32_are_counted() -> None:
    bundle = make_bundle()
    predictor = open_predictor(bundle, batch_size=8)
    real = predictor._model

    def contrary(x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK = real(x_BCHW).clone()
        logits_BK[0] *= -1
        return logits_BK

    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randint(0, 256, (20, 3, 32, 32), generator=generator).to(torch.uint8)
    assert label_agreement(bundle, predictor, x_BCHW)["num_equal_labels"] == 20
    predictor._model = contrary
    found = label_agreement(bundle, predictor, x_BCHW)
    assert (found["num_equal_labels"], found["fraction"]) == (17, 0.85)
    assert found["largest_difference"] > 0.1


def test_labels_of_a_multi_label_model_are_the_classes_that_reach_their_thresholds() -> None:
    """An improbable class rises to 0.3 in the first row of each batch, and stays below the top."""
    plain = make_bundle(multi_label=True)
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randint(0, 256, (20, 3, 32, 32), generator=generator).to(torch.uint8)
    point = OperatingPoint(
        threshold_id="class-5:recall>=0.9",
        positive_class="class-5",
        target="recall",
        target_value=0.9,
        threshold=0.25,
        review_low=0.25,
        review_high=0.25,
        review_fraction=0.0,
        recall=0.9,
        recall_interval=None,
        specificity=0.5,
        specificity_interval=None,
        num_positive=10,
        num_negative=10,
    )
    fitted = Calibration(1.0, "by hand", 20, 1.0, 1.0, 0.1, 0.1, (point,))
    for bundle, num_equal in ((plain, 20), (replace(plain, calibration=fitted.to_dict()), 17)):
        predictor = open_predictor(bundle, batch_size=8)
        network = predictor._model

        def probable(x_BCHW: torch.Tensor, real: Any = network) -> torch.Tensor:
            logits_BK = real(x_BCHW).clone()
            assert logits_BK[0, 5].sigmoid() < 0.25
            logits_BK[0, 5] = torch.logit(torch.tensor(0.3))
            return logits_BK

        predictor._model = probable
        assert label_agreement(bundle, predictor, x_BCHW)["num_equal_labels"] == num_equal


def test_ratio_is_taken_to_the_tightest_limit() -> None:
    def nothing() -> None: ...

    sides = [
        bench.Side("a", 1, nothing),
        bench.Side("b", 1, nothing),
        bench.Side("both", 1, nothing, ("a", "b")),
    ]
    rates = {"a": [100.0, 90.0, 110.0], "b": [40.0, 1.0, 1000.0], "both": [30.0, 30.0, 5.0]}
    row = bench.tabulate(sides, rates, num_cpus=2)[-1]
    assert (row["limit"], row["limit_images_per_s"], row["ratio"]) == ("b", 40.0, 0.75)
    assert row["images_per_s_per_core"] == 15.0


def test_sides_are_measured_in_turn_and_the_first_round_is_thrown_away() -> None:
    calls: list[str] = []
    sides = [
        bench.Side("a", 1, lambda: calls.append("a")),
        bench.Side("b", 1, lambda: calls.append("b")),
    ]
    rates = bench.measure(sides, repeats=2)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert [len(values) for values in rates.values()] == [2, 2]


def test_made_photographs_are_the_same_every_time_and_of_the_size_of_photographs() -> None:
    assert bench.make_photo(1) == bench.make_photo(1) != bench.make_photo(2)
    assert 20_000 < len(bench.make_photo(1)) < 150_000


def test_images_of_a_source_are_taken_without_those_that_do_not_decode(tmp_path: Path) -> None:
    numbers = count()
    for data in (bench.make_photo(1), b"no image", bench.make_photo(2)):
        (tmp_path / f"{next(numbers)}.jpg").write_bytes(data)
    images = bench.take_images(str(tmp_path), 5)
    assert len(images) == 5
    assert set(images) == {bench.make_photo(1), bench.make_photo(2)}
    for data in images:
        assert decode_one(data, DecodeSpec(), PreprocessSpec.for_image_px(32))


def test_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match="no image there can be decoded"):
        bench.take_images(str(tmp_path), 5)
