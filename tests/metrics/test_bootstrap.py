import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import draw, draw_weights, number_units
from imgcls.metrics.measures import Labelled, RankingMeasure, cheap_measures, one_hot
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
    data = Labelled(one_hot(label_B, 3), one_hot(pred_B, 3), _ABC, False, probs_BK)
    measures = [*cheap_measures(data), RankingMeasure(data.target_BK, probs_BK)]
    drawn = draw(measures, number_units(60, None), num_resamples=1, seed=4)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "ece", "brier"):
        assert drawn[name] == pytest.approx([expected[name]])
    auroc = [roc_auc_score(label_B[again] == k, probs_BK[again, k]) for k in range(3)]
    ap = [average_precision_score(label_B[again] == k, probs_BK[again, k]) for k in range(3)]
    assert drawn["auroc_macro"] == pytest.approx([np.mean(auroc)])
    assert drawn["average_precision_macro"] == pytest.approx([np.mean(ap)])


def test_what_is_not_defined_is_null() -> None:
    label_B = np.zeros(20, dtype=np.int64)
    intervals = _intervals(label_B, label_B, _ABC, np.eye(3)[label_B], num_resamples=50)
    assert intervals["accuracy"] == pytest.approx([20 / 23.84, 1.0], abs=1e-3)
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
        assert f"one): {num_groups}, an interval needs 4" in intervals["no_interval_because"]
    data = Labelled(one_hot(label_B, 3), one_hot(pred_B, 3), _ABC, multi_label=False)
    table = measure_slices(["x"] * 240, data, groups)
    assert (table["x"]["accuracy_interval"] is not None) == is_given
    positive_B = label_B == 0
    score_B = np.linspace(0, 1, 240)
    point = operating_point(score_B, positive_B, "a", "recall", 0.5, groups, 0)
    assert (point.recall_interval is not None) == is_given
    measured = measure_point(point, score_B, positive_B, groups)
    assert (measured["specificity_interval"] is not None) == is_given


@pytest.mark.parametrize("num_units", [8, 20, 400])
def test_what_no_draw_can_change_still_has_an_interval(num_units: int) -> None:
    """Every image is right: the bootstrap would say 100 to 100 %."""
    label_B = np.arange(num_units) % 2
    probs_BK = np.eye(2, dtype=np.float32)[label_B] * 0.8 + 0.1
    names = ClassNames(("good", "bad"))
    intervals = _intervals(label_B, label_B, names, probs_BK)
    low, high = intervals["accuracy"]
    assert high == 1.0
    # The rule of three leaves 3/n open, Wilson's interval 3.8/(n + 3.8).
    assert 1 - low == pytest.approx(3.84 / (num_units + 3.84), rel=0.01)
    # What hangs on one class rests on the images of that class.
    for name in ("auroc_macro", "macro_recall", "macro_f1", "average_precision_macro"):
        assert 1 - intervals[name][0] == pytest.approx(3.84 / (num_units / 2 + 3.84), rel=0.01)
    assert intervals["per_class"]["bad"]["recall"] == intervals["auroc_macro"]
    assert intervals["log_loss"] is None, "nothing bounds how bad the next image is"


def test_images_of_one_group_do_not_narrow_the_interval_of_a_faultless_model() -> None:
    label_B = np.arange(400) % 2
    lots = [f"lot-{i // 40}" for i in range(400)]
    low, _ = _intervals(label_B, label_B, ClassNames(("good", "bad")), units=lots)["accuracy"]
    assert 1 - low == pytest.approx(3.84 / 13.84, rel=0.01)


def test_a_model_that_answers_all_alike_is_not_certain_to_tell_nothing_apart() -> None:
    label_B = np.arange(40) % 2
    probs_BK = np.full((40, 2), 0.5, np.float32)
    low, high = _intervals(label_B, 0 * label_B, ClassNames(("a", "b")), probs_BK)["auroc_macro"]
    assert low == pytest.approx(0.299, abs=0.001)
    assert high == pytest.approx(0.701, abs=0.001)


def test_a_threshold_that_loses_nothing_is_not_said_to_be_faultless() -> None:
    score_B = np.linspace(0, 1, 100)
    point = operating_point(score_B, score_B >= 0.7, "bad", "recall", 0.9, None, seed=0)
    measured = measure_point(point, score_B, score_B >= 0.7)
    for said in (point.specificity_interval, measured["specificity_interval"]):
        assert said == pytest.approx([70 / 73.84, 1.0], abs=1e-3)
