"""What every metric is, of one label and of several: by hand, and as scikit-learn has it."""

import json
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import draw, number_units
from imgcls.metrics.measures import (
    Labelled,
    RankingMeasure,
    about_best,
    cheap_measures,
    one_hot,
)
from imgcls.metrics.quality import (
    expected_calibration_error,
    macro_auroc,
    measure_quality,
    measure_slices,
    reliability_bins,
)
from tests.metrics.labelled import measure_one

_ABC = ClassNames(("a", "b", "c"))


def _several(
    target_BK: np.ndarray,
    probs_BK: np.ndarray | None,
    units: list[str] | None = None,
    predicted_BK: np.ndarray | None = None,
    **bootstrap: int,
) -> dict[str, Any]:
    """Measure images of any number of labels."""
    if predicted_BK is None:
        assert probs_BK is not None
        predicted_BK = probs_BK >= 0.5
    sets = (target_BK.astype(bool), predicted_BK.astype(bool))
    return measure_quality(Labelled(*sets, _ABC, True, probs_BK), units, **bootstrap)


def test_known_small_case() -> None:
    label_B, pred_B = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    metrics = measure_one(label_B, pred_B, ClassNames(("a", "b")))
    assert metrics["accuracy"] == 0.75
    assert metrics["confusion_matrix"] == [[1, 1], [0, 2]]
    assert metrics["per_class"]["a"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
        "num_predicted": 1,
    }
    assert metrics["per_class"]["b"]["precision"] == pytest.approx(2 / 3)
    assert metrics["undefined"] == {}


def test_agrees_with_scikit_learn_on_random_predictions() -> None:
    rng = np.random.default_rng(0)
    label_B, pred_B = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    metrics = measure_one(label_B, pred_B, _ABC)
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label_B, pred_B))
    assert metrics["macro_f1"] == pytest.approx(f1_score(label_B, pred_B, average="macro"))
    assert metrics["weighted_f1"] == pytest.approx(f1_score(label_B, pred_B, average="weighted"))


def test_undefined_numbers_are_null_with_a_reason_and_survive_json() -> None:
    probs_BK = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]], dtype=np.float32)
    metrics = measure_one(np.array([0, 1]), np.array([0, 1]), _ABC, probs_BK)
    json.dumps(metrics, allow_nan=False)
    assert metrics["per_class"]["c"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
        "num_predicted": 0,
    }
    assert metrics["auroc"] == {"a": 1.0, "b": 1.0, "c": None}
    assert "no image" in metrics["undefined"]["c"]
    assert "never predicted" in metrics["undefined"]["c"]
    assert metrics["macro_f1"] == 1.0


def test_only_one_class_in_the_data() -> None:
    probs_BK = np.array([[0.9, 0.1]])
    metrics = measure_one(np.array([0]), np.array([0]), ClassNames(("a", "b")), probs_BK)
    assert metrics["auroc_macro"] is None
    assert "every image shows it" in metrics["undefined"]["a"]


def test_probability_metrics_of_perfect_and_of_wrong_predictions() -> None:
    label_B = np.array([0, 1, 2, 0])
    perfect = measure_one(label_B, label_B, _ABC, np.eye(3)[label_B])
    assert (perfect["ece"], perfect["brier"], perfect["auroc_macro"]) == (0.0, 0.0, 1.0)
    wrong_B = (label_B + 1) % 3
    wrong = measure_one(label_B, wrong_B, _ABC, np.eye(3)[wrong_B])
    assert (wrong["ece"], wrong["brier"]) == (1.0, 2.0)
    assert wrong["top3_accuracy"] == 1.0


def test_top5_counts_the_label_among_the_five_best() -> None:
    names = ClassNames(tuple("abcdefg"))
    probs_BK = np.array([[0.3, 0.2, 0.15, 0.13, 0.12, 0.06, 0.04]] * 2)
    metrics = measure_one(np.array([4, 5]), np.array([0, 0]), names, probs_BK)
    assert metrics["top5_accuracy"] == 0.5


def test_calibration_error_weighs_bins_by_images() -> None:
    bins = reliability_bins(np.array([0.95, 0.95, 0.55, 1.0]), np.array([True, False, True, True]))
    assert [b["count"] for b in bins] == [1, 3]
    error = expected_calibration_error(bins)
    assert error == pytest.approx((1 * 0.45 + 3 * abs(2 / 3 - 2.9 / 3)) / 4)


