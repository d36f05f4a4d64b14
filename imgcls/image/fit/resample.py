"""Resample a box of an image.

In: [H,W,C] and a box in its coordinates. Out: [Y,X,C] of the same type. Invariant: exact arithmetic
on integers, so equal pixels on every CPU; by a filter that is widened, a pixel near the edge of the
box sees its neighbours beyond it.

fast_image_resize (Rust, by way of cykooz.resizer) does what Pillow does, within 1 of 255, in a
third of its time, where the filter does not overshoot; turned on its side it does what torch does
with uint8, bit for bit, with the same 15 bits of a weight. The other filters are Pillow's own, and
what it lacks is a product with the weights of filters.py.
"""

import math
import threading
from dataclasses import dataclass
from typing import Any, Final

import cykooz_resizer as cr
import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.image.fit.filters import PLAIN, Kernel, Weights, dense

Box = tuple[float, float, float, float]
Pixels = npt.NDArray[Any]  # uint8, uint16 or float32

_ALGORITHMS: Final = {
    "bilinear": cr.ResizeAlg.convolution(cr.FilterType.bilinear),
    "bicubic": cr.ResizeAlg.convolution(cr.FilterType.catmull_rom),
    "lanczos": cr.ResizeAlg.convolution(cr.FilterType.lanczos3),
}
_PIXEL_TYPES: Final = {
    ("uint8", 1): cr.PixelType.U8,
    ("uint8", 3): cr.PixelType.U8x3,
    ("uint16", 1): cr.PixelType.U16,
    ("uint16", 3): cr.PixelType.U16x3,
    ("float32", 1): cr.PixelType.F32,
    ("float32", 3): cr.PixelType.F32x3,
}
_PILLOW: Final = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ROUNDING_PX: Final = 1e-6
# Binary places of a weight: two of them, a pixel and 2^15 taps still fit the 53 of a float64. Where
# pixels are made between the passes, as many as torch has: the largest weight fits an int16.
_WEIGHT_BITS: Final = 15
_MOST_WEIGHT: Final = 1 << 15
_of_thread = threading.local()  # a resizer keeps buffers: one per thread


def resample(
    image_HWC: Pixels, box: Box, out_width_px: int, out_height_px: int, kernel: Kernel = PLAIN
) -> Pixels:
    """Resample `box` (left, top, right, bottom) to a width and a height.

    Args:
        image_HWC: uint8, uint16 or float32 [H,W,C], C 1 or 3.
        box: in pixels of `image_HWC`, fractions allowed.
        out_width_px: width of the result.
        out_height_px: height of it.
        kernel: the filter.

    Returns:
        [Y,X,C] of the type of `image_HWC`; itself where nothing changes.
    """
    height_px, width_px, _ = image_HWC.shape
    whole = (0.0, 0.0, float(width_px), float(height_px))
    if box == whole and (out_width_px, out_height_px) == (width_px, height_px):
        return image_HWC  # what every filter gives
    match kernel.computed_by:
        case "fast_image_resize":
            if not kernel.goes_across_first:
                return _by_fast_image_resize(image_HWC, box, out_width_px, out_height_px, kernel)
            image_WHC, turned = image_HWC.transpose(1, 0, 2), (box[1], box[0], box[3], box[2])
            x_XYC = _by_fast_image_resize(image_WHC, turned, out_height_px, out_width_px, kernel)
            return x_XYC.transpose(1, 0, 2)
        case "pillow":
            return _by_pillow(image_HWC, box, out_width_px, out_height_px, kernel)
        case "weights":
            return _by_weights(image_HWC, box, out_width_px, out_height_px, kernel)


def box_side(start: float, end: float, in_px: int) -> float:
    """Return the side of a box from `start` to `end`, within an image of `in_px` pixels.

    Rounding may put the end an ulp beyond the image, which the library refuses.
    """
    side = end - start
    while 0 < start + side - in_px < _ROUNDING_PX:
        side = math.nextafter(side, 0.0)
    return side


def inside(box: Box, width_px: int, height_px: int) -> Box:
    """Return a box without what rounding put beyond the image."""
    left, top, right, bottom = box
    return left, top, min(right, float(width_px)), min(bottom, float(height_px))


