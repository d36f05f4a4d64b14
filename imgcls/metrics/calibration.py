"""Probabilities that mean what they say.

In: probabilities and labels of the validation split. Out: a `Calibration`, which lives in the
bundle, with its operating points. Invariant: the test split has no part in it; scoring applies it
by `calibrated` and `decide`, the functions that it was fitted with.

Temperature scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks". It divides the
logits by one number, so it never changes which class is on top. Where an image may have any number
of labels, every (image, class) pair is a choice of two, yes or no: one temperature for all pairs.

Shape legend: B image, K class, C choice: an image, or an (image, class) pair.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self, cast, get_args

import numpy as np

from imgcls.data.class_names import ClassNames
from imgcls.errors import BundleError
from imgcls.metrics.operating_point import OperatingPoint, Target, measure_point, operating_point
from imgcls.metrics.quality import expected_calibration_error, reliability_bins
from imgcls.metrics.top_classes import Bools, Doubles, Floats, Ints, top_label

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
_NUM_BISECTIONS: Final = 60  # halves the range far below what a float can tell apart
# Where float32 softmax underflows to 0; its logarithm must stay finite.
_MIN_PROB: Final = 1e-38


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


def calibrated(probs_BK: Floats, temperature: float, *, multi_label: bool) -> Doubles:
    """Return softmax or sigmoid of (logits / temperature) float64 [B,K], from the probabilities.

    The logarithm of a softmax is the logits up to a constant per row, which softmax cancels.
    """
    if multi_label:
        return _scaled(_pairs(probs_BK), temperature)[:, 1].reshape(probs_BK.shape)
    return _scaled(probs_BK, temperature)


def fit_calibration(
    probs_BK: Floats,
    target_BK: Bools,
    class_names: ClassNames,
    *,
    multi_label: bool = False,
    unit_B: Sequence[str] | None = None,
    targets: Sequence[tuple[str, Target, float]] = (),
    seed: int = 0,
) -> Calibration:
    """Fit a temperature and the operating points on validation.

    Args:
        probs_BK: Uncalibrated probabilities of the validation images.
        target_BK: The classes that each of them shows.
        class_names: The K classes.
        multi_label: Whether an image may have any number of labels.
        unit_B: Their groups, for the intervals; by default each image is its own.
        targets: (positive class, "recall" or "specificity", value in (0, 1]) per operating point.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: an unknown class, a value out of range, or a class without images.
    """
    probs_CK, label_C = _choices(probs_BK, target_BK, multi_label=multi_label)
    temperature, note = fit_temperature(probs_CK, label_C)
    after_BK = calibrated(probs_BK, temperature, multi_label=multi_label)
    points = []
    for name, target, value in targets:
        label = class_names.label_of(name)
        score_B, positive_B = after_BK[:, label], target_BK[:, label]
        points.append(operating_point(score_B, positive_B, name, target, value, unit_B, seed))
    before_CK, after_CK = _scaled(probs_CK, 1.0), _scaled(probs_CK, temperature)
    return Calibration(
        temperature=temperature,
        note=note,
        num_images=len(target_BK),
        log_loss_before=_log_loss(before_CK, label_C),
        log_loss_after=_log_loss(after_CK, label_C),
        ece_before=expected_calibration_error(_bins(before_CK, label_C)),
        ece_after=expected_calibration_error(_bins(after_CK, label_C)),
        operating_points=tuple(points),
    )


def measure_calibration(
    calibration: Calibration,
    probs_BK: Floats,
    target_BK: Bools,
    class_names: ClassNames,
    unit_B: Sequence[str] | None = None,
    *,
    multi_label: bool = False,
    slice_B: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a calibration achieves on images it was not fitted on.

    Args:
        calibration: Of the bundle.
        probs_BK: Uncalibrated probabilities.
        target_BK: The classes that each image shows.
        class_names: The K classes.
        unit_B: Groups of the images, for the intervals; by default each image is its own.
        multi_label: Whether an image may have any number of labels.
        slice_B: The slice of each image, to measure the points in each as well.

    Returns:
        log_loss, ece, their `reliability` bins, and for each threshold_id the numbers of
        `measure_point`, with those of each slice under `slices`.
    """
    after_BK = calibrated(probs_BK, calibration.temperature, multi_label=multi_label)
    points = {}
    for point in calibration.operating_points:
        label = class_names.label_of(point.positive_class)
        score_B, positive_B = after_BK[:, label], target_BK[:, label]
        numbers = measure_point(point, score_B, positive_B, unit_B)
        if any(slice_B):
            numbers["slices"] = _measure_slices(point, score_B, positive_B, unit_B, slice_B)
        points[point.threshold_id] = numbers
    probs_CK, label_C = _choices(probs_BK, target_BK, multi_label=multi_label)
    after_CK = _scaled(probs_CK, calibration.temperature)
    bins = _bins(after_CK, label_C)
    return {
        "log_loss": _log_loss(after_CK, label_C),
        "ece": expected_calibration_error(bins),
        "reliability": bins,
        "operating_points": points,
    }


