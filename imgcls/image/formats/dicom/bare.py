"""DICOM without the preamble, or without the meta header too, as old scanners and exports write it.

In: encoded bytes, or what pydicom made of them. Out: whether they are DICOM; their transfer syntax.
Invariant: only a chain of elements in rising order, each within the file, is taken for DICOM.
"""

import struct
from typing import TYPE_CHECKING, Final

from imgcls.errors import UnsupportedImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Of the meta header, always explicit and little-endian, or of the data set.
_FIRST_GROUPS: Final = (0x0002, 0x0008)
_WORD_ALONE: Final = b"DICM\x02\x00"
_NUM_ELEMENTS: Final = 3
_LONG_VRS: Final = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT")
_VRS: Final = (
    *_LONG_VRS,
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN"),
    *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
)
_MAX_LENGTH: Final = 1024  # of the texts, dates and UIDs that a data set begins with
# By (is implicit, is little-endian).
_TRANSFER_SYNTAXES: Final = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}


def is_bare_dicom(data: bytes) -> bool:
    """Tell whether bytes are DICOM that does not say so at byte 128."""
    return data.startswith(_WORD_ALONE) or any(
        _is_chain(data, order, is_implicit)
        for order, is_implicit in (("<", False), ("<", True), (">", False))
    )


def with_preamble(data: bytes) -> bytes:
    """Return a file as pydicom reads it, its 128 bytes of preamble added where they alone lack."""
    return bytes(128) + data if data.startswith(_WORD_ALONE) else data


def set_transfer_syntax(dataset: "Dataset") -> None:
    """Complete the meta header of a data set that came without one, by how it could be read.

    Raises:
        UnsupportedImageError: its pixels are compressed: only the lost header said how.
    """
    if "TransferSyntaxUID" in dataset.file_meta:
        return
    from pydicom.uid import UID

    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise UnsupportedImageError(
            "DICOM: without its meta header nothing says how its pixels are compressed: export it "
            "as a DICOM file (PS3.10)"
        )
    is_implicit, is_little = dataset.original_encoding
    syntax = _TRANSFER_SYNTAXES[bool(is_implicit), bool(is_little)]
    dataset.file_meta.TransferSyntaxUID = UID(syntax)


def _is_chain(data: bytes, order: str, is_implicit: bool) -> bool:
    """Follow the first elements (PS3.5, section 7.1): rising tags from one of the first groups."""
    position, last_tag = 0, 0
    for number in range(_NUM_ELEMENTS):
        if position + 12 > len(data):
            return False
        group, element = struct.unpack_from(f"{order}HH", data, position)
        tag = group << 16 | element
        if (number == 0 and group not in _FIRST_GROUPS) or tag <= last_tag:
            return False
        length_at, length_format = position + 4, f"{order}I"
        if not is_implicit:
            vr = data[position + 4 : position + 6]
            if vr not in _VRS:
                return False
            is_long = vr in _LONG_VRS
            length_at = position + (8 if is_long else 6)
            length_format = f"{order}{'I' if is_long else 'H'}"
        (length,) = struct.unpack_from(length_format, data, length_at)
        position = length_at + struct.calcsize(length_format) + length
        if length % 2 or length > _MAX_LENGTH or position > len(data):
            return False
        last_tag = tag
    return True
