"""Where in a picture a label applies.

In: the columns x, y, w, h of a manifest. Out: boxes of a picture. Invariant: a box is in whole
pixels of the picture as displayed, and has a size.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A part of a picture, and what it shows."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int
    labels: tuple[int, ...]

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Return x, y, width and height."""
        return self.x_px, self.y_px, self.width_px, self.height_px