def fit_temperature(probs_CK: Floats, label_C: Ints) -> tuple[float, str]:
    """Return the temperature with the least log loss, and a note on how it was found.

    The log loss is convex in 1 / temperature, its slope there is the mean of (expected logit - own
    logit): bisection finds its zero. Without a single mistake the least loss is at temperature 0,
    which would claim certainty; the probabilities are left alone then.
    """
    if (top_label(probs_CK) == label_C).all():
        return 1.0, "validation holds no mistake to calibrate on: probabilities are left alone"
    logits_CK = _logits(probs_CK)
    own_C = logits_CK[np.arange(len(label_C)), label_C]
    low, high = 1 / _MAX_TEMPERATURE, 1 / _MIN_TEMPERATURE
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        expected_C = (_scaled(probs_CK, 1 / middle) * logits_CK).sum(axis=1)
        if (expected_C - own_C).mean() < 0:
            low = middle
        else:
            high = middle
    return 2 / (low + high), "least log loss on validation"


def _measure_slices(
    point: OperatingPoint,
    score_B: Doubles,
    positive_B: Bools,
    unit_B: Sequence[str] | None,
    slice_B: Sequence[str],
) -> dict[str, dict[str, Any]]:
    slices = np.asarray(slice_B)
    units = np.arange(len(slices)).astype(str) if unit_B is None else np.asarray(unit_B)
    return {
        str(name): measure_point(
            point, score_B[slices == name], positive_B[slices == name], units[slices == name]
        )
        for name in np.unique(slices)
    }


def _choices(probs_BK: Floats, target_BK: Bools, *, multi_label: bool) -> tuple[Floats, Ints]:
    """Return what is decided, one choice a row, and which is right."""
    if multi_label:
        return _pairs(probs_BK), target_BK.reshape(-1).astype(np.int64)
    return probs_BK, target_BK.argmax(axis=1)


def _pairs(probs_BK: Floats) -> Doubles:
    """Return float64 [C,2]: no and yes of every image and class, one image after the other."""
    yes_C = probs_BK.astype(np.float64).reshape(-1)
    return np.stack([1.0 - yes_C, yes_C], axis=1)


def _scaled(probs_CK: Floats, temperature: float) -> Doubles:
    scaled_CK = _logits(probs_CK) / temperature
    scaled_CK -= scaled_CK.max(axis=1, keepdims=True)
    exp_CK = np.exp(scaled_CK)
    return cast(Doubles, exp_CK / exp_CK.sum(axis=1, keepdims=True))


def _logits(probs_CK: Floats) -> Doubles:
    return np.log(np.maximum(probs_CK.astype(np.float64), _MIN_PROB))


def _log_loss(probs_CK: Doubles, label_C: Ints) -> float:
    # Not the negative of it: nobody wants to read -0.000.
    return float(0.0 - _logits(probs_CK)[np.arange(len(label_C)), label_C].mean())


def _bins(probs_CK: Doubles, label_C: Ints) -> list[dict[str, Any]]:
    return reliability_bins(probs_CK.max(axis=1), top_label(probs_CK) == label_C)


def _check_keys(kind: type[Calibration] | type[OperatingPoint], values: object) -> None:
    names = {field.name for field in fields(kind)}
    given = set(values) if isinstance(values, dict) else set()
    if given != names:
        raise BundleError(
            f"{kind.__name__}: unknown or missing values {sorted(given ^ names)} in the bundle"
        )
