"""The resampling of `imgcls.image.fit.resample` in torch, for images that are decoded on a GPU.

In: uint8 [H,W,C] and a box in its coordinates, on any device. Out: uint8 [C,Y,X] on that device.
Invariant: every pixel equals `resample`'s, bit for bit, whatever the device and the order in which
it sums, and with TF32 or bfloat16 products allowed.

fast_image_resize resamples in two passes, columns and then rows, each a matrix of integer weights
times uint8 pixels, rounded to uint8. Here each is a matrix product of float32 that hold integers.
The weights have up to 15 bits and their sum, 2^precision, up to 21, too many for float32's 24 once
multiplied by a pixel; so they are split into digits of at most 8 bits, whose sums stay exact.

Legend: H, W height and width of the source, C channels, Y, X height and width of the result, P
either of them, N pixels of a line that the box needs, M lines, T taps of the filter, D digits of a
weight.
"""

import dataclasses
import functools
import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from imgcls.image.fit.placement import Placement
from imgcls.image.fit.resample import box_side
from imgcls.image.spec import PreprocessSpec

_MAX_PIXEL: Final = 255
_FLOAT32_EXACT: Final = 1 << 24  # integers below it are exact in float32
_WEIGHT_BITS: Final = 15  # fast_image_resize keeps weights in an i16 ...
_MAX_PRECISION: Final = 21  # ... and sums in an i32 with two bits to spare
_MAX_DIGIT_BITS: Final = 8  # significant bits of bfloat16, the narrowest type a product may use
_MAX_CACHED: Final = 256


@dataclasses.dataclass(frozen=True)
class _Weights:
    first: int
    """Index of the first of the N pixels."""
    digits_DPN: torch.Tensor
    """uint8, most significant digit first."""
    digit_bits: int
    precision: int
    """Binary places: 2^precision stands for a weight of 1."""


def resample_on_device(
    image_HWC: torch.Tensor,
    box: tuple[float, float, float, float],
    out_width_px: int,
    out_height_px: int,
) -> torch.Tensor:
    """Resample `box` (left, top, right, bottom) to a width and a height.

    Args:
        image_HWC: uint8 [H,W,C] on any device, in any memory format.
        box: in pixels of `image_HWC`, inside it, fractions allowed, at most 32,000 times as large
            as the result.
        out_width_px: width of the result.
        out_height_px: height of it.

    Returns:
        uint8 [C,Y,X] on the same device, C-contiguous.
    """
    height_px, width_px, num_channels = image_HWC.shape
    left, top, right, bottom = box
    of_rows = _weights(height_px, top, bottom, out_height_px, image_HWC.device)
    of_columns = _weights(width_px, left, right, out_width_px, image_HWC.device)
    part_HWC = image_HWC[_needed(of_rows), _needed(of_columns)]
    part_width_px = part_HWC.shape[1]
    x_YM = _weigh(of_rows, part_HWC.flatten(1))
    x_YWC = x_YM.view(out_height_px, part_width_px, num_channels)
    x_XM = _weigh(of_columns, x_YWC.permute(1, 2, 0).flatten(1))
    return x_XM.view(out_width_px, num_channels, out_height_px).permute(1, 2, 0).contiguous()


def pad_on_device(part_CHW: torch.Tensor, where: Placement, spec: PreprocessSpec) -> torch.Tensor:
    """Return the model's input, uint8 [C,Y,X]: the part in its place, with padding around it."""
    if where.is_whole(spec):
        return part_CHW
    color = torch.tensor(spec.pad_color, dtype=torch.uint8, device=part_CHW.device)
    x_CHW = color[:, None, None].expand(spec.shape_CHW).contiguous()
    rows = slice(where.top_px, where.top_px + where.height_px)
    columns = slice(where.left_px, where.left_px + where.width_px)
    x_CHW[:, rows, columns] = part_CHW
    return x_CHW


def _needed(weights: _Weights) -> slice:
    return slice(weights.first, weights.first + weights.digits_DPN.shape[-1])


def _weigh(weights: _Weights, x_NM: torch.Tensor) -> torch.Tensor:
    """Multiply uint8 [N,M] by the weights: uint8 [P,M], halves rounded up."""
    num_digits, side_px, _ = weights.digits_DPN.shape
    digits = weights.digits_DPN.flatten(0, 1).float()
    sums_DPM = (digits @ x_NM.float()).int().view(num_digits, side_px, -1)
    total_PM = sums_DPM[0]
    for sums_PM in sums_DPM[1:]:
        total_PM = torch.add(sums_PM, total_PM, alpha=1 << weights.digit_bits)
    half = 1 << (weights.precision - 1)
    return ((total_PM + half) >> weights.precision).clamp_(max=_MAX_PIXEL).to(torch.uint8)


@functools.lru_cache(maxsize=_MAX_CACHED)
def _weights(in_px: int, start: float, end: float, side_px: int, device: torch.device) -> _Weights:
    """Weights of the triangle filter along one side of the box, as fast_image_resize has them.

    Source: `precompute_coefficients` and `Normalizer16` of fast_image_resize 6. Where it copies
    instead (a whole-numbered box as large as the result) these weights are 0 and 1: a copy too.
    """
    # `resample` hands over start and side: the end is rounded once more.
    scale = ((start + box_side(start, end, in_px)) - start) / side_px
    radius = max(scale, 1.0)
    center_P = start + (np.arange(side_px) + 0.5) * scale
    from_P = np.maximum(np.floor(center_P - radius), 0).astype(np.int64)
    index_PT = from_P[:, None] + np.arange(2 * math.ceil(radius) + 1)
    offset_PT = index_PT - (center_P - 0.5)[:, None]
    weight_PT = np.maximum(0.0, 1.0 - np.abs(offset_PT * (1.0 / radius)))
    weight_PT[index_PT >= in_px] = 0
    # Summed from left to right, which np.sum does not do.
    weight_PT /= np.cumsum(weight_PT, axis=1)[:, -1:]
    precision = _precision(float(weight_PT.max()))
    fixed_PT = _round(weight_PT * (1 << precision)).astype(np.int64)

    max_digit = (_FLOAT32_EXACT - 1) // (_MAX_PIXEL * index_PT.shape[1])
    assert max_digit >= 1, f"a box {scale:.0f} times as large as the result is too large"
    digit_bits = min(_MAX_DIGIT_BITS, (max_digit + 1).bit_length() - 1)
    shifts = range((_WEIGHT_BITS - 1) // digit_bits * digit_bits, -1, -digit_bits)
    digits_DPT = np.stack([fixed_PT >> shift & ((1 << digit_bits) - 1) for shift in shifts])

    first = int(from_P[0])
    num_needed = min(in_px, math.ceil(center_P[-1] + radius)) - first
    # The last windows may reach beyond the image, with weights of 0.
    digits_DPN = np.zeros((len(shifts), side_px, index_PT.max() + 1 - first), np.uint8)
    np.put_along_axis(digits_DPN, index_PT[None] - first, digits_DPT, axis=2)
    digits = torch.from_numpy(digits_DPN[:, :, :num_needed].copy()).to(device)
    return _Weights(first, digits, digit_bits, precision)


def _precision(max_weight: float) -> int:
    """Return the most binary places with which the largest weight fits."""
    for precision in range(_MAX_PRECISION):
        if _round(np.float64(max_weight * (2 << precision))) >= 1 << _WEIGHT_BITS:
            return precision
    return _MAX_PRECISION


def _round(values: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    """Round to the nearest integer, halves up, as Rust does (numpy: halves to even)."""
    floor = np.floor(values)
    return np.asarray(floor + (values - floor >= 0.5))
