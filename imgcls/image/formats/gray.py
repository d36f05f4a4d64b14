"""Greys deeper than 8 bits to 0..255, by the rule of the decode spec.

In: integer or float samples of one channel and the range that the file declares. Out: uint8.
Invariant: the map is linear and, but for the rule min_max, the same for every image: a brighter
sample is never darker in another image.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.image.spec import DecodeSpec

_CHUNK_SAMPLES: Final = 1 << 20


def to_uint8(
    values_HW: npt.NDArray[np.generic], declared: tuple[float, float], spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Map samples to 0..255, rounded to nearest, clipped; NaN gives 0.

    Args:
        values_HW: [H,W] of any integer or float type.
        declared: the values that the file says are black and white (white may be the lower one).
        spec: its gray_range, gray_bits and gray_window choose the range.

    Returns:
        uint8 [H,W].
    """
    black, white = _range(values_HW, declared, spec)
    if values_HW.dtype in (np.uint16, np.int16):
        # A table of all 65,536 values is exact and several times as fast as arithmetic on each
        # pixel.
        table = _scale(np.arange(65536, dtype=np.uint16).view(values_HW.dtype), black, white)
        looked_up: npt.NDArray[np.uint8] = table[values_HW.view(np.uint16)]
        return looked_up
    values_N = values_HW.reshape(-1)
    out_N = np.empty(values_N.size, np.uint8)
    for start in range(0, values_N.size, _CHUNK_SAMPLES):
        chunk = slice(start, start + _CHUNK_SAMPLES)
        out_N[chunk] = _scale(values_N[chunk], black, white)
    return out_N.reshape(values_HW.shape)


def type_range(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    """Return the range of a sample type: all values of an integer, 0..1 of a float."""
    if dtype.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(dtype.type)  # type: ignore[type-var]  # an integer type, checked above
    return float(limits.min), float(limits.max)


def float_range(values_HW: npt.NDArray[Any]) -> tuple[float, float]:
    """Return what is black and white in a picture of floats, which declares nothing.

    0..1, the custom; but its own extremes where that would clip most of it, zeros aside: a map of
    Hounsfield units or of a temperature would become a threshold.
    """
    finite = values_HW[np.isfinite(values_HW)]
    shown = finite[finite != 0]
    if 2 * np.count_nonzero((shown < 0) | (shown > 1)) <= shown.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1.0


def _range(
    values_HW: npt.NDArray[np.generic], declared: tuple[float, float], spec: DecodeSpec
) -> tuple[float, float]:
    """Choose the range; a file whose white is the lower value keeps that order under every rule."""
    if spec.gray_range == "declared":
        return declared
    low, high = 0.0, float(2**spec.gray_bits - 1)
    if spec.gray_range == "window":
        low, high = spec.gray_window
    elif spec.gray_range == "min_max":
        finite = values_HW[np.isfinite(values_HW)] if values_HW.dtype.kind == "f" else values_HW
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
    return (low, high) if declared[0] < declared[1] else (high, low)


def _scale(values_N: npt.NDArray[np.generic], black: float, white: float) -> npt.NDArray[np.uint8]:
    with np.errstate(invalid="ignore", over="ignore"):
        scaled_N = (values_N.astype(np.float64) - black) * (255.0 / (white - black))
    clipped_N = np.clip(np.rint(scaled_N), 0, 255)
    result: npt.NDArray[np.uint8] = np.where(np.isnan(clipped_N), 0, clipped_N).astype(np.uint8)
    return result
