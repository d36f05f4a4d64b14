"""What a registered model says of itself, from one small training with everything switched on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.config.models import EvaluateConfig
from imgcls.config.training import TrainConfig
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.crops import decode_one
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inference.pixel_check import check_pixels
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.bundle_files import GOLDEN_FILES
from imgcls.model.golden_files import make_files, unpack_files
from imgcls.training.driver import train

MakeTree = Callable[..., Path]
SIDE_PX = 12


def write_data(root: Path, num_patients: int = 30) -> Path:
    """Four faint bars per patient, of two scanners; some labels are wrong, so nobody is certain."""
    rng = np.random.default_rng(0)
    lines = []
    for patient in range(num_patients):
        for number in range(4):
            label = number % 2
            image_HW = rng.integers(0, 120, (SIDE_PX, SIDE_PX))
            image_HW[6 * label : 6 * label + 3] += 40
            path = root / f"{patient:02d}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_HW.astype(np.uint8)).save(path)
            said = label if rng.random() < 0.9 else 1 - label
            lines.append((path.name, ("bad", "good")[said], f"p{patient}", "xy"[patient % 2]))
    manifest = root / "m.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "label", "group", "scanner"), *lines])
    return manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict[str, Any], Bundle]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("finish")
    config = TrainConfig(
        data=str(write_data(root / "data")),
        registry=str(root / "registry"),
        name="bars",
        arch="simple_cnn",
        image_px=SIDE_PX,
        batch_size=16,
        epochs=4,
        lr=5e-3,
        val_fraction=0.3,
        test_fraction=0.3,
        slice_by="scanner",
        positive_class="bad",
        target_recall=0.6,
        target_specificity=0.6,
        device="cpu",
        num_decoders=1,
    )
    result = train(config)
    return config, result, read_bundle(result["uri"])


def test_every_number_has_an_interval_over_patients(trained: Any) -> None:
    _, result, bundle = trained
    for split in ("val", "test"):
        metrics = bundle.metrics[split]
        for name in (
            "accuracy",
            "top2_accuracy",
            "balanced_accuracy",
            "macro_f1",
            "weighted_f1",
            "auroc_macro",
            "average_precision_macro",
            "ece",
            "brier",
            "log_loss",
        ):
            low, high = metrics["intervals"][name]
            # The calibration error of a sample is biased upwards: its own may lie below.
            assert low <= metrics[name] or name == "ece", name
            assert metrics[name] <= high, name
        assert 4 * metrics["intervals"]["num_units"] == metrics["num_images"]
        assert set(metrics["per_class"]) == {"bad", "good"}
        assert np.sum(metrics["confusion_matrix"]) == metrics["num_images"]
    assert result["test_accuracy_interval"] == bundle.metrics["test"]["intervals"]["accuracy"]


def test_slices_add_up_to_the_split(trained: Any) -> None:
    _, _, bundle = trained
    for metrics in bundle.metrics.values():
        slices = metrics["slices"]
        assert set(slices) == {"x", "y"}
        assert sum(row["num_images"] for row in slices.values()) == metrics["num_images"]
        right = sum(row["accuracy"] * row["num_images"] for row in slices.values())
        assert right == pytest.approx(metrics["accuracy"] * metrics["num_images"])


def test_calibration_and_thresholds_are_part_of_the_bundle(trained: Any) -> None:
    _, _, bundle = trained
    calibration = bundle.calibration
    assert calibration["num_images"] == bundle.metrics["val"]["num_images"]
    assert calibration["log_loss_after"] <= calibration["log_loss_before"]
    points = {point["threshold_id"]: point for point in calibration["operating_points"]}
    assert points["bad:recall>=0.6"]["recall"] >= 0.6
    assert points["bad:specificity>=0.6"]["specificity"] >= 0.6
    for metrics in bundle.metrics.values():
        measured = metrics["calibrated"]["operating_points"]
        assert set(measured) == set(points)
        for numbers in measured.values():
            low, high = numbers["recall_interval"]
            assert low <= numbers["recall"] <= high
    # What was fitted on validation is what is measured there.
    on_val = bundle.metrics["val"]["calibrated"]
    assert on_val["log_loss"] == pytest.approx(calibration["log_loss_after"])
    assert on_val["operating_points"]["bad:recall>=0.6"]["recall"] == pytest.approx(
        points["bad:recall>=0.6"]["recall"]
    )


def test_bundle_result_and_card_say_what_measured(trained: Any) -> None:
    _, result, bundle = trained
    measured_by = {"backend": "eager fp32 on cpu", "precision": "fp32"}
    assert result["measured_by"] == bundle.training["measured_by"] == measured_by
    card = Path(result["uri"], "MODEL_CARD.md").read_text()
    assert "measured_by.backend" in card
    assert "eager fp32 on cpu" in card


def test_evaluating_the_bundle_gives_its_own_numbers(trained: Any) -> None:
    config, _, bundle = trained
    for split in ("val", "test"):
        again = evaluate(
            EvaluateConfig(
                model=f"{config.registry}/bars@v1",
                data=config.data,
                split=split,
                slice_by="scanner",
                device="cpu",
                num_decoders=1,
            )
        )
        assert again["same_split_as_training"]
        for name in ("accuracy", "confusion_matrix", "slices", "num_images"):
            assert again[name] == bundle.metrics[split][name]
        assert again["brier"] == pytest.approx(bundle.metrics[split]["brier"], abs=1e-6)
        before, after = bundle.metrics[split]["calibrated"], again["calibrated"]
        assert after["log_loss"] == pytest.approx(before["log_loss"], abs=1e-6)
        assert set(after["operating_points"]) == set(before["operating_points"])


def test_the_card_shows_what_the_bundle_knows(trained: Any) -> None:
    config, result, bundle = trained
    card = (Path(result["uri"]) / "MODEL_CARD.md").read_text()
    facts = bundle.training
    test = bundle.metrics["test"]
    low, high = test["intervals"]["accuracy"]
    assert f"| test | accuracy | {test['accuracy']:.4f} | {low:.4f} to {high:.4f} |" in card
    counts = facts["counts"]
    row = " | ".join(str(counts[split]["bad"]) for split in ("train", "val", "test"))
    assert f"| bad | {row} |" in card
    for shown in (
        bundle.split_digest,
        "No group, no image and no near-duplicate",
        "### Per class",
        "### Slices",
        "| test | x |",
        "bad:recall>=0.6",
        "| seed | 0 |",
        f"| versions.torch | {facts['versions']['torch']} |",
        f"| hardware | {facts['hardware']} |",
        f"| train_s | {facts['train_s']} |",
        "![curves.png](curves.png)",
    ):
        assert shown in card, shown
    for name in ("curves.png", "confusion.png", "reliability.png", "roc.png", "scores.png"):
        assert Image.open(Path(result["uri"]) / name).size[0] > 300
    assert json.loads(json.dumps(facts, allow_nan=False))["leaks"] == {} == result["leaks"]
    assert str(config.registry) not in card
    assert "Leak check: complete. Groups: 30." in card
    history = bundle.training["history"]
    assert all(0.2 < numbers["train_accuracy"] <= 1 for numbers in history)
    assert len({numbers["train_accuracy"] for numbers in history}) > 1


def test_the_verdict_stands_first_and_the_configuration_last(trained: Any) -> None:
    _, result, bundle = trained
    assert next(iter(result)) == "verdict"
    assert result["verdict"] == bundle.verdict
    assert bundle.verdict["answer"] == "better"
    [first, second] = bundle.verdict["operating_points"]
    assert (first["num_positive"], first["num_negative"]) == (
        bundle.metrics["test"]["per_class"]["bad"]["support"],
        bundle.metrics["test"]["per_class"]["good"]["support"],
    )
    assert first["num_found"] == round(first["recall"] * first["num_positive"])
    assert set(first["slices"]) == set(second["slices"]) == {"x", "y"}
    card = (Path(result["uri"]) / "MODEL_CARD.md").read_text()
    titles = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert titles[:4] == ["Verdict", "Pictures", "Data", "Limits"]
    assert titles[-1] == "Configuration"
    assert "better than guessing, as far as 36 test images can tell" in card
    # Of two classes there is one AUROC.
    assert card.count("| auroc |") == 2
    assert "AUROC |" not in card


def test_the_worst_errors_lie_in_the_run_and_not_in_the_bundle(trained: Any) -> None:
    _, result, bundle = trained
    sheet = Image.open(Path(result["run"]) / "worst_errors.png")
    assert sheet.size[0] > 300
    assert bundle.verdict["model"]["num_right"] < bundle.verdict["num_images"]
    assert not any("error" in path.name for path in Path(result["uri"]).iterdir())


def test_without_validation_there_is_no_calibration(make_tree: MakeTree) -> None:
    result = train(
        TrainConfig(
            data=str(make_tree(12)),
            registry=str(make_tree(1, name="other").parent / "registry"),
            name="bars",
            arch="simple_cnn",
            image_px=SIDE_PX,
            batch_size=8,
            epochs=1,
            val_fraction=0,
            test_fraction=0,
            num_decoders=1,
        )
    )
    bundle = read_bundle(result["uri"])
    assert (bundle.calibration, bundle.metrics) == (None, {})
    assert set(bundle.attachments) == {"curves.png", "trained_on.json", GOLDEN_FILES}


def test_what_proves_a_bundle_was_generated_and_no_image_of_the_data(make_tree: MakeTree) -> None:
    data = make_tree(12)
    result = train(
        TrainConfig(
            data=str(data),
            registry=str(make_tree(1, name="other").parent / "registry"),
            name="bars",
            arch="simple_cnn",
            image_px=SIDE_PX,
            batch_size=8,
            epochs=1,
            num_decoders=1,
        )
    )
    bundle = read_bundle(result["uri"])
    files = unpack_files(bundle.attachments[GOLDEN_FILES])
    assert 6 <= len(files) == len(bundle.golden_x_BCHW)
    assert files.items() <= make_files().items()
    crops = [
        decode_one(one, bundle.decode_spec, bundle.preprocess_spec)[0].x_CHW
        for one in files.values()
    ]
    np.testing.assert_array_equal(bundle.golden_x_BCHW.numpy(), np.stack(crops))
    with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool:
        check_pixels(bundle, pool)
    card = (Path(result["uri"]) / "MODEL_CARD.md").read_text()
    assert "No image of the data is in this folder" in card
