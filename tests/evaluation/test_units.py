"""Studies of four images: thresholds per study, fitted on one site's, hold on fresh ones."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.config.models import CalibrateConfig, EvaluateConfig
from imgcls.config.scoring import NightlyConfig, VerifyConfig
from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.evaluation.calibrate import calibrate
from imgcls.evaluation.evaluate import evaluate
from imgcls.evaluation.of_units import collect_units, rule_of
from imgcls.evaluation.predict_samples import Predicted
from imgcls.image.png import encode_png
from imgcls.inference.collect import Collected, NoPrediction
from imgcls.metrics.units import UnitCalibration, UnitRule
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.nightly import nightly
from imgcls.runs.latest import read_latest, read_latest_units
from imgcls.schema import Status
from imgcls.scoring.publishing.verify import verify

IMAGES = 4
KEY = "name:study([0-9]+)"


def study_images(rng: np.random.Generator, *, is_light: bool) -> list[bytes]:
    """The images of a study: of a light one a single image is light."""
    which = int(rng.integers(IMAGES)) if is_light else -1
    found = []
    for number in range(IMAGES):
        level = rng.normal(110 if number == which else 70, 12)
        noise = rng.integers(0, 40, (9, 11, 3))
        found.append(encode_png(np.clip(level + noise, 0, 255).astype(np.uint8)))
    return found


def labelled(folder: Path, num_studies: int, seed: int) -> str:
    """A list whose label is that of the study; each patient has two studies."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    lines = ["uri,label,group"]
    for study in range(num_studies):
        for number, data in enumerate(study_images(rng, is_light=study % 2 == 1)):
            name = f"study{study:04d}-{number}.png"
            (folder / name).write_bytes(data)
            lines.append(f"{name},{('dark', 'light')[study % 2]},P{study // 2}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "list.csv")


def calibrated(registry: str, data: str, **changes: Any) -> dict[str, Any]:
    flags = {"positive_class": "light", "target_recall": 0.9, "unit": KEY, **changes}
    config = CalibrateConfig(f"{registry}/lamp@v1", data, device="cpu", num_decoders=1, **flags)
    result = calibrate(config)
    json.dumps(result, allow_nan=False)
    return result


def check_fresh_studies(registry: str, root: Path, num_fresh: int) -> None:
    fitted = calibrated(registry, labelled(root / "site", 120, 1))
    stored = UnitCalibration.of(read_bundle(fitted["uri"]).unit_calibration)
    assert stored is not None
    assert (stored.rule, stored.key, stored.num_units) == ("max", KEY, 120)
    assert stored.background_class == "dark"
    # Of single images another threshold reaches the target: the two are not one number.
    [of_images] = fitted["operating_points"]
    point = stored.calibration.operating_points[0]
    assert (point.num_positive, of_images["num_positive"]) == (60, 240)

    rng = np.random.default_rng(2)
    images = {
        f"study{study:04d}-{number}.png": data
        for study in range(num_fresh)
        for number, data in enumerate(study_images(rng, is_light=study % 2 == 1))
    }
    source = root / "incoming"
    source.mkdir()
    config = NightlyConfig(
        str(source), fitted["model"], str(root / "out"),
        executor="local", num_decoders=1, unit=KEY,
    )  # fmt: skip
    order = rng.permutation(sorted(images)).tolist()
    for night in range(3):
        arrivals = order[night::3]
        for name in arrivals[::2]:
            (source / name).write_bytes(images[name])
        with zipfile.ZipFile(source / f"lot{night}.zip", "w") as archive:
            for name in arrivals[1::2]:
                archive.writestr(name, images[name])
        nightly(replace(config, run_id=f"night-{night}"))
    assert len(read_latest(config.output)) == len(images)
    rows = read_latest_units(config.output).to_pylist()
    assert [row["unit"] for row in rows] == [f"{study:04d}" for study in range(num_fresh)]
    assert {(row["num_images"], row["num_ok"], row["status"]) for row in rows} == {(4, 4, "ok")}
    found = np.array([row["calibrated_prob"] >= point.threshold for row in rows])
    recall = found[1::2].mean()
    assert recall >= 0.9 - 1.96 * np.sqrt(0.9 * 0.1 / (num_fresh / 2)), "the interval holds 0.9"
    assert (~found[::2]).mean() > 0.5, "not by calling everything positive"
    decided = {row["decision"] for row in rows}
    assert decided <= {"positive", "negative", "review"}
    assert "positive" in decided
    assert verify(VerifyConfig(config.output))["rows"] == len(images)

    # Against labels, what was published of each study: the same answers, counted once.
    names = (("dark", "light")[int(name[5:9]) % 2] for name in sorted(images))
    lines = [f"{name},{label}" for name, label in zip(sorted(images), names, strict=True)]
    (root / "labels.csv").write_text("\n".join(["uri,label", *lines]) + "\n")
    of_rows = EvaluateConfig(
        predictions=config.output, labels=str(root / "labels.csv"), match_by="name"
    )
    published = evaluate(of_rows)["units"]
    assert (published["num_units"], published["num_incomplete"]) == (num_fresh, 0)
    assert (published["key"], published["rule"]) == (KEY, "max")
    [at_point] = published["decisions"]
    assert (at_point["threshold_id"], at_point["recall"]) == (point.threshold_id, recall)
    assert at_point["specificity"] == (~found[::2]).mean()
    with pytest.raises(ConfigError, match=r"--unit folder:1: these predictions have units by name"):
        evaluate(replace(of_rows, unit="folder:1"))

    # The same numbers by evaluate on the labelled form of other fresh studies.
    measured = evaluate(
        EvaluateConfig(
            model=fitted["model"], data=labelled(root / "fresh", 60, 3), split="all",
            unit=KEY, device="cpu", num_decoders=1,
        )
    )["units"]  # fmt: skip
    assert (measured["num_units"], measured["num_groups"], measured["rule"]) == (60, 30, "max")
    numbers = measured["calibrated"]["operating_points"][point.threshold_id]
    low, high = numbers["recall_interval"]
    assert low <= numbers["recall"] <= high
    assert high >= 0.9


@pytest.mark.timeout(600)
def test_thresholds_per_study_hold_on_fresh_studies(registry: str, tmp_path: Path) -> None:
    check_fresh_studies(registry, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thresholds_per_study_hold_on_300_fresh_studies(registry: str, tmp_path: Path) -> None:
    check_fresh_studies(registry, tmp_path, 300)


def test_an_incomplete_unit_is_never_negative_and_another_rule_is_refused(
    registry: str, tmp_path: Path
) -> None:
    fitted = calibrated(registry, labelled(tmp_path / "site", 120, 1), target_recall=0.9)
    source = tmp_path / "incoming"
    source.mkdir()
    for study, is_cut in ((1, False), (2, True)):
        for number in range(2):
            path = source / f"study{study}-{number}.png"
            path.write_bytes(encode_png(np.full((9, 11, 3), 5, np.uint8)))
        if is_cut:
            path.write_bytes(path.read_bytes()[:40])
    config = NightlyConfig(
        str(source), fitted["model"], str(tmp_path / "out"), executor="local", unit=KEY
    )
    with pytest.raises(ConfigError, match=r"--unit-rule mean: .* were fitted for max"):
        nightly(replace(config, unit_rule="mean"))
    result = nightly(config)
    assert result["unit_decisions"] == {"negative": 1, "review": 1}
    assert "Units by decision: negative (1), review (1)." in result["lines"]
    rows = {row["unit"]: row for row in read_latest_units(config.output).to_pylist()}
    assert (rows["1"]["status"], rows["1"]["decision"]) == ("ok", "negative")
    assert (rows["2"]["status"], rows["2"]["decision"]) == ("incomplete", "review")
    assert rows["2"]["calibrated_prob"] == pytest.approx(rows["1"]["calibrated_prob"], abs=1e-6)


def test_units_of_several_classes_are_named_and_too_few_are_refused(
    registry: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"per unit: a recall of 0.9 needs 30"):
        calibrated(registry, labelled(tmp_path / "few", 20, 1))
    data = labelled(tmp_path / "data", 4, 1)
    # Of each of these units some images say dark and others light, and no class is nothing.
    config = EvaluateConfig(
        model=f"{registry}/lamp@v1", data=data, split="all", unit="name:-([0-9])",
        unit_rule="mean", device="cpu", num_decoders=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="of 16 images none is of a unit with a label"):
        evaluate(config)


def sample(uri: str, unit: str, label: int) -> Sample:
    return Sample(uri, (label,), ("dark", "light")[label], "val", "", uri, 1.0, unit=unit)


def test_every_frame_of_a_file_counts_and_one_that_failed_makes_its_unit_incomplete() -> None:
    probs_BK = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], np.float32)
    # The first file has two frames, the second one frame that failed, the third is a text.
    failures = [
        NoPrediction(1, Status.CORRUPT, "a frame"),
        NoPrediction(2, Status.NOT_AN_IMAGE, "a text"),
    ]
    found = Collected(np.array([0, 0, 1, 2]), probs_BK, failures=failures)
    samples = [sample("a", "A", 1), sample("b", "B", 0), sample("c", "C", 0)]
    rule = UnitRule("max", 0, multi_label=False, calibration=None)
    units = collect_units(Predicted(found, "torch", "fp32"), samples, rule)
    assert units.probs_SK.tolist() == probs_BK[[0, 2, 3]].tolist()
    assert (units.num_incomplete, units.num_failed) == (1, 0)


def test_the_background_that_tiles_are_pooled_by_is_that_of_units(bundle: Bundle) -> None:
    """Of two classes nothing but the model itself tells which one shows nothing."""
    assert rule_of("auto", bundle).background is None
    assert rule_of("auto", replace(bundle, background_class="dark")).background == 0
