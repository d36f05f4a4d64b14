"""What a model answers about an image: its labels, and the probability that decides.

In: uncalibrated probabilities and the bundle's calibration. Out: answers, image by image.
Invariant: training measures, the golden check proves, scoring publishes and evaluation counts these
very answers.

Shape legend: B image, K class.
"""

from collections.abc import Sequence

import numpy as np

from imgcls.model.calibration import Calibration, Doubles, calibrated
from imgcls.model.metrics import Floats, Ints
from imgcls.model.multi_label_calibration import calibrated_each, reached


def answered_labels(
    label_B: Ints,
    probs_BK: Floats,
    class_names: Sequence[str],
    calibration: Calibration | None,
    *,
    multi_label: bool,
) -> list[tuple[int, ...]]:
    """Return the label on top; of a multi-label model those that reach their thresholds, rising.

    Args:
        label_B: The class on top of each row of `probs_BK`.
        probs_BK: Uncalibrated probabilities.
        class_names: The K classes.
        calibration: The bundle's, if it has one.
        multi_label: Whether an image may have any number of labels.
    """
    if not multi_label:
        return [(label,) for label in label_B.tolist()]
    reached_BK = reached(probs_BK, class_names, calibration)
    return [tuple(np.flatnonzero(row).tolist()) for row in reached_BK]


def answered_prob(
    label_B: Ints,
    probs_BK: Floats,
    class_names: Sequence[str],
    calibration: Calibration,
    *,
    multi_label: bool,
) -> Doubles:
    """Return the calibrated probability [B] of the class that the first operating point is for.

    Without a point it is that of `label_B`. Arguments are those of `answered_labels`.
    """
    if calibration.operating_points:
        positive_class = calibration.operating_points[0].positive_class
        label_B = np.full_like(label_B, class_names.index(positive_class))
    calibrate = calibrated_each if multi_label else calibrated
    after_BK = calibrate(probs_BK, calibration.temperature)
    return after_BK[np.arange(len(label_B)), label_B]
