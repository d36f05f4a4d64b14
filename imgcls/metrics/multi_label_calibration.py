"""Calibration of models with any number of classes per image.

In: probabilities and targets of the validation split. Out: the same `Calibration` as for one class
per image. Invariant: every (image, class) pair is a choice of two, yes or no, so that the code for
one class per image does the work: one temperature for all pairs, one threshold per named class.

Shape legend: B image, K class, P (image, class) pair.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.metrics.calibration import (
    Calibration,
    Doubles,
    Target,
    calibrated,
    fit_calibration,
    measure_calibration,
    measure_point,
    operating_point,
)
from imgcls.metrics.multi_label import THRESHOLD
from imgcls.metrics.single_label import Floats

_ANSWERS = ClassNames(("no", "yes"))

Bools = npt.NDArray[np.bool_]


def calibrated_each(probs_BK: Floats, temperature: float) -> Doubles:
    """Return sigmoid(logits / temperature) float64 [B,K], from the probabilities themselves."""
    return calibrated(_pairs(probs_BK), temperature)[:, 1].reshape(probs_BK.shape)


def reached(probs_BK: Floats, class_names: Sequence[str], calibration: Calibration | None) -> Bools:
    """Return which classes an image is said to show: those whose probability is high enough.

    That is the threshold of the first operating point of a class, on the calibrated probability, or
    else 0.5, on the probability itself.
    """
    reached_BK = probs_BK >= THRESHOLD
    if calibration is not None:
        after_BK = calibrated_each(probs_BK, calibration.temperature)
        for point in reversed(calibration.operating_points):
            label = class_names.index(point.positive_class)
            reached_BK[:, label] = after_BK[:, label] >= point.threshold
    return reached_BK


def fit_multi_label_calibration(
    probs_BK: Floats,
    target_BK: npt.NDArray[Any],
    class_names: ClassNames,
    *,
    unit_B: Sequence[str] | None = None,
    targets: Sequence[tuple[str, Target, float]] = (),
    seed: int = 0,
) -> Calibration:
    """Fit a temperature and the operating points on validation; see `fit_calibration`.

    Args:
        probs_BK: Uncalibrated probabilities, each class by itself.
        target_BK: 1 or True for each class that an image shows.
        class_names: The K classes.
        unit_B: Groups of the images, for the intervals; by default each image is its own.
        targets: (class, "recall" or "specificity", value in (0, 1]) per operating point.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: an unknown class, a value out of range, or a class that no image shows, or all.
    """
    target_BK = np.asarray(target_BK).astype(bool)
    of_pairs = fit_calibration(_pairs(probs_BK), target_BK.reshape(-1).astype(np.int64), _ANSWERS)
    after_BK = calibrated_each(probs_BK, of_pairs.temperature)
    points = []
    for name, target, value in targets:
        label = class_names.label_of(name)
        score_B, positive_B = after_BK[:, label], target_BK[:, label]
        points.append(operating_point(score_B, positive_B, name, target, value, unit_B, seed))
    return replace(of_pairs, num_images=len(target_BK), operating_points=tuple(points))


def measure_multi_label_calibration(
    calibration: Calibration,
    probs_BK: Floats,
    target_BK: npt.NDArray[Any],
    class_names: ClassNames,
    unit_B: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what a calibration achieves on other images; see `measure_calibration`."""
    target_BK = np.asarray(target_BK).astype(bool)
    labels_P = target_BK.reshape(-1).astype(np.int64)
    without_points = replace(calibration, operating_points=())
    of_pairs = measure_calibration(without_points, _pairs(probs_BK), labels_P, _ANSWERS)
    after_BK = calibrated_each(probs_BK, calibration.temperature)
    points = {}
    for point in calibration.operating_points:
        label = class_names.label_of(point.positive_class)
        score_B, positive_B = after_BK[:, label], target_BK[:, label]
        points[point.threshold_id] = measure_point(point, score_B, positive_B, unit_B)
    return of_pairs | {"operating_points": points}


def _pairs(probs_BK: Floats) -> Doubles:
    """Return float64 [P,2]: no and yes of every image and class, one image after the other."""
    yes_P = probs_BK.astype(np.float64).reshape(-1)
    return np.stack([1.0 - yes_P, yes_P], axis=1)