@dataclass(frozen=True, slots=True, eq=False)
class FixedWeights:
    """Weights as whole numbers."""

    weight_PN: Weights
    one: int
    """What stands for a weight of 1, a power of 2."""


def weights_of(
    kernel: Kernel, size: tuple[int, int], box: Box, out_size: tuple[int, int]
) -> tuple[FixedWeights, FixedWeights]:
    """Return the weights across [X,W] and down [Y,H].

    Args:
        kernel: one that is `computed_by` weights.
        size: width and height of the image.
        box: in its pixels.
        out_size: width and height of the result.
    """
    left, top, right, bottom = inside(box, *size)
    sides = right - left, bottom - top
    shrinks = all(side >= out for side, out in zip(sides, out_size, strict=True))
    across, down = (
        dense(kernel, in_px, start, side, out_px, both_shrink=shrinks)
        for in_px, start, side, out_px in zip(size, (left, top), sides, out_size, strict=True)
    )
    return _fixed(across, kernel), _fixed(down, kernel)


def _fixed(weight_PN: Weights, kernel: Kernel) -> FixedWeights:
    precision = _WEIGHT_BITS
    if kernel.rounds_between:
        most = float(weight_PN.max())
        precision = next(
            p for p in range(_MOST_WEIGHT) if int(0.5 + most * (2 << p)) >= _MOST_WEIGHT
        )
    one = 1 << precision
    return FixedWeights(np.trunc(weight_PN * one + np.copysign(0.5, weight_PN)), one)


def _by_fast_image_resize(
    image_HWC: Pixels, box: Box, width_px: int, height_px: int, kernel: Kernel
) -> Pixels:
    in_height_px, in_width_px, num_channels = image_HWC.shape
    pixel_type = _PIXEL_TYPES[image_HWC.dtype.name, num_channels]
    source = cr.ImageData(in_width_px, in_height_px, pixel_type, image_HWC.tobytes())
    target = cr.ImageData(width_px, height_px, pixel_type)
    left, top, right, bottom = box
    sides = box_side(left, right, in_width_px), box_side(top, bottom, in_height_px)
    options = cr.ResizeOptions(
        _ALGORITHMS[kernel.filter], use_alpha=False, crop_box=cr.CropBox(left, top, *sides)
    )
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = cr.Resizer()
    _of_thread.resizer.resize(source, target, options)
    part = np.frombuffer(target.get_buffer(), image_HWC.dtype)
    return part.reshape(height_px, width_px, num_channels)


def _by_pillow(
    image_HWC: Pixels, box: Box, width_px: int, height_px: int, kernel: Kernel
) -> Pixels:
    in_height_px, in_width_px, num_channels = image_HWC.shape
    size, box = (width_px, height_px), inside(box, in_width_px, in_height_px)

    def resized(plane: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(plane).resize(size, _PILLOW[kernel.filter], box))

    if image_HWC.dtype == np.uint8 and num_channels == 3:
        return resized(image_HWC)
    planes = [resized(np.ascontiguousarray(image_HWC[:, :, c])) for c in range(num_channels)]
    return np.stack(planes, axis=-1)


def _by_weights(
    image_HWC: Pixels, box: Box, width_px: int, height_px: int, kernel: Kernel
) -> Pixels:
    """Multiply by the weights across, then down: sums of whole numbers below 2^53 are exact."""
    in_height_px, in_width_px, _ = image_HWC.shape
    across, down = weights_of(kernel, (in_width_px, in_height_px), box, (width_px, height_px))
    x_HWC = image_HWC.astype(np.float64) - kernel.outside
    x_HXC = np.matmul(across.weight_PN, x_HWC) / across.one
    if kernel.rounds_between:
        x_HXC = _rounded(x_HXC, image_HWC.dtype)
    x_YXC = np.tensordot(down.weight_PN, x_HXC, axes=1) / down.one + kernel.outside
    if kernel.filter == "gaussian":  # scikit-image clips to what the picture has
        x_YXC = np.clip(x_YXC, image_HWC.min(), image_HWC.max())
    return _rounded(x_YXC, image_HWC.dtype).astype(image_HWC.dtype)


def _rounded(x: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Return values that pixels of a type can have: whole ones, halves rounded up."""
    return x if dtype.kind == "f" else np.clip(np.floor(x + 0.5), 0, np.iinfo(dtype).max)
