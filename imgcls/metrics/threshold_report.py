"""What published decisions are worth, against labels.

In: rows with `decision`, `threshold_id` and `calibrated_prob`, and whether each image is of the
positive class. Out: a table, one entry per model and threshold. Invariant: thresholds of two
versions of a model may have one id and differ, so that they are never counted together.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint, measure_point

_AT_THE_THRESHOLD = ("recall", "recall_interval", "specificity", "specificity_interval")


def positive_class_of(threshold_id: str) -> str:
    """Return the class that a threshold is for: `cat` of `cat:recall>=0.95`."""
    return threshold_id.rpartition(":")[0]


@dataclass
class _Rows:
    """The rows that one threshold decided."""

    decisions: list[str] = field(default_factory=list)
    positive: list[bool] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    units: list[str] = field(default_factory=list)


class DecisionTable:
    """Counts decided rows by model and threshold."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Rows] = {}

    def add(self, row: Mapping[str, Any], names: frozenset[str], unit: str) -> None:
        """Count a published row; one of a model without thresholds is left out.

        Args:
            row: The columns `model_digest`, `decision`, `threshold_id` and `calibrated_prob`.
            names: The classes that the image shows.
            unit: What it belongs to, its group or itself, for the intervals.
        """
        if row.get("decision") is None:
            return
        rows = self._rows.setdefault((row["model_digest"], row["threshold_id"]), _Rows())
        rows.decisions.append(row["decision"])
        rows.positive.append(positive_class_of(row["threshold_id"]) in names)
        rows.score.append(row["calibrated_prob"])
        rows.units.append(unit)

    def result(self, calibrations: Mapping[str, Calibration | None]) -> list[dict[str, Any]]:
        """Return the table.

        Args:
            calibrations: of the models, by digest, as far as they can still be read.

        Returns:
            Per model and threshold: `counts[what it is][what was decided]`; `recall` and
            `specificity` at the threshold with their intervals, null where the model is gone;
            `review_fraction`; and both with review: the share of positive images that were not
            decided negative, and of negative ones that were not decided positive.
        """
        return [
            _entry(digest, threshold_id, rows, _find(calibrations.get(digest), threshold_id))
            for (digest, threshold_id), rows in sorted(self._rows.items())
        ]


def _find(calibration: Calibration | None, threshold_id: str) -> OperatingPoint | None:
    points = calibration.operating_points if calibration is not None else ()
    return next((point for point in points if point.threshold_id == threshold_id), None)


def _entry(
    digest: str, threshold_id: str, rows: _Rows, point: OperatingPoint | None
) -> dict[str, Any]:
    cells = Counter(zip(rows.positive, rows.decisions, strict=True))
    counts = {
        truth: {d: cells[is_positive, d] for d in ("positive", "review", "negative")}
        for truth, is_positive in (("positive", True), ("negative", False))
    }
    measured: dict[str, Any] = dict.fromkeys(_AT_THE_THRESHOLD)
    if point is not None:
        measured = measure_point(point, np.array(rows.score), np.array(rows.positive), rows.units)
    num_rows = len(rows.decisions)
    return {
        "model_digest": digest,
        "threshold_id": threshold_id,
        "positive_class": positive_class_of(threshold_id),
        "threshold": point.threshold if point is not None else None,
        "num_rows": num_rows,
        "counts": counts,
        **measured,
        "review_fraction": sum(of["review"] for of in counts.values()) / num_rows,
        "recall_with_review": _share_not(counts["positive"], "negative"),
        "specificity_with_review": _share_not(counts["negative"], "positive"),
    }


def _share_not(counts: dict[str, int], decision: str) -> float | None:
    num_rows = sum(counts.values())
    return 1 - counts[decision] / num_rows if num_rows else None
