"""Greys deeper than 8 bits to 0..255, by the rule of the decode spec.

In: integer or float samples of one channel and the range that the file declares. Out: uint8, or
float32 of a spec of depth 16. Invariant: the map is linear and, but for the rule min_max, the same
for every image of a kind: a brighter sample is never darker in another image.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from imgcls.image.decoded import Pixels
from imgcls.image.facts.source import gray_kind, see_greys
from imgcls.image.spec import POOLED, DecodeSpec

PIXEL_TYPES: Final[dict[int, type[Any]]] = {8: np.uint8, 16: np.float32}

_CHUNK_SAMPLES: Final = 1 << 20


class _Range(NamedTuple):
    black: float
    white: float
    rule: str


def gray_pixels(
    values_HW: npt.NDArray[Any],
    declared: tuple[float, float],
    spec: DecodeSpec,
    *,
    bits: int = 0,
    modality: str = "",
    is_left_out_HW: npt.NDArray[np.bool_] | None = None,
) -> Pixels:
    """Map the samples of a grey to 0..255, clipped; NaN gives 0.

    Args:
        values_HW: [H,W] of any integer or float type.
        declared: the values that the file says are black and white (white may be the lower one).
        spec: its gray_range and what belongs to that choose the range.
        bits: of a sample; 0: as many as the declared range needs, or the type of a float.
        modality: of a DICOM file.
        is_left_out_HW: where they are padding.

    Returns:
        [H,W] uint8, rounded to nearest; of a spec of depth 16 float32, not rounded.
    """
    bits = bits or bits_of(values_HW.dtype, declared)
    kind = gray_kind(modality, values_HW.dtype)
    black, white, rule = _range(values_HW, declared, spec, kind=kind, is_deep=bits > 8)
    if bits > 8:
        see_greys(values_HW, bits=bits, rule=rule, kind=kind, is_left_out_HW=is_left_out_HW)
    return _map(values_HW, black, white, PIXEL_TYPES[spec.depth])


def to_uint8(
    values_HW: npt.NDArray[np.generic], declared: tuple[float, float], spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Map the samples of colours to 0..255, rounded to nearest, clipped; NaN gives 0.

    Args:
        values_HW: [H,W] of any integer or float type.
        declared: the values that the file says are none and all of a colour.
        spec: its gray_range, gray_bits and gray_window choose the range; measured ones are of
            greys, colours have the declared one then.

    Returns:
        uint8 [H,W].
    """
    black, white, _ = _range(values_HW, declared, spec, kind="", is_deep=False)
    return _map(values_HW, black, white, np.uint8)


def bits_of(dtype: np.dtype[Any], declared: tuple[float, float]) -> int:
    """Return the bits of a float type, or those that the declared whole numbers need."""
    if dtype.kind == "f":
        return 8 * dtype.itemsize
    return max(1, int(abs(declared[1] - declared[0])).bit_length())


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
    values_HW: npt.NDArray[np.generic],
    declared: tuple[float, float],
    spec: DecodeSpec,
    *,
    kind: str,
    is_deep: bool,
) -> _Range:
    """Choose the range; a file whose white is the lower value keeps that order under every rule."""
    rule: str = spec.gray_range
    low, high = 0.0, float(2**spec.gray_bits - 1)
    if rule == "window":
        low, high = spec.gray_window
    elif rule == "min_max":
        finite = values_HW[np.isfinite(values_HW)] if values_HW.dtype.kind == "f" else values_HW
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
    elif rule == "measured" and is_deep and spec.gray_ranges:
        measured = {name: (low, high) for name, low, high in spec.gray_ranges}
        rule = "measured" if kind in measured else "pooled"
        low, high = measured.get(kind, measured[POOLED])
    elif rule != "bits":
        return _Range(*declared, "declared")
    return _Range(low, high, rule) if declared[0] < declared[1] else _Range(high, low, rule)


def _map(
    values_HW: npt.NDArray[np.generic], black: float, white: float, dtype: type[Any]
) -> npt.NDArray[Any]:
    if values_HW.dtype in (np.uint16, np.int16):
        # A table of all 65,536 values is exact and several times as fast as arithmetic on each
        # pixel.
        values = np.arange(65536, dtype=np.uint16).view(values_HW.dtype)
        table = _scale(values, black, white, dtype)
        looked_up: npt.NDArray[Any] = table[values_HW.view(np.uint16)]
        return looked_up
    values_N = values_HW.reshape(-1)
    out_N = np.empty(values_N.size, dtype)
    for start in range(0, values_N.size, _CHUNK_SAMPLES):
        chunk = slice(start, start + _CHUNK_SAMPLES)
        out_N[chunk] = _scale(values_N[chunk], black, white, dtype)
    return out_N.reshape(values_HW.shape)


def _scale(
    values_N: npt.NDArray[np.generic], black: float, white: float, dtype: type[Any]
) -> npt.NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        scaled_N = (values_N.astype(np.float64) - black) * (255.0 / (white - black))
    if dtype is np.uint8:
        scaled_N = np.rint(scaled_N)
    clipped_N = np.clip(scaled_N, 0, 255)
    result: npt.NDArray[Any] = np.where(np.isnan(clipped_N), 0, clipped_N).astype(dtype)
    return result
