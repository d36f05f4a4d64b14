"""Tell an image format by its content; the name of a file proves nothing.

In: encoded bytes. Out: the name of the format. Invariant: only formats in FORMATS are ever handed
to a decoder, so no rarely used parser of a library can be reached by a hostile file.
"""

import re
from typing import Final

from imgcls.errors import UnsupportedImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PNM", "JPEG2000", "DICOM")

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),  # a bare codestream
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
)
# Formats that people do have and we do not read: the row's reason names them.
_UNREAD: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"v/1\x01", "OpenEXR"),
    (b"<?xml", "an XML document"),
    (b"<svg", "SVG"),
)
_PNM: Final = re.compile(rb"P[1-6f][ \t\r\n#]")
_DICOM_PREAMBLE_BYTES: Final = 128
_AVIF_BRANDS: Final = (b"avif", b"avis")


def sniff(data: bytes) -> str:
    """Return the format of encoded bytes, one of FORMATS.

    Raises:
        UnsupportedImageError: no format that we read; the message names what it is where that can
        be told.
    """
    if data[_DICOM_PREAMBLE_BYTES : _DICOM_PREAMBLE_BYTES + 4] == b"DICM":
        return "DICOM"  # first: its preamble may hold the header of a TIFF (PS3.10, 7.1)
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    if data[:2] == b"BM" and len(data) > 14:
        return "BMP"
    if _PNM.match(data):
        return "PNM"
    raise UnsupportedImageError(_what_it_is(data))


def _iso_media(data: bytes) -> str:
    """Tell AVIF from its relatives by the major or a compatible brand (ISO/IEC 14496-12, 4.3)."""
    box_bytes = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, box_bytes, 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    major = data[8:12].decode("ascii", "replace")
    kind = "HEIF" if any(b[:3] in (b"hei", b"hev", b"mif") for b in brands) else "ISO media"
    raise UnsupportedImageError(f"{kind} of brand {major!r} is not read")


def _what_it_is(data: bytes) -> str:
    if not data:
        return "the file is empty"
    for magic, name in _UNREAD:
        if data.startswith(magic):
            return f"{name}, not an image that imgcls reads"
    if b"<html" in data[:1024].lower() or b"<!doctype html" in data[:1024].lower():
        return "an HTML page, not an image"
    return f"no known image format (begins with {data[:8].hex(' ')})"
