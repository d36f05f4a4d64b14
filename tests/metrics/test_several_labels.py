import numpy as np
import pytest

from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError
from imgcls.inference.decision_rule import DecisionRule
from imgcls.metrics.calibration import (
    Calibration,
    calibrated,
    fit_calibration,
    measure_calibration,
)
from imgcls.metrics.measures import sets_of
from imgcls.metrics.operating_point import decide

_AB = ClassNames(("a", "b"))


def _sigmoid(logits_BK: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits_BK))


def _sample(num_images: int, overconfidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Targets drawn from true probabilities, and probabilities that are too sure of themselves."""
    rng = np.random.default_rng(1)
    logits_BK = rng.normal(size=(num_images, 2)) * 2
    target_BK = rng.random((num_images, 2)) < _sigmoid(logits_BK)
    return _sigmoid(logits_BK * overconfidence).astype(np.float32), target_BK


def _reached(probs_BK: np.ndarray, calibration: Calibration | None) -> np.ndarray:
    rule = DecisionRule(_AB.names, calibration, multi_label=True)
    return sets_of(rule.labels(probs_BK), 2)


def test_temperature_divides_the_logits_of_each_class() -> None:
    logits_BK = np.array([[3.0, -2.0], [0.0, 8.0]])
    found_BK = calibrated(_sigmoid(logits_BK), 2.5, multi_label=True)
    np.testing.assert_allclose(found_BK, _sigmoid(logits_BK / 2.5), atol=1e-9)
    extreme_BK = calibrated(np.array([[0.0, 1.0]], np.float32), 3.0, multi_label=True)
    assert np.isfinite(extreme_BK).all()


def test_fit_finds_the_overconfidence_and_helps_other_images() -> None:
    probs_BK, target_BK = _sample(6000, 3.0)
    fitted = fit_calibration(probs_BK[:3000], target_BK[:3000], _AB, multi_label=True)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    assert fitted.log_loss_after < fitted.log_loss_before
    assert fitted.ece_after < 0.3 * fitted.ece_before
    assert fitted.num_images == 3000
    other = measure_calibration(fitted, probs_BK[3000:], target_BK[3000:], _AB, multi_label=True)
    assert other["log_loss"] == pytest.approx(fitted.log_loss_after, rel=0.1)
    assert other["ece"] < 0.03


def test_a_threshold_reaches_its_target_for_its_own_class() -> None:
    probs_BK, target_BK = _sample(800, 2.0)
    fitted = fit_calibration(
        probs_BK,
        target_BK,
        _AB,
        multi_label=True,
        targets=[("b", "recall", 0.95), ("a", "specificity", 0.9)],
    )
    assert Calibration.from_dict(fitted.to_dict()) == fitted
    of_b, of_a = fitted.operating_points
    after_BK = calibrated(probs_BK, fitted.temperature, multi_label=True)
    assert (after_BK[target_BK[:, 1], 1] >= of_b.threshold).mean() == of_b.recall >= 0.95
    assert (after_BK[~target_BK[:, 0], 0] < of_a.threshold).mean() == of_a.specificity >= 0.9
    measured = measure_calibration(fitted, probs_BK, target_BK, _AB, multi_label=True)
    assert measured["operating_points"]["b:recall>=0.95"]["recall"] == of_b.recall
    in_band = np.array(decide(after_BK[:, 1], of_b)) == "review"
    assert of_b.review_fraction == pytest.approx(in_band.mean())


def test_a_class_with_a_threshold_is_reached_at_it_and_others_at_one_half() -> None:
    probs_BK, target_BK = _sample(400, 2.0)
    fitted = fit_calibration(
        probs_BK,
        target_BK,
        _AB,
        multi_label=True,
        targets=[("b", "recall", 0.95), ("b", "recall", 0.5)],
    )
    after_BK = calibrated(probs_BK, fitted.temperature, multi_label=True)
    reached_BK = _reached(probs_BK, fitted)
    np.testing.assert_array_equal(reached_BK[:, 0], probs_BK[:, 0] >= 0.5)
    threshold = fitted.operating_points[0].threshold
    np.testing.assert_array_equal(reached_BK[:, 1], after_BK[:, 1] >= threshold)
    np.testing.assert_array_equal(_reached(probs_BK, None), probs_BK >= 0.5)


def test_a_class_of_one_kind_only_has_no_threshold() -> None:
    probs_BK, target_BK = _sample(50, 1.0)
    target_BK[:, 1] = False
    with pytest.raises(ConfigError, match="no operating point for 'b'"):
        fit_calibration(probs_BK, target_BK, _AB, multi_label=True, targets=[("b", "recall", 0.9)])
    with pytest.raises(ConfigError, match="unknown class 'x'"):
        fit_calibration(probs_BK, target_BK, _AB, multi_label=True, targets=[("x", "recall", 0.9)])
