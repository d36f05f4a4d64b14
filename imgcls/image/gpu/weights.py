"""The weights of a resize along one side, as fast_image_resize has them, in exact pieces.

In: a box in a side, and to how many pixels it goes. Out: whole numbers, on a device. Invariant: the
very integers that fast_image_resize or Pillow multiply pixels by; split into digits of at most 8
bits, so that sums of a digit times pixels are exact in float32, also of bfloat16 products.

Legend: P pixels of the result, N pixels of a line that the box needs, T taps of the filter, D
digits of a weight.
"""

import dataclasses
import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from imgcls.image.fit.filters import Kernel, Shape, Weights, cubic, triangle
from imgcls.image.fit.resample import box_side

_MAX_PIXEL: Final = 255
_FLOAT32_EXACT: Final = 1 << 24  # integers below it are exact in float32
_INT16_BITS: Final = 15  # fast_image_resize keeps weights in an i16 ...
_MAX_PRECISION: Final = 21  # ... and sums in an i32 with two bits to spare
_MAX_DIGIT_BITS: Final = 8  # significant bits of bfloat16, the narrowest type a product may use
_MAX_CACHED: Final = 256


@dataclasses.dataclass(frozen=True)
class SideWeights:
    """Weights along one side."""

    first: int
    """Index of the first of the N pixels."""
    digits_DPN: torch.Tensor
    """int16, most significant digit first, each with the sign of its weight."""
    digit_bits: int
    precision: int
    """Binary places: 2^precision stands for a weight of 1."""


@functools.lru_cache(maxsize=_MAX_CACHED)
def side_weights(
    in_px: int, start: float, end: float, out_px: int, device: torch.device, kernel: Kernel
) -> SideWeights:
    """Return the weights of a filter that is `computed_by` fast_image_resize.

    Where it copies instead (a whole-numbered box as large as the result) these weights are 0 and 1:
    a copy too.
    """
    weight_PT, index_PT = _taps(in_px, start, end, out_px, kernel)
    precision = _precision(float(weight_PT.max()))
    fixed_PT = np.sign(weight_PT) * _round(np.abs(weight_PT) * (1 << precision))
    digits_DPT, digit_bits = _split(fixed_PT.astype(np.int64))
    first = int(index_PT.min())
    # The last windows may reach beyond the image, with weights of 0.
    width = int(index_PT.max()) + 1 - first
    digits_DPN = np.zeros((len(digits_DPT), out_px, width), np.int16)
    np.put_along_axis(digits_DPN, index_PT[None] - first, digits_DPT, axis=2)
    digits = torch.from_numpy(digits_DPN[:, :, : in_px - first].copy()).to(device)
    return SideWeights(first, digits, digit_bits, precision)


def _split(fixed_PT: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int16], int]:
    """Return the digits [D,P,T] of whole numbers below 2^15, and the bits of a digit."""
    max_digit = (_FLOAT32_EXACT - 1) // (_MAX_PIXEL * fixed_PT.shape[1])
    assert max_digit >= 1, f"a filter of {fixed_PT.shape[1]} taps is too long"
    digit_bits = min(_MAX_DIGIT_BITS, (max_digit + 1).bit_length() - 1)
    shifts = range((_INT16_BITS - 1) // digit_bits * digit_bits, -1, -digit_bits)
    sign_PT, size_PT = np.sign(fixed_PT), np.abs(fixed_PT)
    digits = [sign_PT * (size_PT >> shift & ((1 << digit_bits) - 1)) for shift in shifts]
    return np.stack(digits).astype(np.int16), digit_bits


def _taps(
    in_px: int, start: float, end: float, out_px: int, kernel: Kernel
) -> tuple[Weights, npt.NDArray[np.int64]]:
    """Return weights and the pixels that they are of, both [P,T].

    Source: `precompute_coefficients` and `Normalizer16` of fast_image_resize 6.
    """
    support, shape = _SHAPES[kernel.filter]
    # `resample` hands over start and side: the end is rounded once more.
    scale = ((start + box_side(start, end, in_px)) - start) / out_px
    factor = max(scale, 1.0)
    radius = support * factor
    center_P = start + (np.arange(out_px) + 0.5) * scale
    from_P = np.maximum(np.floor(center_P - radius), 0).astype(np.int64)
    index_PT = from_P[:, None] + np.arange(2 * math.ceil(radius) + 1)
    weight_PT = shape((index_PT - (center_P - 0.5)[:, None]) * (1.0 / factor))
    weight_PT[index_PT >= in_px] = 0
    # Summed from left to right, which np.sum does not do.
    return weight_PT / np.cumsum(weight_PT, axis=1)[:, -1:], index_PT


def _precision(max_weight: float) -> int:
    """Return the most binary places with which the largest weight fits."""
    for precision in range(_MAX_PRECISION):
        if _round(np.float64(max_weight * (2 << precision))) >= 1 << _INT16_BITS:
            return precision
    return _MAX_PRECISION


def _round(values: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    """Round to the nearest integer, halves up, as Rust does (numpy: halves to even)."""
    floor = np.floor(values)
    return np.asarray(floor + (values - floor >= 0.5))


# Half the width, in pixels, and the weight at a distance.
_SHAPES: Final[dict[str, tuple[float, Shape]]] = {
    "bilinear": (1.0, triangle),
    "bicubic": (2.0, cubic(-0.5)),
}
