"""A part of the model's input, resized from the picture itself: what augmentation zooms into.

In: a decoded picture, a preprocess spec, and which part. Out: that part in the size of the input;
or a spec of one frame of many, which is a part of a file, too.
Invariant: a pixel shows what it would show in the input, were that as fine as the picture; what
lies beyond the picture is padding where the spec pads, else the nearest edge goes on.

Legend: H, W height and width of the picture, C channels, Y, X height and width of the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Self

import numpy as np

from imgcls.image.decoded import Pixels
from imgcls.image.fit.filters import Kernel
from imgcls.image.fit.placement import place
from imgcls.image.fit.resample import resample
from imgcls.image.spec import DecodeSpec, PreprocessSpec

# Left, top, right and bottom, as shares of the input's width and height; may lie beyond 0 and 1.
View = tuple[float, float, float, float]
WHOLE: Final[View] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Part:
    """What is wanted of a file, where that is not all that the specs take of it."""

    view: View = WHOLE
    chance: int | None = None
    """Of a file with many frames one by this chance, a hash of 64 bits; None: all of them."""


ALL: Final = Part()


@dataclass(frozen=True)
class OneFrame(DecodeSpec):
    """A spec by which one frame is decoded of those that it takes."""

    chance: int = 0
    """Which, by its remainder after division by their number."""

    @classmethod
    def of(cls, spec: DecodeSpec, chance: int) -> Self:
        """Return a spec that picks one frame."""
        return cls(**{each.name: getattr(spec, each.name) for each in fields(spec)}, chance=chance)

    def frames_of(self, num_frames: int) -> Sequence[int]:
        """Return the frame that is picked.

        Raises:
            ImageTooLargeError: as of all frames.
        """
        wanted = DecodeSpec.frames_of(self, num_frames)
        return [wanted[self.chance % len(wanted)]]


def resize_view(image_HWC: Pixels, spec: PreprocessSpec, view: View) -> Pixels:
    """Return [C,Y,X] of the image's type, C-contiguous.

    Args:
        image_HWC: uint8 or float32 [H,W,C] 0..255.
        spec: not of tiles.
        view: which part of the input.
    """
    height_px, width_px, _ = image_HWC.shape
    left, top, right, bottom = _in_picture(width_px, height_px, spec, view)
    across = _shown(left, right, width_px, spec.width_px)
    down = _shown(top, bottom, height_px, spec.height_px)
    box = (across[2], down[2], across[3], down[3])
    size = across[1] - across[0], down[1] - down[0]
    part_CYX = resample(image_HWC, box, *size, Kernel.of(spec)).transpose(2, 0, 1)
    beyond = ((0, 0), (down[0], spec.height_px - down[1]), (across[0], spec.width_px - across[1]))
    if spec.fit != "pad":
        return np.ascontiguousarray(np.pad(part_CYX, beyond, "edge"))
    x_CYX = np.empty(spec.shape_CHW, image_HWC.dtype)
    x_CYX[:] = np.array(spec.pad_color)[:, None, None]
    x_CYX[:, down[0] : down[1], across[0] : across[1]] = part_CYX
    return x_CYX


def size_for_view(
    width_px: int, height_px: int, spec: PreprocessSpec, view: View
) -> tuple[int, int]:
    """Return the width and height of a picture that are enough for a view of it."""
    left, top, right, bottom = _in_picture(width_px, height_px, spec, view)
    wanted_width_px = width_px * spec.width_px / (right - left)
    return round(wanted_width_px), round(height_px * spec.height_px / (bottom - top))


def _in_picture(
    width_px: int, height_px: int, spec: PreprocessSpec, view: View
) -> tuple[float, float, float, float]:
    """Return the edges of a view in pixels of the picture."""
    where = place(width_px, height_px, spec)
    left, top, right, bottom = where.box
    scale_x, scale_y = (right - left) / where.width_px, (bottom - top) / where.height_px
    start_x, start_y = left - where.left_px * scale_x, top - where.top_px * scale_y
    return (
        start_x + view[0] * spec.width_px * scale_x,
        start_y + view[1] * spec.height_px * scale_y,
        start_x + view[2] * spec.width_px * scale_x,
        start_y + view[3] * spec.height_px * scale_y,
    )


def _shown(start: float, end: float, whole_px: int, out_px: int) -> tuple[int, int, float, float]:
    """Return of one side which pixels of the output show the picture, and from where to where."""
    step = (end - start) / out_px
    first = min(max(0, round(-start / step)), out_px - 1)
    last = min(max(first + 1, round((whole_px - start) / step)), out_px)
    low = min(max(0.0, start + first * step), whole_px - 1.0)
    high = max(min(float(whole_px), start + last * step), low + 1.0)
    return first, last, low, high
