"""--unit: the images of a study are one sample, with one label; scoring answers it alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import NightlyConfig
from imgcls.config.training import TrainConfig
from imgcls.data.dataset import Sample
from imgcls.data.label_manifest import read_manifest
from imgcls.errors import ConfigError, SourceError
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.png import encode_png
from imgcls.metrics.units import UnitCalibration
from imgcls.model.bundle import read_bundle
from imgcls.nightly import nightly
from imgcls.runs.latest import read_latest, read_latest_units
from imgcls.storage.uri import join
from imgcls.training.driver import train
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.record.run_record import SPLIT
from imgcls.training.units import group_units

KEY = "name:study([0-9]+)"


def write_studies(folder: Path, count: int, seed: int = 0) -> str:
    """Write studies of 2 to 5 dark images, one of which is light in every second study.

    The label of a study stands at each of its images, so most images of a light study are dark.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir()
    lines = ["uri,label"]
    for study in range(count):
        num_images = 2 + study % 4
        light = int(rng.integers(num_images)) if study % 2 else -1
        for number in range(num_images):
            pixels = (150 if number == light else 30) + rng.integers(0, 60, (9, 11, 3))
            name = f"study{study:04d}-{number}.png"
            (folder / name).write_bytes(encode_png(pixels.astype(np.uint8)))
            lines.append(f"{name},{('dark', 'light')[study % 2]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "list.csv")


def config_of(tmp_path: Path, **changes: Any) -> TrainConfig:
    flags = {
        "arch": "simple_cnn",
        "unit": KEY,
        "image_px": "8",
        "batch_size": 16,
        "epochs": 5,
        "augment": "none",
        "lr": 0.01,
        "positive_class": "light",
        "target_recall": 0.5,
        "val_fraction": 0.3,
        "test_fraction": 0.3,
        "allow_leaks": True,
        "num_decoders": 1,
        "device": "cpu",
    }
    places = (str(tmp_path / "data" / "list.csv"), str(tmp_path / "registry"), "m")
    return TrainConfig(*places, **{**flags, **changes})


@pytest.mark.timeout(600)
def test_one_label_of_a_study_is_learnt_and_measured_and_scored_as_one(tmp_path: Path) -> None:
    data = write_studies(tmp_path / "data", 160)
    config = config_of(tmp_path, target_recall=0.85)
    result = train(config)
    sides = dict[str, set[str]]()
    for row in read_manifest(join(result["run"], SPLIT)):
        sides.setdefault(row.uri.rpartition("study")[2][:4], set()).add(row.split)
    assert len(sides) == 160
    assert all(len(side) == 1 for side in sides.values()), "no split cuts a study"

    bundle = read_bundle(str(result["uri"]))
    assert (bundle.pooling, bundle.background_class) == ("", "dark")
    assert bundle.calibration is None, "nothing is known of a single image"
    fitted = UnitCalibration.of(bundle.unit_calibration)
    assert fitted is not None
    assert (fitted.rule, fitted.key, fitted.background_class) == ("max", KEY, "dark")
    num_val = sum(side == {"val"} for side in sides.values())
    assert fitted.num_units == num_val
    [point] = fitted.calibration.operating_points
    assert (point.positive_class, point.target) == ("light", "recall")
    test = bundle.metrics["test"]
    assert test["num_images"] == sum(side == {"test"} for side in sides.values())
    assert test["accuracy"] > 0.95
    lines = " ".join(bundle.verdict["lines"])
    assert f"of {test['num_images']} test units. Answering" in lines
    assert "the answers are of units by --unit name:study" in lines

    # Evaluated it is the same split, by the key that was learnt, and the same numbers.
    measured = evaluate(
        EvaluateConfig(model=str(result["model"]), data=data, split="test", device="cpu")
    )
    assert measured["same_split_as_training"]
    assert measured["units"]["num_units"] == test["num_images"]
    assert measured["units"]["accuracy"] == test["accuracy"]
    threshold_id = point.threshold_id
    after = measured["units"]["calibrated"]["operating_points"][threshold_id]
    trained = test["calibrated"]["operating_points"][threshold_id]
    assert after["recall"] == trained["recall"]
    with pytest.raises(ConfigError, match=r"the model learnt units by name:study"):
        evaluate(
            EvaluateConfig(model=str(result["model"]), data=data, split="test", unit="folder:1")
        )

    # A fresh night: each study is decided, and the place of a light one is its light image.
    fresh = write_studies(tmp_path / "fresh", 40, seed=1)
    night = NightlyConfig(
        fresh, str(result["model"]), str(tmp_path / "out"),
        executor="local", device="cpu", num_decoders=1, unit=KEY,
    )  # fmt: skip
    nightly(night)
    units = read_latest_units(night.output).to_pylist()
    assert len(units) == 40
    right = [(row["decision"] == "positive") == bool(int(row["unit"]) % 2) for row in units]
    assert np.mean(right) > 0.9
    assert {row["threshold_id"] for row in units} == {threshold_id}
    rows = read_latest(night.output).to_pylist()
    assert {row.get("decision") for row in rows} == {None}
    # The gradient reached the images that show it: the dark ones of light studies stay dark,
    # though nearly half of all dark images are labelled light.
    best = {row["uri"] for row in units if int(row["unit"]) % 2}
    others = [row["probs"][1] for row in rows if row["uri"] not in best]
    assert np.mean(others) < 0.2


def test_a_unit_shows_what_some_image_shows_and_one_of_several_classes_is_left_out() -> None:
    def sample(number: int, unit: str, label: int, weight: float = 1.0) -> Sample:
        return Sample(f"i{number}", (label,), "", "train", "", f"i{number}", weight, unit=unit)

    samples = [
        sample(0, "a", 0), sample(1, "b", 1), sample(2, "a", 2, 3.0), sample(3, "", 1),
        sample(4, "c", 1), sample(5, "c", 2), sample(6, "", 1),
    ]  # fmt: skip
    units, unclear = group_units(samples, 0, multi_label=False)
    found = [(unit.labels, unit.images, unit.weight) for unit in units]
    assert found == [((2,), (0, 2), 2.0), ((1,), (1,), 1.0), ((1,), (3,), 1.0), ((1,), (6,), 1.0)]
    assert unclear == ["i4"]
    both, _ = group_units(samples, None, multi_label=True)
    assert [unit.labels for unit in both] == [(0, 2), (1,), (1,), (1, 2), (1,)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fit": "tiles"}, r"--unit .* with --fit tiles: .* imgcls calibrate --unit"),
        ({"frames": "all"}, r"--unit .* with --frames all"),
        ({"mixup": 0.2}, r"--mixup: mixes whole pictures, and a sample of --unit"),
        (
            {"positive_class": "", "target_recall": 0.0},
            r"which of 'dark', 'light' is the class of a unit that shows",
        ),
        ({"target_recall": 0.99}, r"with --unit these are units, not single images"),
    ],
)
def test_what_cannot_be_learnt_of_units_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_studies(tmp_path / "data", 12)
    with pytest.raises(ConfigError, match=words):
        train(config_of(tmp_path, **changes))


