"""Which rows of a night a person should look at, in one pass over its parts.

In: batches of published rows. Out: counts, and for each list the rows that are shown, with the
number of all. Invariant: memory holds at most LIMIT rows of each list, whatever the night has; the
random sample is a function of the rows' keys, so a night that was resumed shows the same.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from imgcls.runs.facts import lot_of
from imgcls.schema import GROUPS_SCHEMA, ROW_COLUMNS, Status, UnitStatus

LIMIT: Final = {"positive": 200, "review": 200, "unsure": 60, "failed": 100, "sample": 48}

SLICE: Final = "slice:"
PLACE: Final = ("x_px", "y_px", "w_px", "h_px")
# A carried column with more values tells images apart, not kinds of them.
_MAX_SLICES: Final = 40

_OWN_COLUMNS: Final = ROW_COLUMNS | set(GROUPS_SCHEMA.names)

Row = dict[str, Any]
Key = tuple[str, str, int]


def key_of(row: Row) -> Key:
    """Return what names a row in its night: uri, member of a container, frame."""
    frame = row.get("frame")
    return row["uri"], row.get("member") or "", -1 if frame is None else frame


@dataclass
class Shown:
    """The first rows of a list by some order, and how many there are in all."""

    limit: int
    rank: Callable[[Row], float]
    """The row with the lowest rank comes first."""
    num_all: int = 0
    _heap: list[tuple[float, int, Row]] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Count a row, and keep it if it is among the first."""
        self.num_all += 1
        # Of equal ranks the one that came first stays.
        entry = (-self.rank(row), -self.num_all, row)
        if len(self._heap) < self.limit:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def rows(self) -> list[Row]:
        """Return what is shown, in order."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass
class Slices:
    """How many images have which value of a carried column, and how many of them are positive."""

    images: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)

    @property
    def are_few(self) -> bool:
        """Whether there are so few values that they are kinds of images."""
        return len(self.images) <= _MAX_SLICES

    def add(self, row: Row, value: str) -> None:
        """Count a row; of too many values nobody counts further."""
        if self.are_few:
            self.images[value] += 1
            self.flagged[value] += row.get("decision") == "positive"


@dataclass
class Chosen:
    """What one pass over a night's rows gives."""

    positive: Shown
    review: Shown
    unsure: Shown
    failed: Shown
    sample: Shown
    by_status: Counter[str] = field(default_factory=Counter)
    by_class: Counter[str] = field(default_factory=Counter)
    by_decision: Counter[str] = field(default_factory=Counter)
    by_column: dict[str, Slices] = field(default_factory=dict)
    """Of carried columns."""
    is_medical: bool = False

    @property
    def lists(self) -> tuple[Shown, ...]:
        """All lists of rows that are shown."""
        return self.positive, self.review, self.unsure, self.failed, self.sample

    def counts(self) -> dict[str, Counter[str]]:
        """Return the counts that later nights show, by what they are counted by."""
        counts = {
            "status": self.by_status, "class": self.by_class, "decision": self.by_decision,
        }  # fmt: skip
        few = {name: slices.images for name, slices in self.by_column.items() if slices.are_few}
        return counts | {f"{SLICE}{name}": images for name, images in few.items()}


def nothing_chosen() -> Chosen:
    """Return what no row has been added to."""
    return Chosen(
        positive=Shown(LIMIT["positive"], lambda row: -_probability(row)),
        review=Shown(LIMIT["review"], lambda row: -_probability(row)),
        unsure=Shown(LIMIT["unsure"], _probability),
        failed=Shown(LIMIT["failed"], lambda row: 0.0),
        sample=Shown(LIMIT["sample"], lambda row: lot_of(row["uri"], row.get("member"))),
    )


def choose(
    chosen: Chosen,
    rows: Iterator[Row],
    each: Callable[[str, Row], None] = lambda _list, _row: None,
) -> dict[str, Counter[str]]:
    """Read the rows of a night once; return its counts, as `Chosen.counts`.

    Args:
        chosen: what they are added to.
        rows: all of them.
        each: told every row of every list but the sample, shown or not, with the list's name.
    """
    before = {name: counts.copy() for name, counts in chosen.counts().items()}
    for row in rows:
        chosen.by_status[row["status"]] += 1
        chosen.is_medical |= row.get("format") == "dicom"
        for name in carried_by(row):
            if row[name] is not None:
                chosen.by_column.setdefault(name, Slices()).add(row, str(row[name]))
        if not has_answer(row):
            chosen.failed.add(row)
            each("failed", row)
            continue
        chosen.by_class[row["class_name"]] += 1
        chosen.sample.add(row)
        decision = row.get("decision")
        if decision is None:
            chosen.unsure.add(row)
            continue
        chosen.by_decision[decision] += 1
        if decision in ("positive", "review"):
            (chosen.positive if decision == "positive" else chosen.review).add(row)
            each(decision, row)
    return {name: counts - before.get(name, Counter()) for name, counts in chosen.counts().items()}


def carried_by(row: Row) -> list[str]:
    """Return the names of the columns that a row has from its source."""
    return [name for name in row if name not in _OWN_COLUMNS]


def has_answer(row: Row) -> bool:
    """Tell whether an image, or a unit, has one."""
    return row["status"] in (Status.OK, UnitStatus.INCOMPLETE)


def probability_of(row: Row) -> float | None:
    """Return the probability that the row's answer rests on: calibrated where the model is."""
    calibrated = row.get("calibrated_prob")
    value = row["confidence"] if calibrated is None else calibrated
    return None if value is None else float(value)


def _probability(row: Row) -> float:
    return probability_of(row) or 0.0
