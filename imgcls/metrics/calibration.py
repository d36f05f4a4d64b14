"""Probabilities that mean what they say, and thresholds that keep what they promise.

In: probabilities and labels of the validation split. Out: a `Calibration`, which lives in the
bundle. Invariant: the test split has no part in it; scoring applies it by `calibrated` and
`decide`, the functions that it was fitted with.

Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks". It divides the
logits by one number, so it never changes which class is on top.

Shape legend: B image, K class.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.errors import BundleError, ConfigError
from imgcls.metrics.bootstrap import draw_weights, interval, middle, number_units
from imgcls.metrics.single_label import (
    Floats,
    Ints,
    expected_calibration_error,
    reliability_bins,
)
from imgcls.metrics.top_classes import top_label

Target = Literal["recall", "specificity"]

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_NUM_BISECTIONS = 60  # halves the range far below what a float can tell apart
# Where float32 softmax underflows to 0; its logarithm must stay finite.
_MIN_PROB = 1e-38
_NUM_RESAMPLES = 1000
_MAX_RESAMPLING_WORK = 2 * 10**9  # resamples x images: some 20 s on one core

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the calibrated probability of one class, and what it achieves on validation.

    From `review_high` on the decision is positive, below `review_low` negative, between them
    review: the band is the 95 % interval of the threshold, within which another validation sample
    would have decided otherwise.
    """

    threshold_id: str
    positive_class: str
    target: Target
    target_value: float
    threshold: float
    review_low: float
    review_high: float
    review_fraction: float  # share of the validation images in the band
    recall: float
    recall_interval: list[float] | None
    specificity: float
    specificity_interval: list[float] | None
    num_positive: int
    num_negative: int


