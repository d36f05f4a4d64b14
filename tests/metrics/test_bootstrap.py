import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import draw_weights, number_units
from imgcls.metrics.measures import Labelled, one_hot
from imgcls.metrics.operating_point import measure_point, operating_point
from imgcls.metrics.quality import measure_slices
from tests.metrics.labelled import measure_one

_ABC = ClassNames(("a", "b", "c"))


def _intervals(*given: Any, **bootstrap: Any) -> dict[str, Any]:
    intervals: dict[str, Any] = measure_one(*given, **bootstrap)["intervals"]
    return intervals


def _predictions(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions that are right in some 70 %, and probabilities with ties."""
    rng = np.random.default_rng(seed)
    label_B = rng.integers(0, 3, num_images)
    logits_BK = np.round(rng.normal(size=(num_images, 3)) + 1.6 * np.eye(3)[label_B], 1)
    probs_BK = np.exp(logits_BK)
    probs_BK /= probs_BK.sum(axis=1, keepdims=True)
    return label_B, probs_BK.argmax(axis=1), probs_BK


def test_interval_holds_the_metric_and_survives_json() -> None:
    label_B, pred_B, probs_BK = _predictions(300)
    metrics = measure_one(label_B, pred_B, _ABC, probs_BK)
    intervals = _intervals(label_B, pred_B, _ABC, probs_BK, num_resamples=300)
    json.dumps(intervals, allow_nan=False)
    names = ["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "top3_accuracy", "brier"]
    for name in [*names, "auroc_macro", "average_precision_macro"]:
        low, high = intervals[name]
        assert low <= metrics[name] <= high
    for name in _ABC.names:
        low, high = intervals["per_class"][name]["recall"]
        assert low <= metrics["per_class"][name]["recall"] <= high


def test_accuracy_interval_is_as_wide_as_the_normal_approximation() -> None:
    label_B, pred_B, _ = _predictions(2000)
    accuracy = (label_B == pred_B).mean()
    low, high = _intervals(label_B, pred_B, _ABC)["accuracy"]
    half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_grouped_images_give_wider_intervals() -> None:
    label_B, pred_B, _ = _predictions(40)
    label_B, pred_B = np.repeat(label_B, 25), np.repeat(pred_B, 25)
    patients = [f"p{i // 25}" for i in range(1000)]
    alone = _intervals(label_B, pred_B, _ABC)
    grouped = _intervals(label_B, pred_B, _ABC, units=patients)
    assert (alone["num_units"], grouped["num_units"]) == (1000, 40)
    width = [high - low for low, high in (alone["accuracy"], grouped["accuracy"])]
    assert width[1] > 3 * width[0]


def test_a_draw_equals_scikit_learn_on_the_repeated_images() -> None:
    label_B, pred_B, probs_BK = _predictions(60)
    [weight_B] = draw_weights(number_units(60, None), 1, seed=4)
    again = np.repeat(np.arange(60), weight_B.astype(int))
    expected = measure_one(label_B[again], pred_B[again], _ABC, probs_BK[again])
    drawn = _intervals(label_B, pred_B, _ABC, probs_BK, num_resamples=1, seed=4)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "ece", "brier"):
        assert drawn[name] == pytest.approx([expected[name]] * 2)
    auroc = [roc_auc_score(label_B[again] == k, probs_BK[again, k]) for k in range(3)]
    ap = [average_precision_score(label_B[again] == k, probs_BK[again, k]) for k in range(3)]
    assert drawn["auroc_macro"] == pytest.approx([np.mean(auroc)] * 2)
    assert drawn["average_precision_macro"] == pytest.approx([np.mean(ap)] * 2)


def test_what_is_not_defined_is_null() -> None:
    label_B = np.zeros(20, dtype=np.int64)
    intervals = _intervals(label_B, label_B, _ABC, np.eye(3)[label_B], num_resamples=50)
    assert intervals["accuracy"] == [1.0, 1.0]
    assert intervals["auroc_macro"] is None
    assert intervals["per_class"]["b"] == {"recall": None, "precision": None}


def test_slices_have_their_own_numbers() -> None:
    label_B, pred_B = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0])
    data = Labelled(one_hot(label_B, 2), one_hot(pred_B, 2), ClassNames(("a", "b")), False)
    table = measure_slices(["x", "x", "y", "y"], data)
    assert {name: row["accuracy"] for name, row in table.items()} == {"x": 1.0, "y": 0.0}
    assert table["x"]["num_images"] == 2


@pytest.mark.parametrize(
    ("num_groups", "is_given"), [(1, False), (3, False), (4, True), (40, True)]
)
def test_few_groups_give_no_interval_and_the_reason(num_groups: int, is_given: bool) -> None:
    label_B = np.arange(240) % 3
    pred_B = np.where(np.arange(240) % 5 == 0, (label_B + 1) % 3, label_B)
    groups = [f"p{i % num_groups}" for i in range(240)]
    intervals = _intervals(label_B, pred_B, _ABC, units=groups, num_resamples=50)
    assert (intervals["accuracy"] is not None) == is_given
    assert (intervals["per_class"]["a"]["recall"] is not None) == is_given
    assert ("no_interval_because" in intervals) != is_given
    if not is_given:
        assert intervals["no_interval_because"].startswith(f"{num_groups} groups")
    data = Labelled(one_hot(label_B, 3), one_hot(pred_B, 3), _ABC, multi_label=False)
    table = measure_slices(["x"] * 240, data, groups)
    assert (table["x"]["accuracy_interval"] is not None) == is_given
    positive_B = label_B == 0
    score_B = np.linspace(0, 1, 240)
    point = operating_point(score_B, positive_B, "a", "recall", 0.5, groups, 0)
    assert (point.recall_interval is not None) == is_given
    measured = measure_point(point, score_B, positive_B, groups)
    assert (measured["specificity_interval"] is not None) == is_given
