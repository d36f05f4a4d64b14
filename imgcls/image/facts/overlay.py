"""A heatmap as a picture to lay over the thumbnail, and its peak in pixels of the source.

In: maps of what the model saw of a picture, and where that lies in it. Out: a PNG, transparent
where nothing speaks for the answer, with a ring around the peak. Invariant: a place of the input is
the place of the source that it shows (`place`), as the source is displayed: EXIF orientation, crop,
padding and tiles are all in that.

The colours are viridis (van der Walt and Smith 2015): their lightness rises with the value, so that
they read alike for people who tell red from green and for those who do not, and in grey print.

Legend: H, W height and width of the overlay, h w height and width of a map.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.image.fit.placement import Box, place
from imgcls.image.fit.tiles import Place
from imgcls.image.spec import PreprocessSpec

OVERLAY_PX: Final = 160
"""Long side, that of a thumbnail on a page."""
_NUM_LEVELS: Final = 24  # few, so that the file is small
_LEAST: Final = 0.2  # of the peak; below it all is transparent
_MOST_OPAQUE: Final = 165  # of 255
_SAME: Final = 0.05  # of the peak: no difference
_VIRIDIS: Final = (
    (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137),
    (53, 183, 121), (109, 205, 89), (180, 222, 44), (253, 231, 37),
)  # fmt: skip
_RING_PX: Final = 6.0
_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 200)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """The map of one input, and where what it shows lies."""

    heat_hw: Floats
    """Over all of the input; above zero where its places speak for the answer."""
    input_px: tuple[int, int]
    """Width and height of the input."""
    window: tuple[int, int, int, int]
    """What of the input is not padding: left, top, width, height."""
    box: Box
    """What that shows of the source as displayed: left, top, right, bottom."""
    shift_px: tuple[float, float] = (0.0, 0.0)
    """How far right and below of its cell lies what a place of the map saw; of the input."""

    @classmethod
    def of(
        cls,
        heat_hw: Floats,
        size_px: tuple[int, int],
        tile: Place | None,
        spec: PreprocessSpec,
        shift_px: tuple[float, float] = (0.0, 0.0),
    ) -> Self:
        """Place the map of a crop: that of a tile, or of a whole picture of this size."""
        input_px = spec.width_px, spec.height_px
        if tile is not None:  # padded at the right and below
            x, y, width, height = tile
            box = (float(x), float(y), float(x + width), float(y + height))
            return cls(heat_hw, input_px, (0, 0, width, height), box, shift_px)
        at = place(*size_px, spec)
        window = (at.left_px, at.top_px, at.width_px, at.height_px)
        return cls(heat_hw, input_px, window, at.box, shift_px)

    def peak(self) -> tuple[float, tuple[float, float]]:
        """Return the highest value that is not of padding, and x and y of it in the source.

        Of cells that are about as high it is the one with the highest around it, and in it the
        middle of what is at least half as high there: a coarse map has an object that fills a cell
        and half of the next.
        """
        height, width = self.heat_hw.shape
        left, top, inner_w, inner_h = self.window
        x = (np.arange(width) + 0.5) * self.input_px[0] / width - left + self.shift_px[0]
        y = (np.arange(height) + 0.5) * self.input_px[1] / height - top + self.shift_px[1]
        inside = ((y >= 0) & (y <= inner_h))[:, None] & ((x >= 0) & (x <= inner_w))
        heat_hw = np.where(inside, self.heat_hw, -np.inf) if inside.any() else self.heat_hw
        highest = float(heat_hw.max())
        padded_hw = np.pad(heat_hw.clip(0), 1)
        around_hw = sum(padded_hw[y : y + height, x : x + width] for y, x in np.ndindex(3, 3))
        about_as_high = np.where(heat_hw >= highest - _SAME * abs(highest), around_hw, -1.0)
        row, column = map(int, np.unravel_index(int(about_as_high.argmax()), heat_hw.shape))
        x0, y0, x1, y1 = self.box
        rows, columns = (slice(max(0, at - 1), at + 2) for at in (row, column))
        near = heat_hw[rows, columns]
        weights = np.where(near >= highest / 2, near, 0.0) if highest > 0 else np.ones_like(near)
        in_x = float((weights.sum(axis=0) * x[columns]).sum() / weights.sum())
        in_y = float((weights.sum(axis=1) * y[rows]).sum() / weights.sum())
        at_x = x0 + np.clip(in_x / inner_w, 0, 1) * (x1 - x0)
        at_y = y0 + np.clip(in_y / inner_h, 0, 1) * (y1 - y0)
        return highest, (float(at_x), float(at_y))

    def drawn(self, size_px: tuple[int, int], shape_HW: tuple[int, int]) -> Floats:
        """Return the map as seen over the whole source, zero beside what the input shows."""
        (width, height), (out_h, out_w) = size_px, shape_HW
        left, top, inner_w, inner_h = self.window
        x0, y0, x1, y1 = self.box
        (num_y, num_x), (of_x, of_y) = self.heat_hw.shape, self.input_px
        shift_x, shift_y = self.shift_px
        to_x = _weights(out_w, width, (x0, x1), (left - shift_x, inner_w), of_x, num_x)
        to_y = _weights(out_h, height, (y0, y1), (top - shift_y, inner_h), of_y, num_y)
        drawn: Floats = (to_y @ self.heat_hw @ to_x.T).astype(np.float32)
        return drawn


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a heatmap leaves."""

    png: bytes
    peak_px: tuple[int, int]
    """x and y in the source as displayed."""


