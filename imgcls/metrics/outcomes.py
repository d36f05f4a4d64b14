"""Labelled images and what became of them, counted once and for all.

In: labels and predictions, image by image, and failures. Out: a JSON-able dict of metrics and
counts. Invariant: every row is counted: in `accuracy` when it has a prediction, in `accuracy_all`
(as wrong) when it has none.

One label per image is the case of tuples of one. Shape legend: B row with a prediction, K class.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError
from imgcls.metrics.bootstrap import metrics_with_intervals, slice_metrics
from imgcls.metrics.calibration import Calibration, measure_calibration
from imgcls.metrics.multi_label import multi_label_metrics, multi_label_slices
from imgcls.metrics.multi_label_calibration import measure_multi_label_calibration
from imgcls.metrics.single_label import Floats
from imgcls.schema import Status

_NUM_NAMED = 10  # images that a result names one by one


@dataclass
class Tally:
    """Rows by what became of them; the one place that knows how they are counted."""

    multi_label: bool = False
    labels: list[tuple[int, ...]] = field(default_factory=list)  # rising, as in `predicted`
    predicted: list[tuple[int, ...]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # the group, or else the image
    slices: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    not_ok: list[dict[str, str]] = field(default_factory=list)

    def add_ok(
        self, labels: tuple[int, ...], predicted: tuple[int, ...], unit: str, slice_name: str
    ) -> None:
        """Count a row with a prediction."""
        self.labels.append(labels)
        self.predicted.append(predicted)
        self.units.append(unit)
        self.slices.append(slice_name)
        self.statuses[Status.OK] += 1

    def add_failure(self, uri: str, status: str, error: str) -> None:
        """Count a row without one; the first few are named in the result."""
        self.statuses[status] += 1
        if len(self.not_ok) < _NUM_NAMED:
            self.not_ok.append({"uri": uri, "status": status, "error": error})

    def label_B(self) -> npt.NDArray[np.int64]:
        """Return the only label of each row with a prediction."""
        assert not self.multi_label, "such rows have any number of labels"
        return np.array([labels[0] for labels in self.labels])

    def target_BK(self, num_classes: int) -> npt.NDArray[np.bool_]:
        """Return True for each class that an image shows."""
        return _multi_hot(self.labels, num_classes)

    def result(self, class_names: ClassNames, probs_BK: Floats | None) -> dict[str, Any]:
        """Return metrics and counts.

        Args:
            class_names: the K classes.
            probs_BK: probabilities of the rows with a prediction, in order; None if not known.

        Raises:
            ConfigError: no row has a prediction.
        """
        num_rows = self.statuses.total()
        if not self.labels:
            raise ConfigError(
                f"none of {num_rows} labelled images has a prediction: {self.counts()}"
            )
        measure = self._measure_sets if self.multi_label else self._measure_labels
        metrics, slices = measure(class_names, probs_BK)
        num_right = sum(map(tuple.__eq__, self.labels, self.predicted))
        return {
            "accuracy": metrics["accuracy"],
            "accuracy_all": num_right / num_rows,
            "num_rows": num_rows,
            "num_ok": len(self.labels),
            "statuses": self.counts(),
            "not_ok": self.not_ok,
            **metrics,
            "slices": slices,
        }

    def calibrated(
        self, calibration: Calibration, class_names: ClassNames, probs_BK: Floats
    ) -> dict[str, Any]:
        """Return what a calibration achieves on the rows with a prediction.

        Args:
            calibration: of the model that gave the probabilities.
            class_names: the K classes.
            probs_BK: uncalibrated, of these rows in order.
        """
        if self.multi_label:
            target_BK = self.target_BK(len(class_names))
            return measure_multi_label_calibration(
                calibration, probs_BK, target_BK, class_names, self.units
            )
        return measure_calibration(calibration, probs_BK, self.label_B(), class_names, self.units)

    def _measure_labels(
        self, class_names: ClassNames, probs_BK: Floats | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        label_B = self.label_B()
        predicted_B = np.array([predicted[0] for predicted in self.predicted])
        metrics = metrics_with_intervals(label_B, predicted_B, class_names, probs_BK, self.units)
        if not any(self.slices):
            return metrics, {}
        return metrics, slice_metrics(self.slices, label_B, predicted_B, class_names, self.units)

    def _measure_sets(
        self, class_names: ClassNames, probs_BK: Floats | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        target_BK = self.target_BK(len(class_names))
        predicted_BK = _multi_hot(self.predicted, len(class_names))
        metrics = multi_label_metrics(
            target_BK, probs_BK, class_names, self.units, predicted_BK=predicted_BK
        )
        if not any(self.slices):
            return metrics, {}
        return metrics, multi_label_slices(
            self.slices, target_BK, predicted_BK, class_names, self.units
        )

    def counts(self) -> dict[str, int]:
        """Return the rows by status."""
        return {str(status): count for status, count in sorted(self.statuses.items())}


def _multi_hot(labels_B: list[tuple[int, ...]], num_classes: int) -> npt.NDArray[np.bool_]:
    target_BK = np.zeros((len(labels_B), num_classes), bool)
    for row, labels in enumerate(labels_B):
        target_BK[row, list(labels)] = True
    return target_BK
