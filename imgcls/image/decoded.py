"""What decoding gives: pixels and where they come from.

In: nothing. Out: `DecodedImage`. Invariant: a plain value; every decoder of this package returns
it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Values 0..255: uint8, or of a spec of depth 16 also float32.
Pixels = npt.NDArray[np.uint8 | np.float32]
# From the width and height of a source, as displayed, to those that are enough.
WantedSize = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """One frame, upright, in the channels of the decode spec."""

    image_HWC: Pixels
    """[H,W,C] 0..255: RGB where C is 3, luma where C is 1; H, W after any DCT scaling."""
    width_px: int
    """Width of the source as displayed (after EXIF orientation, before DCT scaling)."""
    height_px: int
    """Height of the source as displayed."""
    frame: int | None = None
    """Index in a multi-frame file, where the spec takes the middle or all frames; else None."""


def ignore_frame(index: int) -> None:
    """Do nothing at the begin of a frame."""
