"""DICOM sample values to greys: modality, then window, then polarity, each once (PS3.4, N.2).

In: stored samples of one frame and the attributes that hold for it. Out: [H,W,C] 0..255.
Invariant: padding is black under every rule, and polarity is applied at one place only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.image.decoded import Pixels
from imgcls.image.facts.source import gray_kind, known_modality, see_bits, see_greys
from imgcls.image.formats.dicom.lookup_tables import palette, usable_tables
from imgcls.image.formats.gray import (
    PIXEL_TYPES,
    float_range,
    gray_pixels,
    to_uint8,
)
from imgcls.image.spec import DecodeSpec

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Centre and width in Hounsfield units, as radiology departments commonly set them.
CT_WINDOWS: Final[dict[str, tuple[float, float]]] = {
    "lung": (-600.0, 1500.0),
    "soft_tissue": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "mediastinum": (50.0, 350.0),
}
_THREE_WINDOWS: Final = ("lung", "soft_tissue", "bone")


@dataclass(frozen=True, slots=True)
class FrameValues:
    """The attributes that turn the stored samples of one frame into greys."""

    dataset: "Dataset"
    """The whole object: bits, padding, modality."""
    transformation: "Dataset"
    """Holds rescale or modality LUT: a functional group of the frame or of all, or the object."""
    voi: "Dataset"
    """Holds windows or VOI LUTs: likewise."""


def frame_values(dataset: "Dataset", index: int) -> FrameValues:
    """Find the attributes of one frame; in enhanced objects they sit in functional groups."""
    groups = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if index < len(per_frame):
        groups.append(per_frame[index])
    groups.extend((dataset.get("SharedFunctionalGroupsSequence") or [])[:1])

    def find(sequence: str) -> "Dataset":
        items = [group[sequence].value[0] for group in groups if group.get(sequence)]
        return items[0] if items else dataset

    return FrameValues(
        dataset, find("PixelValueTransformationSequence"), find("FrameVOILUTSequence")
    )


def gray_frame(
    stored_HW: npt.NDArray[Any], values: FrameValues, photometric: str, spec: DecodeSpec
) -> Pixels:
    """Return [H,W,1] of a MONOCHROME frame, or [H,W,3] where the spec takes three windows.

    uint8, of a spec of depth 16 float32, 0..255.
    """
    real_HW, declared = _modality(stored_HW, values)
    is_padding_HW = _is_padding(stored_HW, values.dataset)
    is_ct = values.dataset.get("Modality") == "CT"
    grays = _Grays(real_HW, stored_HW, declared, values, spec, is_padding_HW)
    if spec.dicom_window in CT_WINDOWS and is_ct:
        channels = [grays.by_window("ct_window", *CT_WINDOWS[spec.dicom_window])]
    elif spec.dicom_window == "lung_soft_bone" and is_ct:
        channels = [grays.by_window("ct_window", *CT_WINDOWS[name]) for name in _THREE_WINDOWS]
    elif spec.dicom_window == "none":
        channels = [grays.by_range()]
    else:
        channels = [grays.by_file()]
    image_HWC = np.stack(channels, axis=-1)
    # Presentation LUT Shape INVERSE says of a MONOCHROME1 image what its photometric interpretation
    # says already (PS3.3, C.11.6): the two together invert once.
    inverse = values.dataset.get("PresentationLUTShape") == "INVERSE"
    if photometric == "MONOCHROME1" or inverse:
        image_HWC = 255 - image_HWC
    image_HWC[is_padding_HW] = 0
    return image_HWC


def palette_frame(stored_HW: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,3] of a PALETTE COLOR frame."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        from pydicom.pixels.processing import apply_color_lut

        colors_HWC = apply_color_lut(stored_HW, dataset)
        return _by_bits(colors_HWC, 8 * colors_HWC.dtype.itemsize)
    table = palette(dataset)
    return _by_bits(table.look_up(stored_HW), table.bits)


def color_frame(
    stored_HWC: npt.NDArray[Any], bits_stored: int, spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,3] of a colour frame; beyond 8 bits by the spec's range for the picture."""
    see_bits(bits_stored)
    if bits_stored <= 8:
        return _by_bits(stored_HWC, bits_stored)
    flat_HN = stored_HWC.reshape(stored_HWC.shape[0], -1)
    return to_uint8(flat_HN, (0.0, 2.0**bits_stored - 1), spec).reshape(stored_HWC.shape)


