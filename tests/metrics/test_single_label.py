import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from imgcls.data.class_names import ClassNames
from imgcls.metrics.single_label import (
    classification_metrics,
    expected_calibration_error,
    reliability_bins,
)

_ABC = ClassNames(("a", "b", "c"))


def test_known_small_case() -> None:
    label_B, pred_B = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    metrics = classification_metrics(label_B, pred_B, ClassNames(("a", "b")))
    assert metrics["accuracy"] == 0.75
    assert metrics["confusion_matrix"] == [[1, 1], [0, 2]]
    assert metrics["per_class"]["a"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    assert metrics["per_class"]["b"]["precision"] == pytest.approx(2 / 3)
    assert metrics["undefined"] == {}


def test_agrees_with_scikit_learn_on_random_predictions() -> None:
    rng = np.random.default_rng(0)
    label_B, pred_B = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    metrics = classification_metrics(label_B, pred_B, _ABC)
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label_B, pred_B))
    assert metrics["macro_f1"] == pytest.approx(f1_score(label_B, pred_B, average="macro"))
    assert metrics["weighted_f1"] == pytest.approx(f1_score(label_B, pred_B, average="weighted"))


def test_undefined_numbers_are_null_with_a_reason_and_survive_json() -> None:
    probs_BK = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]], dtype=np.float32)
    metrics = classification_metrics(np.array([0, 1]), np.array([0, 1]), _ABC, probs_BK)
    json.dumps(metrics, allow_nan=False)
    assert metrics["per_class"]["c"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }
    assert metrics["auroc"] == {"a": 1.0, "b": 1.0, "c": None}
    assert "no image" in metrics["undefined"]["c"]
    assert "never predicted" in metrics["undefined"]["c"]
    assert metrics["macro_f1"] == 1.0


def test_only_one_class_in_the_data() -> None:
    probs_BK = np.array([[0.9, 0.1]])
    metrics = classification_metrics(np.array([0]), np.array([0]), ClassNames(("a", "b")), probs_BK)
    assert metrics["auroc_macro"] is None
    assert "no image of another class" in metrics["undefined"]["a"]


def test_probability_metrics_of_perfect_and_of_wrong_predictions() -> None:
    label_B = np.array([0, 1, 2, 0])
    perfect = classification_metrics(label_B, label_B, _ABC, np.eye(3)[label_B])
    assert (perfect["ece"], perfect["brier"], perfect["auroc_macro"]) == (0.0, 0.0, 1.0)
    wrong_B = (label_B + 1) % 3
    wrong = classification_metrics(label_B, wrong_B, _ABC, np.eye(3)[wrong_B])
    assert (wrong["ece"], wrong["brier"]) == (1.0, 2.0)
    assert wrong["top3_accuracy"] == 1.0


def test_top5_counts_the_label_among_the_five_best() -> None:
    names = ClassNames(tuple("abcdefg"))
    probs_BK = np.array([[0.3, 0.2, 0.15, 0.13, 0.12, 0.06, 0.04]] * 2)
    metrics = classification_metrics(np.array([4, 5]), np.array([0, 0]), names, probs_BK)
    assert metrics["top5_accuracy"] == 0.5


def test_calibration_error_weighs_bins_by_images() -> None:
    bins = reliability_bins(np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True]))
    assert [b["count"] for b in bins] == [1, 3]
    error = expected_calibration_error(bins)
    assert error == pytest.approx((1 * 0.45 + 3 * abs(2 / 3 - 2.9 / 3)) / 4)
