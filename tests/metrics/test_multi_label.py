import json
import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from imgcls.data.class_names import ClassNames
from imgcls.metrics.multi_label import macro_auroc, multi_label_metrics, multi_label_slices

_ABC = ClassNames(("a", "b", "c"))


def _sample(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets of three classes, and probabilities that know something of them, with ties."""
    rng = np.random.default_rng(seed)
    target_BK = rng.random((num_images, 3)) < [0.5, 0.2, 0.1]
    probs_BK = np.clip(0.3 * target_BK + rng.random((num_images, 3)) * 0.7, 0, 1)
    return target_BK, np.round(probs_BK, 2).astype(np.float32)


def test_numbers_by_hand() -> None:
    target_BK = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    probs_BK = np.array([[0.9, 0.1, 0.4], [0.2, 0.1, 0.1], [0.5, 0.8, 0.6], [0.7, 0.9, 0.2]])
    metrics = multi_label_metrics(target_BK, probs_BK, _ABC)
    # Said: {a}, {}, {a, b, c}, {a, b}; a probability of 0.5 is enough.
    assert metrics["accuracy"] == metrics["subset_accuracy"] == 0.25
    assert metrics["hamming_loss"] == pytest.approx(3 / 12)
    assert metrics["per_class"]["a"]["precision"] == pytest.approx(2 / 3)
    assert metrics["per_class"]["a"]["recall"] == 1.0
    assert metrics["per_class"]["c"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
        "num_predicted": 1,
    }
    assert metrics["micro_precision"] == pytest.approx(4 / 6)
    assert metrics["micro_recall"] == pytest.approx(4 / 5)
    assert metrics["macro_recall"] == pytest.approx(2 / 3)
    assert metrics["auroc"] == {"a": 0.75, "b": 1.0, "c": pytest.approx(2 / 3)}
    assert metrics["brier"] == pytest.approx(((probs_BK - target_BK) ** 2).mean())
    assert metrics["brier_per_class"]["b"] == pytest.approx((0.01 + 0.01 + 0.04 + 0.01) / 4)


def test_averages_are_those_of_scikit_learn() -> None:
    target_BK, probs_BK = _sample(300)
    metrics = multi_label_metrics(target_BK, probs_BK, _ABC, num_resamples=10)
    for average in ("macro", "micro"):
        ours = (metrics[f"auroc_{average}"], metrics[f"average_precision_{average}"])
        assert ours == (
            pytest.approx(roc_auc_score(target_BK, probs_BK, average=average)),
            pytest.approx(average_precision_score(target_BK, probs_BK, average=average)),
        )
        expected = f1_score(target_BK, probs_BK >= 0.5, average=average)
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    assert macro_auroc(target_BK, probs_BK) == pytest.approx(metrics["auroc_macro"])


def test_what_is_not_defined_is_null_with_a_reason_and_no_warning() -> None:
    target_BK, probs_BK = _sample(50)
    target_BK[:, 1], target_BK[:, 2], probs_BK[:, 2] = False, True, 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = multi_label_metrics(target_BK, probs_BK, _ABC, num_resamples=50)
        nothing = multi_label_metrics(np.zeros((3, 3)), np.zeros((3, 3)), _ABC, num_resamples=20)
    assert metrics["auroc"]["b"] is metrics["auroc"]["c"] is metrics["per_class"]["b"]["recall"]
    assert metrics["auroc"]["b"] is None
    assert metrics["auroc_macro"] == metrics["auroc"]["a"]
    assert metrics["per_class"]["c"]["precision"] is None
    assert metrics["undefined"] == {
        "b": "recall, auroc, average_precision: no image shows this class",
        "c": "auroc, average_precision: every image shows it; precision: never predicted",
    }
    assert nothing["accuracy"] == 1.0
    assert nothing["auroc_macro"] is nothing["micro_f1"] is nothing["intervals"]["macro_f1"] is None
    json.dumps([metrics, nothing], allow_nan=False)


def test_intervals_hold_their_numbers_and_are_wider_for_groups() -> None:
    target_BK, probs_BK = _sample(40)
    alone = multi_label_metrics(target_BK, probs_BK, _ABC)
    for name, bounds in alone["intervals"].items():
        if isinstance(bounds, list):
            assert bounds[0] <= alone[name] <= bounds[1], name
    for name, of_class in alone["intervals"]["per_class"].items():
        low, high = of_class["recall"]
        assert low <= alone["per_class"][name]["recall"] <= high
    # Ten images of each patient tell no more than one.
    again_BK, again_probs_BK = np.repeat(target_BK, 10, axis=0), np.repeat(probs_BK, 10, axis=0)
    patients = [str(i // 10) for i in range(400)]
    grouped = multi_label_metrics(again_BK, again_probs_BK, _ABC, patients)["intervals"]
    images = multi_label_metrics(again_BK, again_probs_BK, _ABC)["intervals"]
    for name in ("accuracy", "auroc_macro", "macro_f1"):
        width, narrow = (high - low for low, high in (grouped[name], images[name]))
        assert width > 2 * narrow
    assert grouped["num_units"] == 40


def test_intervals_are_those_of_the_drawn_images() -> None:
    """One resample, drawn by hand: the fast weighted forms equal scikit-learn on the drawn rows."""
    target_BK, probs_BK = _sample(60)
    again = np.random.default_rng(4).integers(0, 60, 60)
    expected = multi_label_metrics(target_BK[again], probs_BK[again], _ABC, num_resamples=1)
    drawn = multi_label_metrics(target_BK, probs_BK, _ABC, num_resamples=1, seed=4)["intervals"]
    names = ("accuracy", "hamming_loss", "macro_f1", "micro_precision", "brier", "auroc_macro")
    for name in (*names, "average_precision_macro"):
        assert drawn[name][0] == pytest.approx(expected[name]), name


def test_classes_predicted_by_other_thresholds_are_measured_as_given() -> None:
    target_BK, probs_BK = _sample(30)
    metrics = multi_label_metrics(target_BK, None, _ABC, predicted_BK=target_BK, num_resamples=5)
    assert (metrics["accuracy"], metrics["hamming_loss"]) == (1.0, 0.0)
    assert "auroc" not in metrics
    mixed = multi_label_metrics(target_BK, probs_BK, _ABC, predicted_BK=target_BK, num_resamples=5)
    assert (mixed["accuracy"], mixed["auroc_macro"]) == (1.0, macro_auroc(target_BK, probs_BK))


def test_slices_are_measured_apart() -> None:
    target_BK = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    predicted_BK = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    table = multi_label_slices(["x", "x", "y", "y"], target_BK, predicted_BK, _ABC)
    assert (table["x"]["accuracy"], table["y"]["accuracy"]) == (1.0, 0.0)
    assert table["y"]["hamming_loss"] == pytest.approx(4 / 6)