def significant(
    stored_HW: npt.NDArray[Any], dataset: "Dataset", *, is_native: bool
) -> npt.NDArray[Any]:
    """Return the samples of a grey frame without what stands beside them: overlays, rubbish.

    They end at the bit HighBit and have BitsStored bits (PS3.5, 8.1.1). A codec gives them shifted
    down where it stored no more than these bits.
    """
    if stored_HW.dtype.kind == "f":
        return stored_HW
    bits, allocated = int(dataset.BitsStored), 8 * stored_HW.itemsize
    if not 0 < bits < allocated:
        return stored_HW
    in_order_HW = stored_HW.astype(stored_HW.dtype.newbyteorder("="), copy=False)
    raw_HW = in_order_HW.view(f"u{stored_HW.itemsize}")
    shift = max(0, int(dataset.get("HighBit") or bits - 1) + 1 - bits)
    if shift and (is_native or not _fit(in_order_HW, bits)):
        raw_HW = raw_HW >> shift
    raw_HW = raw_HW & ((1 << bits) - 1)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        sign = 1 << (bits - 1)
        return ((raw_HW ^ sign) - sign).view(f"i{stored_HW.itemsize}")
    return raw_HW


def _fit(values_HW: npt.NDArray[Any], bits: int) -> bool:
    low, high = int(values_HW.min()), int(values_HW.max())
    half = 1 << (bits - 1)
    return (low >= 0 and high < 2 * half) or (low >= -half and high < half)


def _by_bits(colors_HWC: npt.NDArray[Any], bits_stored: int) -> npt.NDArray[np.uint8]:
    """Scale colour samples of `bits_stored` bits to 0..255, rounded to nearest."""
    if bits_stored == 8 and colors_HWC.dtype == np.uint8:
        return colors_HWC
    scaled = np.rint(colors_HWC.astype(np.float64) * (255.0 / (2**bits_stored - 1)))
    result: npt.NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return result


