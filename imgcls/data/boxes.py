"""Where in a picture a label applies.

In: the columns x, y, w, h of a manifest. Out: boxes of a picture. Invariant: a box is in whole
pixels of the picture as displayed, from its top left corner, and has a size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from imgcls.errors import SourceError

BOX_COLUMNS: Final = ("x", "y", "w", "h")
Place = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A part of a picture, and what it shows."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    labels: tuple[int, ...]
    class_name: str  # as DATA has it; of several labels, joined by "|"

    @property
    def place(self) -> Place:
        """Return x, y, width and height."""
        return self.x_px, self.y_px, self.width_px, self.height_px


def place_of(cells: Mapping[str, Any], where: str) -> Place | None:
    """Return x, y, width and height in pixels; None where a row has no box.

    Fractions of a pixel are rounded to the pixels that the box touches.

    Args:
        cells: Of a row of a manifest.
        where: Words that name the row.

    Raises:
        SourceError: some of the four are missing, are not numbers, or make no box.
    """
    given = [cells.get(name) for name in BOX_COLUMNS]
    given = [None if isinstance(value, str) and not value.strip() else value for value in given]
    if all(_is_nothing(value) for value in given):
        return None
    try:
        x, y, width, height = (float(value) for value in given)  # type: ignore[arg-type]  # None too
        is_box = (
            min(x, y) >= 0 and min(width, height) >= 1 and math.isfinite(x + y + width + height)
        )
    except (TypeError, ValueError):
        is_box = False
    if not is_box:
        named = ", ".join(
            f"{name}={value!r}" for name, value in zip(BOX_COLUMNS, given, strict=True)
        )
        raise SourceError(
            f"{where} has no box with {named}: x and y are its top left corner, w and h its size, "
            "all in pixels of the picture as displayed, w and h at least 1; leave all four empty "
            "where there is no box"
        )
    left, top = math.floor(x), math.floor(y)
    return left, top, math.ceil(x + width) - left, math.ceil(y + height) - top


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
