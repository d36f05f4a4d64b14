"""Small charts as numbers of a drawing, for the templates to put into SVG.

In: counts. Out: places and sizes in the units of a viewBox. Invariant: a chart has no text of its
own and no style attribute, which the policy of a page forbids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WIDTH: Final = 120.0
_HEIGHT: Final = 28.0
_GAP: Final = 0.25  # of a bar's room


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a row of bars: x, y, width and height in a viewBox of WIDTH by HEIGHT."""

    x: float
    y: float
    width: float
    height: float
    is_last: bool


def bars(values: Sequence[float]) -> list[Bar]:
    """Return a bar for each value, from 0 on, the largest as high as there is room."""
    most = max(values, default=0) or 1
    room = _WIDTH / max(len(values), 8)
    # A value that is not 0 is seen, however small.
    heights = [max(1.5, _HEIGHT * value / most) if value else 0.0 for value in values]
    return [
        Bar(
            round(_WIDTH - room * (len(values) - index), 2),
            round(_HEIGHT - height, 2),
            round(room * (1 - _GAP), 2),
            round(height, 2),
            index == len(values) - 1,
        )
        for index, height in enumerate(heights)
    ]
