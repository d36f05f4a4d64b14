"""What a model answers about an image: its labels, the probability that decides, the decision.

In: uncalibrated probabilities and the bundle's calibration. Out: answers, image by image.
Invariant: training measures, the golden check proves, scoring publishes and evaluation counts these
very answers.

Shape legend: B image, K class.
"""

from collections.abc import Sequence

import numpy as np

from imgcls.metrics.calibration import Calibration, Doubles, calibrated, decide
from imgcls.metrics.multi_label_calibration import calibrated_each, reached
from imgcls.metrics.single_label import Floats, Ints
from imgcls.metrics.top_classes import top_label
from imgcls.model.bundle import Bundle


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


def all_answers(probs_BK: Floats, bundle: Bundle) -> list[tuple[object, ...]]:
    """Return, per image, all that a row tells as decided: labels, and by the first threshold.

    Two engines, or two decoders, that give equal answers give equal rows, but for probabilities.
    """
    calibration = bundle.fitted()
    read = (top_label(probs_BK), probs_BK, bundle.class_names.names)
    labels = answered_labels(*read, calibration, multi_label=bundle.multi_label)
    if calibration is None or not calibration.operating_points:
        return [(label,) for label in labels]
    after_B = answered_prob(*read, calibration, multi_label=bundle.multi_label)
    return list(zip(labels, decide(after_B, calibration.operating_points[0]), strict=True))