def draw_overlay(patches: Sequence[Patch], size_px: tuple[int, int]) -> Overlay | None:
    """Draw the maps of a picture as one; None where no place speaks for the answer.

    Args:
        patches: of its inputs, all in one unit; the first is of the one that decided, where the
            peak is looked for: the row names its place, too.
        size_px: width and height of the source as displayed.
    """
    peaks = [patch.peak() for patch in patches]
    highest, at = next((peak for peak in peaks if peak[0] > 0), (0.0, (0.0, 0.0)))
    if not highest > 0:
        return None
    width, height = size_px
    scale = OVERLAY_PX / max(size_px)
    shape_HW = max(1, round(height * scale)), max(1, round(width * scale))
    heat_HW = np.zeros(shape_HW, np.float32)
    for patch in patches:
        heat_HW = np.maximum(heat_HW, patch.drawn(size_px, shape_HW))
    share_HW = (heat_HW / highest).clip(0, 1)
    level_HW = np.where(share_HW < _LEAST, 0, (share_HW * _NUM_LEVELS).round()).astype(np.uint8)
    y, x = np.ogrid[: shape_HW[0], : shape_HW[1]]
    from_peak_HW = np.hypot(x + 0.5 - at[0] * scale, y + 0.5 - at[1] * scale)
    level_HW[np.abs(from_peak_HW - _RING_PX) < 2] = _NUM_LEVELS + 1
    level_HW[np.abs(from_peak_HW - _RING_PX) < 1] = _NUM_LEVELS + 2
    peak_px = min(width - 1, int(at[0])), min(height - 1, int(at[1]))
    return Overlay(_encode(level_HW), peak_px)


def _weights(
    num_out: int,
    size: int,
    box: tuple[float, float],
    window: tuple[float, int],
    input_px: int,
    num_cells: int,
) -> npt.NDArray[np.float64]:
    """Return what each place [num_out, num_cells] of one direction takes of each cell, linearly."""
    source = (np.arange(num_out) + 0.5) * size / num_out
    in_input = window[0] + (source - box[0]) / (box[1] - box[0]) * window[1]
    cell = (in_input * num_cells / input_px - 0.5).clip(0, num_cells - 1)
    before = np.floor(cell).astype(int).clip(0, max(0, num_cells - 2))
    share = cell - before
    is_shown = (source >= box[0]) & (source <= box[1])
    weights = np.zeros((num_out, num_cells))
    rows = np.arange(num_out)
    weights[rows, before] += (1 - share) * is_shown
    weights[rows, np.minimum(before + 1, num_cells - 1)] += share * is_shown
    return weights


def _encode(level_HW: npt.NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(level_HW, "P")
    image.putpalette([part for color in _palette() for part in color], "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _palette() -> list[tuple[int, int, int, int]]:
    """Return the colours of levels 0 to _NUM_LEVELS, then of the ring's edge and of the ring."""
    stops = np.array(_VIRIDIS, float)
    at = np.linspace(0, len(stops) - 1, _NUM_LEVELS + 1)
    colors = np.stack([np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=1)
    opaque = np.linspace(0.35, 1, _NUM_LEVELS + 1) * _MOST_OPAQUE
    opaque[0] = 0
    levels = np.column_stack([colors, opaque]).round().astype(int).tolist()
    return [*(tuple(level) for level in levels), _BLACK, _WHITE]
