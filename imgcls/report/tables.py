"""The counts of a night, each with those of the nights before.

In: what `choose` found, and counts of nights. Out: a part of a page. Invariant: a trend has one bar
for each night, the latest on the right, whether or not the night knew the value.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from imgcls.pages.charts import Bar, bars
from imgcls.pages.kit import Part
from imgcls.report.choose import SLICE, Chosen
from imgcls.report.names import Name, plain_names

_MAX_LINES: Final = 40
_TITLES: Final = {
    "decision": ("By decision", "decision"),
    "class": ("By most probable class", "class"),
    "status": ("By status", "status"),
}
_NOTHING: Final[Counter[str]] = Counter()

Counts = dict[str, Counter[str]]
"""Of one night: by what, value, how many images."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table of counts, with the nights before."""

    name: str
    count: int
    trend: Sequence[Bar]
    trend_words: str
    num_flagged: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Counts by one column, for the template tables.html."""

    title: str
    head: str
    of: str
    """What is counted."""
    whole: int
    has_trend: bool
    has_flagged: bool
    lines: Sequence[Line]


def numbers_of(chosen: Chosen, nights: Sequence[Counts], name: Name, of: str = "images") -> Part:
    """Return the counts of a night.

    Args:
        chosen: what was found in it.
        nights: counts of it, the last, and of those before.
        name: how carried values are shown.
        of: what is counted.
    """
    remark = (
        f"The bars are the last {len(nights)} runs of this output, the latest on the right."
        if len(nights) > 1
        else "From the next run on, the runs before stand here too."
    )
    tables = [_table(key, counts, chosen, nights, name, of) for key, counts in _ordered(chosen)]
    return Part("numbers", "Numbers", "tables.html", {"remark": remark, "tables": tables})


def _ordered(chosen: Chosen) -> list[tuple[str, Counter[str]]]:
    counts = chosen.counts()
    order = ["decision", "class", *(key for key in counts if key.startswith(SLICE)), "status"]
    return [(key, counts[key]) for key in order if counts[key]]


def _table(
    key: str, counts: Counter[str], chosen: Chosen, nights: Sequence[Counts], name: Name, of: str
) -> Table:
    column = key.removeprefix(SLICE)
    is_slice = key.startswith(SLICE)
    title, head = _TITLES.get(key, (f"By {column}", column))
    flagged = chosen.by_column[column].flagged if is_slice and chosen.by_decision else _NOTHING
    shown: Callable[[str], str] = name if is_slice else plain_names
    before = [night.get(key, _NOTHING) for night in nights]
    has_trend = sum(map(bool, before)) > 1
    lines = [
        Line(
            value.replace("_", " ") if key == "status" else shown(value),
            count,
            bars([night[value] for night in before]) if has_trend else (),
            f"last nights: {', '.join(str(night[value]) for night in before)}",
            flagged[value],
        )
        for value, count in counts.most_common(_MAX_LINES)
    ]
    if rest := counts.total() - sum(line.count for line in lines):
        lines.append(Line(f"{len(counts) - len(lines)} more", rest, (), ""))
    has_flagged = is_slice and bool(chosen.by_decision)
    return Table(title, head, of, counts.total(), has_trend, has_flagged, lines)