def _modality(
    stored_HW: npt.NDArray[Any], values: FrameValues
) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Apply the modality LUT, else the rescale; return also what the stored range becomes."""
    declared = _stored_range(stored_HW, values.dataset)
    source = values.transformation
    if tables := usable_tables(source.get("ModalityLUTSequence"), values.dataset)[:1]:
        return tables[0].look_up(stored_HW), (0.0, 2.0 ** tables[0].bits - 1)
    slope = _finite(source.get("RescaleSlope")) or 1.0  # 0 would make every picture one grey
    intercept = _finite(source.get("RescaleIntercept")) or 0.0
    if (slope, intercept) == (1.0, 0.0):
        return stored_HW, declared
    real_HW = stored_HW.astype(np.float64) * slope + intercept
    ends = sorted(end * slope + intercept for end in declared)
    return real_HW, (ends[0], ends[1])


def _finite(value: object) -> float | None:
    """Return a decimal string as a number, None where it is empty or not finite."""
    numbers = [number for number in _numbers(value) if np.isfinite(number)]
    return numbers[0] if numbers else None


def _stored_range(stored_HW: npt.NDArray[Any], dataset: "Dataset") -> tuple[float, float]:
    if stored_HW.dtype.kind == "f":
        return float_range(stored_HW)
    bits = int(dataset.BitsStored)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


@dataclass(frozen=True, slots=True, eq=False)
class _Grays:
    """The ways from the values of one frame to greys 0..255."""

    real_HW: npt.NDArray[Any]
    stored_HW: npt.NDArray[Any]
    declared: tuple[float, float]
    values: FrameValues
    spec: DecodeSpec
    is_padding_HW: npt.NDArray[np.bool_]

    def by_file(self) -> Pixels:
        """Apply the file's VOI LUT or window, the one that the spec's index chooses, else a range.

        A table without entries and a window without a width show nothing: they count as not there.
        """
        source, index = self.values.voi, self.spec.dicom_window_index
        if tables := usable_tables(source.get("VOILUTSequence"), self.values.dataset):
            table = tables[min(index, len(tables) - 1)]
            self._see("file")
            looked_up = table.look_up(self.real_HW)
            if self.spec.depth == 8:
                return _by_bits(looked_up, table.bits)
            shown_HW: Pixels = looked_up.astype(np.float32)
            shown_HW *= 255 / (2**table.bits - 1)
            return shown_HW.clip(0, 255)
        pairs = zip(
            _numbers(source.get("WindowCenter")), _numbers(source.get("WindowWidth")), strict=False
        )
        windows = [(c, w) for c, w in pairs if np.isfinite((c, w)).all() and w > 0]
        if not windows:
            return self.by_range()
        center, width = windows[min(index, len(windows) - 1)]
        is_float = self.stored_HW.dtype.kind == "f"
        function = str(source.get("VOILUTFunction") or "LINEAR")
        return self.by_window("file", center, width, function, is_float=is_float)

    def by_range(self) -> Pixels:
        """Apply the range of the spec."""
        return gray_pixels(
            self.real_HW,
            self.declared,
            self.spec,
            bits=self._bits,
            modality=known_modality(self.values.dataset.get("Modality")),
            is_left_out_HW=self.is_padding_HW,
        )

    def by_window(
        self,
        rule: str,
        center: float,
        width: float,
        function: str = "LINEAR",
        *,
        is_float: bool = False,
    ) -> Pixels:
        """Apply a window, see `_window`."""
        self._see(rule)
        depth = self.spec.depth
        return _window(self.real_HW, center, width, function, is_float=is_float, depth=depth)

    @property
    def _bits(self) -> int:
        if self.stored_HW.dtype.kind == "f":
            return 8 * self.stored_HW.itemsize
        return int(self.values.dataset.BitsStored)

    def _see(self, rule: str) -> None:
        if self._bits > 8:
            modality = known_modality(self.values.dataset.get("Modality"))
            kind = gray_kind(modality, self.real_HW.dtype)
            left_out = self.is_padding_HW
            see_greys(
                self.stored_HW, bits=self._bits, rule=rule, kind=kind, is_left_out_HW=left_out
            )


def _numbers(value: object) -> list[float]:
    if value is None or value == "":
        return []
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [float(v) for v in value]
    return [float(str(value))]


def _window(
    real_HW: npt.NDArray[Any],
    center: float,
    width: float,
    function: str = "LINEAR",
    *,
    is_float: bool = False,
    depth: int = 8,
) -> Pixels:
    """Map a window to 0..255, rounded at depth 8 (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    LINEAR is made for integers: its ends are samples, and a width of 1 is a threshold. Dose, SUV
    and perfusion are fractions, and are written with it all the same: a width of 1 or less is
    LINEAR_EXACT for them, and any width where the file stores floats. A function that the standard
    does not know is LINEAR, its default.
    """
    x = real_HW.astype(np.float64)
    if function not in ("LINEAR_EXACT", "SIGMOID"):
        is_exact = is_float or width < 1 or (width == 1 and not _are_integers(x))
        function = "LINEAR_EXACT" if is_exact else "LINEAR"
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
        if width == 0:  # a threshold
            return np.where(x > center, 255, 0).astype(PIXEL_TYPES[depth])
    # In place: to have a picture of doubles once more takes longer than any of these steps.
    with np.errstate(over="ignore", invalid="ignore"):
        x -= center
        x /= width
        if function == "SIGMOID":
            x = 1 / (1 + np.exp(-4 * x))
        else:
            x += 0.5
        if is_float:
            np.nan_to_num(x, copy=False, nan=0.0)
        x *= 255
        if depth == 8:
            np.rint(x, out=x)
    np.clip(x, 0, 255, out=x)
    pixels: Pixels = x.astype(PIXEL_TYPES[depth])
    return pixels


def _are_integers(x: npt.NDArray[np.float64]) -> bool:
    return bool((x == np.rint(x)).all())


def _is_padding(stored_HW: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.bool_]:
    """Return where the stored samples are padding (PS3.3, C.7.5.1.1.2)."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return np.zeros(stored_HW.shape, np.bool_)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted((int(padding), int(padding if limit is None else limit)))
    result: npt.NDArray[np.bool_] = (stored_HW >= ends[0]) & (stored_HW <= ends[1])
    return result
