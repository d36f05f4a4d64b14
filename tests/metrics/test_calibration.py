import json
from typing import Any

import numpy as np
import pytest

from imgcls.data.class_names import ClassNames
from imgcls.errors import BundleError, ConfigError
from imgcls.metrics.calibration import (
    Calibration,
    calibrated,
    fit_calibration,
    fit_temperature,
    measure_calibration,
)
from imgcls.metrics.measures import Labelled, one_hot
from imgcls.metrics.operating_point import OperatingPoint, Target, decide, threshold_for
from imgcls.metrics.quality import measure_quality

_ABC = ClassNames(("a", "b", "c"))


def _softmax(logits_BK: np.ndarray) -> np.ndarray:
    exp_BK = np.exp(logits_BK - logits_BK.max(axis=1, keepdims=True))
    return exp_BK / exp_BK.sum(axis=1, keepdims=True)


def _sample(num_images: int, overconfidence: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that claim `overconfidence` times the logits the labels were drawn with."""
    rng = np.random.default_rng(seed)
    logits_BK = rng.normal(size=(num_images, 3)) * 2
    true_BK = _softmax(logits_BK)
    label_B = np.array([rng.choice(3, p=p) for p in true_BK])
    return _softmax(logits_BK * overconfidence).astype(np.float32), label_B


def _fit(probs_BK: np.ndarray, label_B: np.ndarray, **options: Any) -> Calibration:
    return fit_calibration(probs_BK, one_hot(label_B, 3), _ABC, **options)


def _measure(
    fitted: Calibration,
    probs_BK: np.ndarray,
    label_B: np.ndarray,
    units: list[str] | None = None,
) -> dict[str, Any]:
    return measure_calibration(fitted, probs_BK, one_hot(label_B, 3), _ABC, units)


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_temperature_undoes_overconfidence(overconfidence: float) -> None:
    probs_BK, label_B = _sample(4000, overconfidence)
    temperature, _ = fit_temperature(probs_BK, label_B)
    assert temperature == pytest.approx(overconfidence, rel=0.1)
    fitted = _fit(probs_BK, label_B)
    assert fitted.ece_after < 0.03
    assert fitted.log_loss_after <= fitted.log_loss_before + 1e-9


def test_temperature_is_the_minimum_of_the_log_loss() -> None:
    probs_BK, label_B = _sample(300, 2.0)
    temperature, _ = fit_temperature(probs_BK, label_B)

    def loss(t: float) -> float:
        after_BK = calibrated(probs_BK, t, multi_label=False)
        return float(-np.log(after_BK[np.arange(300), label_B]).mean())

    assert loss(temperature) <= min(loss(temperature * f) for f in (0.9, 0.99, 1.01, 1.1))


def test_calibrating_equals_dividing_the_logits_and_keeps_the_top_class() -> None:
    logits_BK = np.random.default_rng(0).normal(size=(50, 3)) * 3
    probs_BK = _softmax(logits_BK)
    np.testing.assert_allclose(
        calibrated(probs_BK, 2.5, multi_label=False), _softmax(logits_BK / 2.5), atol=1e-12
    )
    assert (
        calibrated(probs_BK, 2.5, multi_label=False).argmax(axis=1) == probs_BK.argmax(axis=1)
    ).all()


def test_underflown_probabilities_stay_finite() -> None:
    probs_BK = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=np.float32)
    assert np.isfinite(calibrated(probs_BK, 0.05, multi_label=False)).all()
    temperature, _ = fit_temperature(probs_BK, np.array([0, 2]))
    assert np.isfinite(temperature)


def test_perfect_validation_leaves_the_probabilities_alone() -> None:
    probs_BK, _ = _sample(50, 1.0)
    temperature, note = fit_temperature(probs_BK, probs_BK.argmax(axis=1))
    assert temperature == 1.0
    assert "no mistake" in note


_SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
_POSITIVE = np.array([True, True, False, True, True, False, False, False])


@pytest.mark.parametrize(
    ("target", "value", "threshold"),
    [
        ("recall", 1.0, 0.45),
        ("recall", 0.75, 0.55),
        ("recall", 0.5, 0.75),
        ("specificity", 1.0, 0.75),
        ("specificity", 0.75, 0.45),
        ("specificity", 0.6, 0.45),
    ],
)
def test_threshold_lies_between_the_scores_that_decide(
    target: Target, value: float, threshold: float
) -> None:
    assert threshold_for(_SCORES, _POSITIVE, target, value) == pytest.approx(threshold)


@pytest.mark.parametrize("target", ["recall", "specificity"])
@pytest.mark.parametrize("value", [0.01, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_target_is_reached_and_nothing_stricter_would_do(target: Target, value: float) -> None:
    rng = np.random.default_rng(1)
    positive_B = rng.random(400) < 0.3
    # Rounded: many equal scores, and some of exactly 0 and 1.
    score_B = np.clip(np.round(rng.normal(0.4 + 0.3 * positive_B, 0.25), 2), 0, 1)
    threshold = threshold_for(score_B, positive_B, target, value)

    def achieved(at: float) -> float:
        called_B = score_B >= at
        kept = called_B[positive_B] if target == "recall" else ~called_B[~positive_B]
        return float(kept.mean())

    assert achieved(threshold) >= value - 1e-12
    side = 1 if target == "recall" else -1
    beyond = [s for s in np.unique(score_B) if side * (s - threshold) > 0]
    if beyond:
        next_score = min(beyond) if side > 0 else max(beyond)
        assert achieved(next_score + 1e-9 if side > 0 else next_score) < value


def test_operating_point_keeps_its_target_and_survives_json() -> None:
    probs_BK, label_B = _sample(600, 2.0)
    fitted = _fit(probs_BK, label_B, targets=[("a", "recall", 0.95), ("b", "specificity", 0.9)])
    first, second = fitted.operating_points
    assert first.threshold_id == "a:recall>=0.95"
    assert first.recall >= 0.95
    assert second.specificity >= 0.9
    assert first.recall_interval is not None
    assert first.recall_interval[0] <= first.recall <= first.recall_interval[1]
    assert first.review_low <= first.threshold <= first.review_high
    assert Calibration.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_groups_widen_the_review_band() -> None:
    probs_BK, label_B = _sample(60, 1.0)
    probs_BK, label_B = np.repeat(probs_BK, 10, axis=0), np.repeat(label_B, 10)
    targets: list[tuple[str, Target, float]] = [("a", "recall", 0.8)]
    alone = _fit(probs_BK, label_B, targets=targets).operating_points[0]
    groups = [f"p{i // 10}" for i in range(600)]
    grouped = _fit(probs_BK, label_B, targets=targets, unit_B=groups)
    band = grouped.operating_points[0]
    assert band.review_high - band.review_low > alone.review_high - alone.review_low


def test_decisions_follow_the_band() -> None:
    probs_BK, label_B = _sample(200, 1.0)
    point = _fit(probs_BK, label_B, targets=[("a", "recall", 0.9)])
    band = point.operating_points[0]
    assert isinstance(band, OperatingPoint)
    middle = (band.review_low + band.review_high) / 2
    probs = np.array([band.review_high, middle, band.review_low - 1e-6])
    assert decide(probs, band) == ["positive", "review", "negative"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (("z", "recall", 0.9), "unknown class 'z'"),
        (("a", "recall", 0.0), "above 0"),
        (("a", "recall", 1.2), "at most 1"),
    ],
)
def test_impossible_target_is_refused(target: tuple[str, Target, float], message: str) -> None:
    probs_BK, label_B = _sample(50, 1.0)
    with pytest.raises(ConfigError, match=message):
        _fit(probs_BK, label_B, targets=[target])


def test_class_without_validation_images_is_refused() -> None:
    probs_BK, _ = _sample(50, 1.0)
    with pytest.raises(ConfigError, match="'c': validation needs"):
        _fit(probs_BK, np.arange(50) % 2, targets=[("c", "recall", 0.9)])


def test_damaged_calibration_is_refused_by_name() -> None:
    probs_BK, label_B = _sample(50, 1.0)
    values = _fit(probs_BK, label_B, targets=[("a", "recall", 0.9)]).to_dict()
    with pytest.raises(BundleError, match="surprise"):
        Calibration.from_dict(values | {"surprise": 1})
    with pytest.raises(BundleError, match="temperature"):
        Calibration.from_dict(values | {"temperature": 0})
    values["operating_points"][0].pop("threshold")
    with pytest.raises(BundleError, match="threshold"):
        Calibration.from_dict(values)


@pytest.mark.parametrize("overconfidence", [0.4, 3.0])
def test_calibration_helps_on_images_that_it_has_not_seen(overconfidence: float) -> None:
    fitted = _fit(*_sample(2000, overconfidence))
    probs_BK, label_B = _sample(2000, overconfidence, seed=1)
    sets = (one_hot(label_B, 3), one_hot(probs_BK.argmax(axis=1), 3))
    before = measure_quality(Labelled(*sets, _ABC, multi_label=False, probs_BK=probs_BK))
    after = _measure(fitted, probs_BK, label_B)
    assert after["ece"] < 0.5 * before["ece"]
    assert after["log_loss"] < before["log_loss"]


def test_points_on_other_images_have_intervals_over_groups() -> None:
    fitted = _fit(*_sample(600, 2.0), targets=[("a", "recall", 0.9)])
    probs_BK, label_B = _sample(60, 2.0, seed=1)
    probs_BK, label_B = np.repeat(probs_BK, 10, axis=0), np.repeat(label_B, 10)
    groups = [f"p{i // 10}" for i in range(600)]
    width = {}
    for name, units in (("alone", None), ("grouped", groups)):
        measured = _measure(fitted, probs_BK, label_B, units)
        point = measured["operating_points"]["a:recall>=0.9"]
        low, high = point["specificity_interval"]
        assert low <= point["specificity"] <= high
        width[name] = high - low
    assert width["grouped"] > 2 * width["alone"]


def test_images_of_one_kind_leave_the_other_number_open() -> None:
    fitted = _fit(*_sample(100, 1.0), targets=[("a", "recall", 0.9)])
    probs_BK, _ = _sample(10, 1.0)
    measured = _measure(fitted, probs_BK, np.ones(10, np.int64))
    point = measured["operating_points"]["a:recall>=0.9"]
    assert (point["recall"], point["recall_interval"]) == (None, None)
    assert point["specificity"] is not None
    json.dumps(measured, allow_nan=False)