@dataclass(frozen=True)
class Calibration:
    """What a bundle knows beyond its weights; numbers before and after are of validation."""

    temperature: float
    note: str
    num_images: int
    log_loss_before: float
    log_loss_after: float
    ece_before: float
    ece_after: float
    operating_points: tuple[OperatingPoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {**asdict(self), "operating_points": [asdict(p) for p in self.operating_points]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the calibration from `to_dict`'s values.

        Raises:
            BundleError: unknown, missing or impossible values, by name.
        """
        _check_keys(cls, values)
        if not isinstance(values["operating_points"], list):
            raise BundleError("calibration: operating_points is not a list")
        for point in values["operating_points"]:
            _check_keys(OperatingPoint, point)
            if point["target"] not in get_args(Target):
                raise BundleError(f"operating point: unknown target {point['target']!r}")
        temperature = values["temperature"]
        if not (isinstance(temperature, float | int) and temperature > 0):
            raise BundleError(f"calibration: temperature {temperature!r} is not a positive number")
        points = tuple(OperatingPoint(**point) for point in values["operating_points"])
        return cls(**{**values, "operating_points": points})


def calibrated(probs_BK: Floats, temperature: float) -> Doubles:
    """Return softmax(logits / temperature) float64 [B,K], from the probabilities themselves.

    The logarithm of a softmax is the logits up to a constant per row, which softmax cancels.
    """
    scaled_BK = _logits(probs_BK) / temperature
    scaled_BK -= scaled_BK.max(axis=1, keepdims=True)
    exp_BK = np.exp(scaled_BK)
    return cast(Doubles, exp_BK / exp_BK.sum(axis=1, keepdims=True))


def decide(prob_B: Floats, point: OperatingPoint) -> list[str]:
    """Return "positive", "negative" or "review" per calibrated probability of the class."""
    choices = ["positive", "negative"]
    conditions = [prob_B >= point.review_high, prob_B < point.review_low]
    return [str(d) for d in np.select(conditions, choices, default="review")]


def fit_calibration(
    probs_BK: Floats,
    label_B: Ints,
    class_names: ClassNames,
    *,
    unit_B: Sequence[str] | None = None,
    targets: Sequence[tuple[str, Target, float]] = (),
    seed: int = 0,
) -> Calibration:
    """Fit a temperature and the operating points on validation.

    Args:
        probs_BK: Uncalibrated probabilities of the validation images.
        label_B: Their labels.
        class_names: The K classes.
        unit_B: Their groups, for the intervals; by default each image is its own.
        targets: (positive class, "recall" or "specificity", value in (0, 1]) per operating point.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: an unknown class, a value out of range, or a class without images.
    """
    temperature, note = fit_temperature(probs_BK, label_B)
    after_BK = calibrated(probs_BK, temperature)
    points = []
    for name, target, value in targets:
        label = class_names.label_of(name)
        score_B, positive_B = after_BK[:, label], label_B == label
        points.append(operating_point(score_B, positive_B, name, target, value, unit_B, seed))
    before_BK = calibrated(probs_BK, 1.0)
    return Calibration(
        temperature=temperature,
        note=note,
        num_images=len(label_B),
        log_loss_before=_log_loss(before_BK, label_B),
        log_loss_after=_log_loss(after_BK, label_B),
        ece_before=_ece(before_BK, label_B),
        ece_after=_ece(after_BK, label_B),
        operating_points=tuple(points),
    )


def measure_calibration(
    calibration: Calibration,
    probs_BK: Floats,
    label_B: Ints,
    class_names: ClassNames,
    unit_B: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what a calibration achieves on images it was not fitted on.

    Args:
        calibration: Of the bundle.
        probs_BK: Uncalibrated probabilities.
        label_B: True labels.
        class_names: The K classes.
        unit_B: Groups of the images, for the intervals; by default each image is its own.

    Returns:
        log_loss, ece, their `reliability` bins, and for each threshold_id the numbers of
        `measure_point`.
    """
    after_BK = calibrated(probs_BK, calibration.temperature)
    points = {}
    for point in calibration.operating_points:
        label = class_names.label_of(point.positive_class)
        score_B, positive_B = after_BK[:, label], label_B == label
        points[point.threshold_id] = measure_point(point, score_B, positive_B, unit_B)
    bins = _bins(after_BK, label_B)
    return {
        "log_loss": _log_loss(after_BK, label_B),
        "ece": expected_calibration_error(bins),
        "reliability": bins,
        "operating_points": points,
    }


def measure_point(
    point: OperatingPoint,
    score_B: Floats,
    positive_B: npt.NDArray[np.bool_],
    unit_B: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return recall and specificity at the threshold, their 95 % intervals, and review_fraction.

    Null stands where there are no images to tell, and for intervals of more images than a bootstrap
    could go through in half a minute.

    Args:
        point: Of the bundle.
        score_B: Calibrated probability of its class, at least one.
        positive_B: Which images are of this class.
        unit_B: Groups of the images; by default each image is its own.
    """
    recall, specificity = _achieved(score_B, positive_B, point.threshold)
    in_band = np.array(decide(score_B, point)) == "review"
    called_B = score_B >= point.threshold
    intervals: list[list[float] | None] = [None, None]
    if _NUM_RESAMPLES * len(score_B) <= _MAX_RESAMPLING_WORK:
        cells_B4 = np.stack(
            [called_B & positive_B, positive_B, ~called_B & ~positive_B, ~positive_B], axis=1
        ).astype(np.float64)
        units = number_units(len(score_B), unit_B)
        drawn_R4 = np.array([w @ cells_B4 for w in draw_weights(units, _NUM_RESAMPLES, 0)])
        with np.errstate(invalid="ignore"):
            num_units = int(units.max()) + 1
            intervals = [interval(drawn_R4[:, i] / drawn_R4[:, i + 1], num_units) for i in (0, 2)]
    return {
        "recall": recall if positive_B.any() else None,
        "recall_interval": intervals[0],
        "specificity": specificity if not positive_B.all() else None,
        "specificity_interval": intervals[1],
        "review_fraction": float(in_band.mean()),
    }


def fit_temperature(probs_BK: Floats, label_B: Ints) -> tuple[float, str]:
    """Return the temperature with the least log loss, and a note on how it was found.

    The log loss is convex in 1 / temperature, its slope there is the mean of (expected logit - own
    logit): bisection finds its zero. Without a single mistake the least loss is at temperature 0,
    which would claim certainty; the probabilities are left alone then.
    """
    if (top_label(probs_BK) == label_B).all():
        return 1.0, "validation holds no mistake to calibrate on: probabilities are left alone"
    logits_BK = _logits(probs_BK)
    own_B = logits_BK[np.arange(len(label_B)), label_B]
    low, high = 1 / _MAX_TEMPERATURE, 1 / _MIN_TEMPERATURE
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        expected_B = (calibrated(probs_BK, 1 / middle) * logits_BK).sum(axis=1)
        if (expected_B - own_B).mean() < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high), "least log loss on validation"


def threshold_for(
    score_B: Floats, positive_B: npt.NDArray[np.bool_], target: Target, value: float
) -> float:
    """Return a threshold that reaches a target, with as much of the other quantity as it leaves.

    An image is positive from the threshold on. The threshold lies halfway between two neighbouring
    scores, so that rounding on another machine moves no image across it.

    Args:
        score_B: Probability of the positive class.
        positive_B: Which images are positive; at least one is, and one is not.
        target: "recall": the highest threshold with at least this recall. "specificity": the lowest
            with at least this specificity.
        value: In (0, 1].
    """
    distinct = np.unique(score_B)
    if target == "recall":
        falling = np.sort(score_B[positive_B])[::-1]
        last = falling[_num_needed(value, len(falling)) - 1]
        below = distinct[distinct < last]
        return float((last + (below[-1] if len(below) else 0.0)) / 2)
    rising = np.sort(score_B[~positive_B])
    last = rising[_num_needed(value, len(rising)) - 1]
    above = distinct[distinct > last]
    return float((last + (above[0] if len(above) else 1.0)) / 2) if last < 1 else 1.0 + 1e-9


def _num_needed(value: float, count: int) -> int:
    # 0.95 of 20 is 19, although 0.95 * 20 is a little more than 19 as a float.
    return max(1, int(np.ceil(value * count - 1e-9)))


def operating_point(
    score_B: Floats,
    positive_B: npt.NDArray[np.bool_],
    name: str,
    target: Target,
    value: float,
    unit_B: Sequence[str] | None,
    seed: int,
) -> OperatingPoint:
    """Fit the threshold of one class.

    Args:
        score_B: Its calibrated probability.
        positive_B: Which images show it.
        name: The class.
        target: What to reach, see `threshold_for`.
        value: How much of it, in (0, 1].
        unit_B: Groups of the images, for the intervals; by default each image is its own.
        seed: Of the bootstrap.

    Raises:
        ConfigError: the value is out of range, or there are images of one kind only.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"target {target} of {name!r} is {value}: it must be above 0, at most 1")
    if positive_B.all() or not positive_B.any():
        raise ConfigError(
            f"no operating point for {name!r}: validation needs images of it and of another class"
        )
    threshold = threshold_for(score_B, positive_B, target, value)
    drawn = {"threshold": list[float](), "recall": list[float](), "specificity": list[float]()}
    units = number_units(len(score_B), unit_B)
    num_units = int(units.max()) + 1
    for weight_B in draw_weights(units, _NUM_RESAMPLES, seed):
        again = np.repeat(np.arange(len(score_B)), weight_B.astype(np.int64))
        score, positive = score_B[again], positive_B[again]
        if positive.all() or not positive.any():
            continue
        drawn["threshold"].append(threshold_for(score, positive, target, value))
        recall, specificity = _achieved(score, positive, threshold)
        drawn["recall"].append(recall)
        drawn["specificity"].append(specificity)
    recall, specificity = _achieved(score_B, positive_B, threshold)
    low, high = middle(drawn["threshold"]) or [threshold, threshold]
    low, high = min(low, threshold), max(high, threshold)
    return OperatingPoint(
        threshold_id=f"{name}:{target}>={value:g}",
        positive_class=name,
        target=target,
        target_value=value,
        threshold=threshold,
        review_low=low,
        review_high=high,
        review_fraction=float(((score_B >= low) & (score_B < high)).mean()),
        recall=recall,
        recall_interval=interval(drawn["recall"], num_units) if drawn["recall"] else None,
        specificity=specificity,
        specificity_interval=interval(drawn["specificity"], num_units)
        if drawn["specificity"]
        else None,
        num_positive=int(positive_B.sum()),
        num_negative=int((~positive_B).sum()),
    )


def _achieved(
    score_B: Floats, positive_B: npt.NDArray[np.bool_], threshold: float
) -> tuple[float, float]:
    """Return recall and specificity; NaN without images to tell."""
    called_B = score_B >= threshold
    num_positive = int(positive_B.sum())
    num_negative = len(positive_B) - num_positive
    recall = (called_B & positive_B).sum() / num_positive if num_positive else np.nan
    specificity = (~called_B & ~positive_B).sum() / num_negative if num_negative else np.nan
    return float(recall), float(specificity)


def _logits(probs_BK: Floats) -> Doubles:
    return np.log(np.maximum(probs_BK.astype(np.float64), _MIN_PROB))


def _log_loss(probs_BK: Doubles, label_B: Ints) -> float:
    return float(-_logits(probs_BK)[np.arange(len(label_B)), label_B].mean())


def _ece(probs_BK: Doubles, label_B: Ints) -> float:
    return expected_calibration_error(_bins(probs_BK, label_B))


def _bins(probs_BK: Doubles, label_B: Ints) -> list[dict[str, Any]]:
    return reliability_bins(probs_BK.max(axis=1), top_label(probs_BK) == label_B)


def _check_keys(kind: type[Calibration] | type[OperatingPoint], values: object) -> None:
    names = {field.name for field in fields(kind)}
    given = set(values) if isinstance(values, dict) else set()
    if given != names:
        raise BundleError(
            f"{kind.__name__}: unknown or missing values {sorted(given ^ names)} in the bundle"
        )
