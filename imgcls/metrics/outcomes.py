"""Labelled images and what became of them, counted once and for all.

In: labels and predictions, image by image, and failures. Out: a JSON-able dict of metrics and
counts. Invariant: every row is counted: in `accuracy` when it has a prediction, in `accuracy_all`
(as wrong) when it has none.

One label per image is the case of tuples of one. Shape legend: B row with a prediction, K class.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError
from imgcls.metrics.calibration import Calibration, measure_calibration
from imgcls.metrics.measures import Labelled, sets_of
from imgcls.metrics.quality import measure_quality, measure_slices
from imgcls.metrics.top_classes import Bools, Floats
from imgcls.schema import Status

_NUM_NAMED = 10  # images that a result names one by one


@dataclass
class Outcomes:
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

    def target_BK(self, num_classes: int) -> Bools:
        """Return True for each class that an image shows."""
        return sets_of(self.labels, num_classes)

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
        data = Labelled(
            self.target_BK(len(class_names)),
            sets_of(self.predicted, len(class_names)),
            class_names,
            self.multi_label,
            probs_BK,
        )
        metrics = measure_quality(data, self.units)
        slices = measure_slices(self.slices, data, self.units) if any(self.slices) else {}
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
        return measure_calibration(
            calibration,
            probs_BK,
            self.target_BK(len(class_names)),
            class_names,
            self.units,
            multi_label=self.multi_label,
            slice_B=self.slices,
        )

    def counts(self) -> dict[str, int]:
        """Return the rows by status."""
        return {str(status): count for status, count in sorted(self.statuses.items())}