@pytest.mark.parametrize("asked", [{"unit": KEY}, {"fit": "tiles", "unit": "", "overlap": 0}])
def test_of_classes_in_any_language_the_one_that_is_not_looked_for_is_the_background(
    asked: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Path(write_studies(tmp_path / "data", 24))
    data.write_text(data.read_text().replace(",light", ",schlecht").replace(",dark", ",gut"))
    alone = {"positive_class": "schlecht", "target_recall": 0.0, "epochs": 1, "batch_size": 4}
    bundle = read_bundle(str(train(config_of(tmp_path, **alone, **asked))["uri"]))
    assert bundle.background_class == "gut"
    assert "threshold_id" not in json.dumps([bundle.unit_calibration, bundle.metrics])
    assert "is 'gut' unless one of its" in caplog.text
    assert "--positive-class schlecht has neither" in caplog.text
    with pytest.raises(ConfigError, match="unknown class 'slecht'"):
        train(config_of(tmp_path, **{**alone, "positive_class": "slecht"}, **asked))


def test_a_split_of_the_data_that_cuts_a_unit_is_refused(tmp_path: Path) -> None:
    data = Path(write_studies(tmp_path / "data", 12))
    lines = data.read_text().splitlines()
    sides = ["split", *(("train", "val")[n % 2] for n in range(len(lines) - 1))]
    data.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, sides, strict=True)))
    with pytest.raises(SourceError, match=r"--unit: .* gives images of one unit two sides"):
        make_plan(config_of(tmp_path))
    groups = ["group", *(f"g{n}" for n in range(len(lines) - 1))]
    data.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, groups, strict=True)))
    with pytest.raises(SourceError, match="images of one unit are of two groups"):
        make_plan(config_of(tmp_path))


@pytest.mark.slow
def test_folds_measure_each_study_once_and_a_bad_image_costs_no_study(tmp_path: Path) -> None:
    write_studies(tmp_path / "data", 64)
    (tmp_path / "data" / "study0003-0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config = config_of(tmp_path, folds=2, epochs=1, max_bad_fraction=0.1)
    result = train(config)
    metrics = read_bundle(str(result["uri"])).metrics["out of fold"]
    assert (metrics["num_images"], metrics["num_rows"]) == (64, 64)
    assert json.dumps(metrics["of_units"]) == json.dumps({"key": KEY, "rule": "max"})


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_workers_of_a_cluster_share_the_units_among_them(tmp_path: Path) -> None:
    write_studies(tmp_path / "data", 120)
    result = train(config_of(tmp_path, batch_size=8, num_workers="2"))
    test = read_bundle(str(result["uri"])).metrics["test"]
    assert test["num_rows"] == test["num_ok"] == len({*units_of_test(result)})
    assert test["accuracy"] > 0.9, "batch statistics are those of half the units, no more differs"


def units_of_test(result: dict[str, Any]) -> list[str]:
    """The units of the test split, each once per image."""
    rows = read_manifest(join(result["run"], SPLIT))
    return [row.uri.rpartition("study")[2][:4] for row in rows if row.split == "test"]
