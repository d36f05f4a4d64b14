"""DICOM sample values to greys: modality, then window, then polarity, each once (PS3.4, N.2).

In: stored samples of one frame and the attributes that hold for it. Out: uint8 [H,W,C].
Invariant: padding is black under every rule, and polarity is applied at one place only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.errors import CorruptImageError
from imgcls.image.gray import to_uint8
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
) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,1] of a MONOCHROME frame, or [H,W,3] where the spec takes three windows."""
    real_HW, declared = _modality(stored_HW, values)
    is_ct = values.dataset.get("Modality") == "CT"
    if spec.dicom_window in CT_WINDOWS and is_ct:
        channels = [_window(real_HW, *CT_WINDOWS[spec.dicom_window])]
    elif spec.dicom_window == "lung_soft_bone" and is_ct:
        channels = [_window(real_HW, *CT_WINDOWS[name]) for name in _THREE_WINDOWS]
    elif spec.dicom_window == "none":
        channels = [to_uint8(real_HW, declared, spec)]
    else:
        channels = [_voi(real_HW, declared, values.voi, spec)]
    image_HWC = np.stack(channels, axis=-1)
    # Presentation LUT Shape INVERSE says of a MONOCHROME1 image what its photometric interpretation
    # says already (PS3.3, C.11.6): the two together invert once.
    inverse = values.dataset.get("PresentationLUTShape") == "INVERSE"
    if photometric == "MONOCHROME1" or inverse:
        image_HWC = 255 - image_HWC
    image_HWC[_is_padding(stored_HW, values.dataset)] = 0
    return image_HWC


def palette_frame(stored_HW: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,3] of a PALETTE COLOR frame."""
    from pydicom.pixels.processing import apply_color_lut

    colors_HWC = apply_color_lut(stored_HW, dataset)
    return to_uint8_by_bits(colors_HWC, 8 * colors_HWC.dtype.itemsize)


def to_uint8_by_bits(colors_HWC: npt.NDArray[Any], bits_stored: int) -> npt.NDArray[np.uint8]:
    """Scale colour samples of `bits_stored` bits to 0..255, rounded to nearest."""
    if bits_stored == 8 and colors_HWC.dtype == np.uint8:
        return colors_HWC
    high = 2**bits_stored - 1
    scaled = np.rint(colors_HWC.astype(np.float64) * (255.0 / high))
    result: npt.NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return result


def _modality(
    stored_HW: npt.NDArray[Any], values: FrameValues
) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Apply the modality LUT, else the rescale; return also what the stored range becomes."""
    declared = _stored_range(stored_HW, values.dataset)
    source = values.transformation
    if source.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        entries = source.ModalityLUTSequence[0]
        bits = int(entries.LUTDescriptor[2])
        return apply_modality_lut(stored_HW, source), (0.0, 2.0**bits - 1)
    slope = float(source.get("RescaleSlope") if source.get("RescaleSlope") is not None else 1)
    intercept = float(source.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1.0, 0.0):
        return stored_HW, declared
    real_HW = stored_HW.astype(np.float64) * slope + intercept
    ends = sorted(end * slope + intercept for end in declared)
    return real_HW, (ends[0], ends[1])


def _stored_range(stored_HW: npt.NDArray[Any], dataset: "Dataset") -> tuple[float, float]:
    if stored_HW.dtype.kind == "f":
        return 0.0, 1.0
    bits = int(dataset.BitsStored)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _voi(
    real_HW: npt.NDArray[Any], declared: tuple[float, float], source: "Dataset", spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Apply the file's VOI LUT or window, the one that the spec's index chooses, else its range."""
    if source.get("VOILUTSequence"):
        from pydicom.pixels.processing import apply_voi

        index = min(spec.dicom_window_index, len(source.VOILUTSequence) - 1)
        bits = int(source.VOILUTSequence[index].LUTDescriptor[2])
        mapped_HW = apply_voi(np.rint(real_HW).astype(np.int64), source, index=index)
        return to_uint8_by_bits(mapped_HW, bits)
    centers, widths = _numbers(source.get("WindowCenter")), _numbers(source.get("WindowWidth"))
    if not centers or not widths:
        return to_uint8(real_HW, declared, spec)
    index = min(spec.dicom_window_index, len(centers) - 1, len(widths) - 1)
    function = source.get("VOILUTFunction") or "LINEAR"
    return _window(real_HW, centers[index], widths[index], str(function))


def _numbers(value: object) -> list[float]:
    if value is None or value == "":
        return []
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [float(v) for v in value]
    return [float(str(value))]


def _window(
    real_HW: npt.NDArray[Any], center: float, width: float, function: str = "LINEAR"
) -> npt.NDArray[np.uint8]:
    """Map a window to 0..255 (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Raises:
        CorruptImageError: a width that the function does not allow, or a function that there is
        not.
    """
    x = real_HW.astype(np.float64)
    if function == "LINEAR":
        if width < 1:
            raise CorruptImageError(f"DICOM: window width {width} is below 1")
        center, width = center - 0.5, width - 1
        if width == 0:  # a threshold
            return np.where(x > center, 255, 0).astype(np.uint8)
        y = (x - center) / width + 0.5
    elif function in ("LINEAR_EXACT", "SIGMOID"):
        if width <= 0:
            raise CorruptImageError(f"DICOM: window width {width} is not above 0")
        with np.errstate(over="ignore"):
            exact = (x - center) / width
            y = exact + 0.5 if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * exact))
    else:
        raise CorruptImageError("DICOM: a VOI LUT function that there is not")
    result: npt.NDArray[np.uint8] = np.clip(np.rint(y * 255), 0, 255).astype(np.uint8)
    return result


def _is_padding(stored_HW: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.bool_]:
    """Return where the stored samples are padding (PS3.3, C.7.5.1.1.2)."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return np.zeros(stored_HW.shape, np.bool_)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted((int(padding), int(padding if limit is None else limit)))
    result: npt.NDArray[np.bool_] = (stored_HW >= ends[0]) & (stored_HW <= ends[1])
    return result
