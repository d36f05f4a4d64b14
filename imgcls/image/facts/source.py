"""What a file held before its samples became 0..255: told by the decoders, for whoever asks.

In: samples on their way through a decoder. Out: a `SourceFacts` per decoded frame. Invariant: a
look changes no pixel, and is nobody's but the caller's: it begins and ends with one frame.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

# Enough to tell 9 levels from 4,096, in a fiftieth of the time that a picture of them takes.
MAX_SAMPLES: Final = 4_096
# For a range that a whole training set is fitted to.
_MAX_MEASURED_SAMPLES: Final = 65_536
# Of a picture's samples, in percent: what lies beyond are dead pixels, markers and burnt-in text.
ROBUST_PERCENTILES: Final = (0.1, 99.9)
_WINDOWS: Final = ("file", "ct_window")
_MODALITY: Final = re.compile(r"[A-Z0-9_]{1,16}")  # a code string of DICOM (PS3.5, 6.2)


@dataclass(slots=True)
class SourceFacts:
    """What the samples of one frame were."""

    bits: int = 8
    """Significant bits of a sample, 32 or 64 of a float."""
    modality: str = ""
    """Of a DICOM file, "" of any other."""
    levels: int | None = None
    """Distinct values of a grey deeper than 8 bits, among at most MAX_SAMPLES spread over it."""
    gray_rule: str = ""
    """Which rule said what is black and white in such a grey: file (its window or table),
    ct_window, declared, bits, window (the spec's), min_max, measured, or pooled, of a kind of greys
    that training did not see."""
    kind: str = ""
    """Which greys it shares a measured range with, see `gray_kind`."""
    extremes: tuple[float, float] | None = None
    """Its ROBUST_PERCENTILES, where the look asks for them and no window is declared."""

    def to_list(self) -> list[Any]:
        """Return JSON-able values, in order of the fields."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Self:
        """Return what `to_list` gave.

        Raises:
            TypeError, ValueError: it is something else.
        """
        bits, modality, levels, rule, kind, extremes = values
        low, high = extremes if extremes is not None else (0.0, 0.0)
        return cls(
            int(bits),
            known_modality(modality),
            None if levels is None else int(levels),
            str(rule),
            str(kind),
            None if extremes is None else (float(low), float(high)),
        )


Look = Literal["none", "facts", "ranges"]
"""What decoding an image also gives: what the file held, and where somebody may want to see it a
picture; or also the extremes of its greys, for a range that fits many."""


@dataclass(slots=True)
class _Looking:
    seen: SourceFacts
    look: Look


_looking: ContextVar[_Looking | None] = ContextVar("imgcls_looking", default=None)


@contextlib.contextmanager
def looking(look: Look) -> Iterator[SourceFacts]:
    """Have the decoders fill in what they see of the frame that is decoded within."""
    seen = SourceFacts()
    if look == "none":
        yield seen
        return
    token = _looking.set(_Looking(seen, look))
    try:
        yield seen
    finally:
        _looking.reset(token)


def see_bits(bits: int) -> None:
    """Tell the bits of a sample; fewer than 8 count as 8."""
    if (at := _looking.get()) is not None:
        at.seen.bits = max(bits, 8)


def see_modality(modality: object) -> None:
    """Tell the modality of a DICOM file."""
    if (at := _looking.get()) is not None:
        at.seen.modality = known_modality(modality)


def see_greys(
    values_HW: npt.NDArray[Any],
    *,
    bits: int,
    rule: str,
    kind: str,
    is_left_out_HW: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Tell the samples of a grey deeper than 8 bits; of one that is read in bands, of each.

    Args:
        values_HW: [H,W], of any integer or float type.
        bits: of a sample.
        rule: as `SourceFacts.gray_rule`.
        kind: as `gray_kind`.
        is_left_out_HW: where they are padding.
    """
    at = _looking.get()
    if at is None:
        return
    seen = at.seen
    values_N = _spread(values_HW, is_left_out_HW, MAX_SAMPLES)
    seen.bits, seen.gray_rule, seen.kind = bits, rule, kind
    seen.levels = max(seen.levels or 0, count_levels(values_N))
    if at.look == "ranges" and rule not in _WINDOWS:
        values_N = _spread(values_HW, is_left_out_HW, _MAX_MEASURED_SAMPLES)
        if values_N.size:
            low, high = np.percentile(values_N, ROBUST_PERCENTILES)
            before = seen.extremes or (float(low), float(high))
            seen.extremes = min(before[0], float(low)), max(before[1], float(high))


def known_modality(value: object) -> str:
    """Return a modality that is written as one, "" for any other text: it may be anything."""
    text = str(value or "").strip()
    return text if _MODALITY.fullmatch(text) else ""


def gray_kind(modality: str, dtype: np.dtype[Any]) -> str:
    """Return which greys have one scale: those of a modality; of other files the whole numbers."""
    return modality or ("float" if dtype.kind == "f" else "integer")


def count_levels(values_N: npt.NDArray[Any]) -> int:
    """Return how many distinct values there are."""
    if values_N.dtype.itemsize == 2 and values_N.dtype.kind in "iu":
        is_there = np.zeros(65_536, np.bool_)
        is_there[values_N.view(np.uint16)] = True
        return int(np.count_nonzero(is_there))
    in_order_N = np.sort(values_N)
    return int(np.count_nonzero(in_order_N[1:] != in_order_N[:-1])) + min(1, in_order_N.size)


def _spread(
    values_HW: npt.NDArray[Any],
    is_left_out_HW: npt.NDArray[np.bool_] | None,
    max_samples: int,
) -> npt.NDArray[Any]:
    """Return finite samples from all over a picture, in its own byte order."""
    step = max(1, math.ceil(math.sqrt(values_HW.size / max_samples)))
    values_N = values_HW[::step, ::step].ravel()
    if is_left_out_HW is not None:
        values_N = values_N[~is_left_out_HW[::step, ::step].ravel()]
    if values_N.dtype.kind == "f":
        values_N = values_N[np.isfinite(values_N)]
    return values_N.astype(values_N.dtype.newbyteorder("="), copy=False)
