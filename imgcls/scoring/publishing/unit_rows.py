"""The row of one unit, from the rows of its images.

In: the rows of a unit's images, the rule. Out: one row of GROUPS_SCHEMA. Invariant: what failed is
never taken for a negative: a unit of which an image failed is incomplete, and is negative only once
somebody looked.

Shape legend: I row of an image, K class, S unit (here one).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from imgcls.inference.decision_rule import DecisionRule
from imgcls.metrics.pooling import best_instance, pool
from imgcls.metrics.top_classes import top_label
from imgcls.metrics.units import UnitRule
from imgcls.runs.plan import RunFacts
from imgcls.schema import NOT_FAILED, PLACE_FIELDS, Status, UnitStatus

Row = dict[str, Any]
_OF_THE_BEST: Final = ("uri", "member", "frame", *(field.name for field in PLACE_FIELDS))


@dataclass(frozen=True)
class Before:
    """The row of a unit that a new one takes the place of."""

    version: int
    run_id: str


class UnitRows:
    """Makes the rows of units of one run."""

    def __init__(self, run: RunFacts, rule: UnitRule, class_names: Sequence[str]) -> None:
        self._run, self._rule, self._class_names = run, rule, class_names
        self._decide = DecisionRule(class_names, rule.calibration, rule.multi_label)

    def row(self, unit: str | None, images: Sequence[Row], before: Before | None) -> Row:
        """Return the row of a unit.

        Args:
            unit: Its name; None for an image of no unit.
            images: The rows of its images, in order; none where all moved to other units.
            before: Its row of an earlier run.
        """
        statuses = Counter(str(row["status"]) for row in images)
        num_ok = statuses[Status.OK]
        num_failed = statuses.total() - sum(statuses[status] for status in NOT_FAILED)
        status = _status(len(images), num_ok, num_failed)
        row: Row = {
            "unit": unit,
            "status": status,
            "num_images": len({(image["uri"], image["member"]) for image in images}),
            "num_ok": num_ok,
            "num_failed": num_failed,
            "statuses": ", ".join(f"{name} {count}" for name, count in sorted(statuses.items())),
            "rule": self._rule.rule,
            **{name: getattr(self._run, name) for name in ("model", "model_digest", "spec_digest")},
            "run_id": self._run.run_id,
            "scored_at": max((image["scored_at"] for image in images), default=None),
            "version": before.version + 1 if before else 1,
            "replaces_run_id": before.run_id if before else None,
            "runs": sorted({str(image["run_id"]) for image in images}),
        }
        answered = [image for image in images if image["status"] == Status.OK]
        if answered:
            return row | self._answer(answered, is_whole=status is UnitStatus.OK)
        if images:  # which one it is of, though it gave no answer
            row |= {name: images[0][name] for name in ("uri", "member", "frame")}
        return row

    def _answer(self, images: Sequence[Row], *, is_whole: bool) -> Row:
        probs_IK = np.array([image["probs"] for image in images], np.float32)
        rule = self._rule
        pooled_SK = pool(
            probs_IK, rule.rule, multi_label=rule.multi_label, background=rule.background
        )[None]
        label_S = top_label(pooled_SK)
        prob_S = self._decide.deciding_prob(pooled_SK, label_S)
        row = {name: images[self._best(probs_IK)][name] for name in _OF_THE_BEST}
        row |= {
            "label": int(label_S[0]),
            "class_name": self._class_names[int(label_S[0])],
            "confidence": float(pooled_SK[0, label_S[0]]),
            "probs": pooled_SK[0].tolist(),
        }
        if rule.multi_label:
            row["labels"] = [self._class_names[i] for i in self._decide.labels(pooled_SK)[0]]
        if prob_S is not None:
            row["calibrated_prob"] = float(prob_S[0])
        if (point := self._decide.first_point) is not None:
            [(*_, decision)] = self._decide.all_answers(pooled_SK)
            # What failed may hold what the others do not show.
            row["decision"] = "review" if decision == "negative" and not is_whole else decision
            row["threshold_id"] = point.threshold_id
        return row

    def _best(self, probs_IK: np.ndarray[Any, np.dtype[np.float32]]) -> int:
        """Return the image that speaks loudest for what is to be found."""
        point = self._decide.first_point
        if point is not None:
            return int(probs_IK[:, self._class_names.index(point.positive_class)].argmax())
        return best_instance(
            probs_IK, multi_label=self._rule.multi_label, background=self._rule.background
        )


def _status(num_rows: int, num_ok: int, num_failed: int) -> UnitStatus:
    if num_ok:
        return UnitStatus.INCOMPLETE if num_failed else UnitStatus.OK
    if num_failed:
        return UnitStatus.FAILED
    return UnitStatus.NOT_AN_IMAGE if num_rows else UnitStatus.EMPTY
