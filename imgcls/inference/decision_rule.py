"""What a model answers about an image: its labels, the probability that decides, the decision.

In: uncalibrated probabilities. Out: answers, image by image. Invariant: training measures, the
golden check proves, scoring publishes and evaluation counts these very answers.

Shape legend: B image, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from imgcls.metrics.calibration import Calibration, calibrated
from imgcls.metrics.measures import THRESHOLD
from imgcls.metrics.operating_point import OperatingPoint, decide
from imgcls.metrics.top_classes import Doubles, Floats, Ints, top_label
from imgcls.metrics.units import UnitRule, positive_of, unit_rule
from imgcls.model.bundle import Bundle, BundleFacts


def unit_rule_of(facts: BundleFacts, asked: str) -> UnitRule:
    """Return the rule by which a model answers units of several images, see `metrics/units.py`."""
    return unit_rule(
        asked,
        facts.unit_calibration,
        facts.class_names.names,
        positive_classes=positive_of(facts.calibration),
        background_class=facts.background_class,
        multi_label=facts.multi_label,
    )


@dataclass(frozen=True)
class DecisionRule:
    """How a model's probabilities become answers; the one place that knows of one or many labels.

    Attributes:
        class_names: The K classes.
        calibration: The bundle's, None if it has none.
        multi_label: Whether an image may have any number of labels.
    """

    class_names: Sequence[str]
    calibration: Calibration | None
    multi_label: bool

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Return the rule of a bundle."""
        return cls(bundle.class_names.names, bundle.fitted(), bundle.multi_label)

    @property
    def first_point(self) -> OperatingPoint | None:
        """The operating point that a row's decision is by, None without one."""
        points = self.calibration.operating_points if self.calibration is not None else ()
        return points[0] if points else None

    def labels(self, probs_BK: Floats, label_B: Ints | None = None) -> list[tuple[int, ...]]:
        """Return the label on top; of a multi-label model those that are reached, rising.

        A class is reached at the threshold of its first operating point, on the calibrated
        probability, or else from 0.5 on, on the probability itself.

        Args:
            probs_BK: Uncalibrated probabilities.
            label_B: The class on top of each row, where that is known already.
        """
        if not self.multi_label:
            label_B = top_label(probs_BK) if label_B is None else label_B
            return [(label,) for label in label_B.tolist()]
        reached_BK = probs_BK >= THRESHOLD
        if self.calibration is not None:
            after_BK = self._calibrated(probs_BK, self.calibration)
            for point in reversed(self.calibration.operating_points):
                label = self.class_names.index(point.positive_class)
                reached_BK[:, label] = after_BK[:, label] >= point.threshold
        return [tuple(np.flatnonzero(row).tolist()) for row in reached_BK]

    def deciding_prob(self, probs_BK: Floats, label_B: Ints) -> Doubles | None:
        """Return the calibrated probability [B] of the class that the first point is for.

        Without a point it is that of `label_B`, the class on top; None without a calibration.
        """
        if self.calibration is None:
            return None
        if self.first_point is not None:
            of_point = self.class_names.index(self.first_point.positive_class)
            label_B = np.full_like(label_B, of_point)
        after_BK = self._calibrated(probs_BK, self.calibration)
        return after_BK[np.arange(len(label_B)), label_B]

    def all_answers(self, probs_BK: Floats) -> list[tuple[object, ...]]:
        """Return, per image, all that a row says as decided: labels, and by the first threshold.

        Two backends, or two decoders, that give equal answers give equal rows, but for
        probabilities.
        """
        label_B = top_label(probs_BK)
        labels = self.labels(probs_BK, label_B)
        prob_B = self.deciding_prob(probs_BK, label_B)
        if prob_B is None or self.first_point is None:
            return [(each,) for each in labels]
        return list(zip(labels, decide(prob_B, self.first_point), strict=True))

    def _calibrated(self, probs_BK: Floats, calibration: Calibration) -> Doubles:
        return calibrated(probs_BK, calibration.temperature, multi_label=self.multi_label)
