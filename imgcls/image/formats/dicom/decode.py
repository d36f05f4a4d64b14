"""DICOM files: which object it is, which decoder its transfer syntax takes, which frames.

In: a file with `DICM` at byte 128, or without. Out: images. Invariant: only the elements in
_ELEMENTS are read at all; no name, date or identifier of a patient is ever in memory as a value.

Needs the extra `dicom`: pydicom and what plugins.py names.
"""

import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from imgcls.errors import (
    CorruptImageError,
    NotAnImageError,
    UnsupportedImageError,
)
from imgcls.image.decoded import DecodedImage, Pixels
from imgcls.image.facts.source import see_modality
from imgcls.image.formats.dicom.bare import set_transfer_syntax, with_preamble
from imgcls.image.formats.dicom.grays import (
    color_frame,
    frame_values,
    gray_frame,
    palette_frame,
    significant,
)
from imgcls.image.formats.dicom.plugins import decode_stored, find_decoder
from imgcls.image.formats.raster.jpeg import check_jpeg
from imgcls.image.spec import DecodeSpec

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder

_JPEG_OF_DCT: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Kinds of objects that hold no pixels, by the names of their SOP classes (PS3.6, annex A). Of any
# other kind an object without pixels is a failure.
_WITHOUT_PIXELS: Final = re.compile(
    r"\bSR\b|Report|Key Object|Presentation State|Structure Set|\bRT (Ion |Brachy )?Plan|Treatment"
    r"|\bRT .*(Instruction|Intent|Physician|Segment Annotation|Radiation)|Waveform|\bECG\b"
    r"|Electro|Encapsulated|Media Storage Directory|Registration|Fiducials|Raw Data|Spectroscopy"
    r"|Surface S|Measurements|Procedure Log|Procedure Step|Real World Value|Hanging Protocol"
    r"|Color Palette|Implant|Defined Procedure Protocol|Performed Procedure|Structured Display"
    r"|Tractography|Stereometric|Content Assessment|Inventory|Audio"
)
_ELEMENTS: Final = [
    "SOPClassUID",
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    *_PIXELS,
]


def decode_dicom(
    data: bytes, spec: DecodeSpec, begin_frame: Callable[[int], None]
) -> Iterator[DecodedImage]:
    """Decode a DICOM file by the rules of the spec, frame by frame.

    Raises:
        DecodeError: what is decided here. Exceptions of pydicom pass: they mean corrupt, and what
            they say stays out of rows and logs: it may quote the file.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UnsupportedImageError("DICOM: pip install 'imgcls[dicom]' reads it") from error
    stream = io.BytesIO(with_preamble(data))
    dataset = pydicom.dcmread(stream, specific_tags=_ELEMENTS, force=True)
    _check_is_image(dataset)
    set_transfer_syntax(dataset)
    _check_size(dataset, spec)
    decoder, plugins = find_decoder(dataset)
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    says_frame = num_frames > 1 and spec.frames != "first"
    for index in spec.frames_of(num_frames):
        if says_frame:
            begin_frame(index)
        image_HWC = _decode_frame(dataset, decoder, plugins, index, spec)
        frame = index if says_frame else None
        yield DecodedImage(image_HWC, int(dataset.Columns), int(dataset.Rows), frame)


def _check_is_image(dataset: "Dataset") -> None:
    if any(name in dataset for name in _PIXELS) and "Rows" in dataset and "Columns" in dataset:
        return
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    # A damaged UID may hold a piece of anything: only names out of the standard's own list are
    # said.
    name = getattr(sop_class, "name", "")
    name = "an object" if name in ("", sop_class) else name
    if any(keyword in dataset for keyword in ("Rows", "Columns", "BitsAllocated")):
        raise CorruptImageError(f"DICOM: {name} that lacks its pixels or their size")
    if _WITHOUT_PIXELS.search(name):
        raise NotAnImageError(f"DICOM: {name} holds no image")
    if "Image Storage" in name:
        raise CorruptImageError(f"DICOM: {name} that lacks its pixels and their size")
    raise UnsupportedImageError(f"DICOM: {name} holds no image")


def _check_size(dataset: "Dataset", spec: DecodeSpec) -> None:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    spec.refuse_size(columns, rows)
    if rows == 0 or columns == 0:
        raise CorruptImageError(f"DICOM: {columns} x {rows} pixels")


def _decode_frame(
    dataset: "Dataset", decoder: "Decoder", plugins: tuple[str, ...], index: int, spec: DecodeSpec
) -> Pixels:
    """Return [H,W,C] of one frame."""
    see_modality(dataset.get("Modality"))
    is_native = plugins == ("",)
    is_odd = dataset.get("HighBit", 0) != dataset.get("BitsStored", 0) - 1
    if dataset.file_meta.TransferSyntaxUID in _JPEG_OF_DCT:  # Pillow is silent about damage
        check_jpeg(_encoded_frame(dataset, index))
    stored, says = decode_stored(dataset, decoder, plugins, index, correct_unused_bits=not is_odd)
    if stored.shape[:2] != (dataset.Rows, dataset.Columns):
        raise CorruptImageError("DICOM: the pixels have not the size that the object says")
    if stored.ndim == 2 and (is_odd or not is_native):
        stored = significant(stored, dataset, is_native=is_native)
    photometric = says["photometric_interpretation"]
    values = frame_values(dataset, index)
    image_HWC: Pixels
    if photometric == "PALETTE COLOR":
        image_HWC = palette_frame(stored, dataset)
    elif stored.ndim == 3:
        image_HWC = color_frame(stored, int(says["bits_stored"]), spec)
    else:
        image_HWC = gray_frame(stored, values, str(photometric), spec)
    return _in_channels(image_HWC, spec)


def _encoded_frame(dataset: "Dataset", index: int) -> bytes:
    from pydicom.encaps import get_frame

    num_frames = int(dataset.get("NumberOfFrames") or 1)
    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    offsets = (table, lengths) if table and lengths else None
    found: bytes = get_frame(
        dataset.PixelData, index, number_of_frames=num_frames, extended_offsets=offsets
    )
    return found


def _in_channels(image_HWC: Pixels, spec: DecodeSpec) -> Pixels:
    """Repeat a grey, or take the luma of a colour, as Pillow does for all other formats."""
    if image_HWC.shape[2] == spec.num_channels:
        return image_HWC
    if spec.num_channels == 3:
        return np.repeat(image_HWC, 3, axis=2)
    red, green, blue = (image_HWC[:, :, c].astype(np.uint32) for c in range(3))
    luma = red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16  # ITU-R 601-2, as Pillow's L
    return luma.astype(np.uint8)[:, :, np.newaxis]