def _sample(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets of three classes, and probabilities that know something of them, with ties."""
    rng = np.random.default_rng(seed)
    target_BK = rng.random((num_images, 3)) < [0.5, 0.2, 0.1]
    probs_BK = np.clip(0.3 * target_BK + rng.random((num_images, 3)) * 0.7, 0, 1)
    return target_BK, np.round(probs_BK, 2).astype(np.float32)


def test_several_labels_by_hand() -> None:
    target_BK = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    probs_BK = np.array([[0.9, 0.1, 0.4], [0.2, 0.1, 0.1], [0.5, 0.8, 0.6], [0.7, 0.9, 0.2]])
    metrics = _several(target_BK, probs_BK)
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
    metrics = _several(target_BK, probs_BK, num_resamples=10)
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
        metrics = _several(target_BK, probs_BK, num_resamples=50)
        nothing = _several(np.zeros((3, 3)), np.zeros((3, 3)), num_resamples=20)
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
    alone = _several(target_BK, probs_BK)
    for name, bounds in alone["intervals"].items():
        if isinstance(bounds, list):
            assert bounds[0] <= alone[name] <= bounds[1], name
    for name, of_class in alone["intervals"]["per_class"].items():
        low, high = of_class["recall"]
        assert low <= alone["per_class"][name]["recall"] <= high
    # Ten images of each patient tell no more than one.
    again_BK, again_probs_BK = np.repeat(target_BK, 10, axis=0), np.repeat(probs_BK, 10, axis=0)
    patients = [str(i // 10) for i in range(400)]
    grouped = _several(again_BK, again_probs_BK, patients)["intervals"]
    images = _several(again_BK, again_probs_BK)["intervals"]
    for name in ("accuracy", "auroc_macro", "macro_f1"):
        width, narrow = (high - low for low, high in (grouped[name], images[name]))
        assert width > 2 * narrow
    assert grouped["num_units"] == 40


def test_intervals_are_those_of_the_drawn_images() -> None:
    """One resample, drawn by hand: the fast weighted forms equal scikit-learn on the drawn rows."""
    target_BK, probs_BK = _sample(60)
    again = np.random.default_rng(4).integers(0, 60, 60)
    expected = _several(target_BK[again], probs_BK[again], num_resamples=1)
    data = Labelled(target_BK.astype(bool), probs_BK >= 0.5, _ABC, True, probs_BK)
    measures = [*cheap_measures(data), RankingMeasure(target_BK, probs_BK)]
    drawn = draw(measures, number_units(60, None), num_resamples=1, seed=4)
    names = ("accuracy", "hamming_loss", "macro_f1", "micro_precision", "brier", "auroc_macro")
    for name in (*names, "average_precision_macro"):
        assert drawn[name][0] == pytest.approx(expected[name]), name


def test_classes_predicted_by_other_thresholds_are_measured_as_given() -> None:
    target_BK, probs_BK = _sample(30)
    metrics = _several(target_BK, None, predicted_BK=target_BK, num_resamples=5)
    assert (metrics["accuracy"], metrics["hamming_loss"]) == (1.0, 0.0)
    assert "auroc" not in metrics
    mixed = _several(target_BK, probs_BK, predicted_BK=target_BK, num_resamples=5)
    assert (mixed["accuracy"], mixed["auroc_macro"]) == (1.0, macro_auroc(target_BK, probs_BK))


def test_slices_of_several_labels_are_measured_apart() -> None:
    target_BK = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    predicted_BK = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    data = Labelled(target_BK.astype(bool), predicted_BK.astype(bool), _ABC, True)
    table = measure_slices(["x", "x", "y", "y"], data)
    assert (table["x"]["accuracy"], table["y"]["accuracy"]) == (1.0, 0.0)
    assert table["y"]["hamming_loss"] == pytest.approx(4 / 6)


def test_one_label_is_the_case_of_sets_of_one() -> None:
    """The same images, measured as one label each and as sets: what both have is the same."""
    rng = np.random.default_rng(3)
    label_B, pred_B = rng.integers(0, 3, 120), rng.integers(0, 3, 120)
    one = measure_one(label_B, pred_B, _ABC)
    several = _several(one_hot(label_B, 3), None, predicted_BK=one_hot(pred_B, 3))
    assert one["per_class"] == several["per_class"]
    assert one["intervals"]["per_class"] == several["intervals"]["per_class"]
    for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
        assert (one[name], one["intervals"][name]) == (several[name], several["intervals"][name])
    # Of sets of one, a wrong image has two wrong classes.
    assert several["hamming_loss"] == pytest.approx(2 * (1 - one["accuracy"]) / 3)
    assert several["micro_recall"] == pytest.approx(one["accuracy"])


def test_probability_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label_B = rng.integers(0, 3, 200)
    probs_BK = rng.dirichlet(np.ones(3), 200).astype(np.float32)
    metrics = measure_one(label_B, probs_BK.argmax(axis=1), _ABC, probs_BK, num_resamples=2)
    target_BK = np.eye(3)[label_B]
    assert metrics["auroc_macro"] == pytest.approx(roc_auc_score(target_BK, probs_BK))
    assert metrics["average_precision_macro"] == pytest.approx(
        average_precision_score(target_BK, probs_BK)
    )
    assert metrics["log_loss"] == pytest.approx(log_loss(label_B, probs_BK), rel=1e-6)
    table = precision_recall_fscore_support(label_B, probs_BK.argmax(axis=1))
    for k, name in enumerate(_ABC.names):
        of_class = metrics["per_class"][name]
        found = [of_class[each] for each in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([column[k] for column in table])


def test_the_words_below_a_table_follow_from_the_table_of_headlines() -> None:
    assert about_best() == (
        "1 is best, but for log_loss, ece (expected calibration error) and brier, of which 0 is "
        "best."
    )
