"""Tell a file by its content; the name of a file proves nothing.

In: encoded bytes. Out: the name of the format. Invariant: only formats in FORMATS are ever handed
to a decoder, so no rarely used parser of a library can be reached by a hostile file.

What a file is called in the column `format` (its family) is written here and nowhere else.
"""

import re
from dataclasses import dataclass
from typing import Final

from imgcls.errors import NotAnImageError, UnsupportedImageError
from imgcls.image.formats.dicom.bare import is_bare_dicom
from imgcls.image.formats.names import name_unread, peek_gzip
from imgcls.image.formats.raster.jpeg_markers import SCALABLE, read_frame

FORMATS: Final = (
    "JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF", "PNM", "JPEG2000", "DICOM",
)  # fmt: skip

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
# What lies beside images and is none.
_NOT_IMAGES: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"%PDF", "pdf", "a PDF document"),
    (b"PK\x03\x04", "zip", "a zip archive"),
    (b"PK\x05\x06", "zip", "a zip archive"),
    (b"\x1f\x8b", "gzip", "a gzip file"),
    (b"BZh", "bzip2", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "xz", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "zstd", "a Zstandard file"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "a 7z archive"),
    (b"Rar!\x1a\x07", "rar", "a RAR archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "ole", "an OLE document (Thumbs.db, .doc, .xls)"),
    (b"\x00\x00\x00\x01Bud1", "ds_store", "a folder's settings of macOS (.DS_Store)"),
    (b"\x00\x05\x16\x07", "appledouble", "a file's attributes of macOS (AppleDouble)"),
    (b"SQLite format 3\x00", "sqlite", "a SQLite database"),
    (b"PAR1", "parquet", "a Parquet file"),
    (b"\x7fELF", "program", "a program"),
    (b"MZ\x90\x00", "program", "a program"),
    (b"L\x00\x00\x00\x01\x14\x02\x00", "lnk", "a shortcut of Windows"),
    (b"{\\rtf", "rtf", "an RTF document"),
    (b"\x1aE\xdf\xa3", "video", "a video (Matroska)"),
    (b"\x00\x00\x01\xba", "video", "a video (MPEG)"),
    (b"\x00\x00\x01\xb3", "video", "a video (MPEG)"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video", "a video (ASF)"),
    (b"FLV\x01", "video", "a video (FLV)"),
)
_PNM: Final = re.compile(rb"P(?:[4-6f][ \t\r\n#]|[1-3]\s+(?:#[^\n]*\n\s*)*\d)")
_BMP_HEADER_BYTES: Final = (12, 16, 40, 52, 56, 64, 108, 124)
_PNG_DEPTH_AT: Final = 24
_PNG_DEEP_COLORS: Final = (b"\x10\x02", b"\x10\x04", b"\x10\x06")
_DICOM_PREAMBLE_BYTES: Final = 128
_AVIF_BRANDS: Final = (b"avif", b"avis")
# Of still images by HEVC, AVC, JPEG and their like, and of structure alone (ISO/IEC 23008-12).
_HEIF_BRANDS: Final = (
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2",
    b"msf1", b"avci", b"avcs", b"jpeg", b"jpgs", b"j2ki", b"miaf",
)  # fmt: skip
_VIDEO_BRANDS: Final = (b"iso", b"mp4", b"avc", b"M4", b"qt ", b"3g", b"dash", b"f4v")
_TAR_MAGIC_AT: Final = 257
# A text shows itself within these; shorter ones must be UTF-8, for a few bytes may be anything.
_TEXT_BYTES: Final = 4096
_MIN_LATIN_BYTES: Final = 64
_MAX_HIGH_FRACTION: Final = 0.3
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Told:
    """What a content says of itself."""

    family: str | None
    """As in the column `format`; None where the content says nothing."""
    words: str = ""
    """For people, why it is not read; "" for one of FORMATS."""
    is_image: bool = True
    """False only where the content is surely something else than an image."""


def sniff(data: bytes) -> str:
    """Return the format of encoded bytes, one of FORMATS.

    Raises:
        NotAnImageError: the content is something else than an image; the message says what.
        UnsupportedImageError: no format that we read; the message names what it is where that can
        be told.
    """
    told = _tell(data)
    if not told.is_image:
        raise NotAnImageError(told.words)
    if told.words or told.family is None:
        raise UnsupportedImageError(told.words)
    return told.family.upper()


def family_of(data: bytes) -> str | None:
    """Return the format family of a content, as the column `format` has it, or None.

    A JPEG that is not grey or of three channels, or not of a process that is scaled, is jpeg_rare;
    a PNG of 16-bit colours is png_deep.
    """
    family = _tell(data).family
    if family == "jpeg":
        frame = read_frame(data)
        is_common = frame.marker in SCALABLE and frame.num_channels in (1, 3)
        return family if is_common or not frame.marker else "jpeg_rare"
    if family == "png" and data[_PNG_DEPTH_AT : _PNG_DEPTH_AT + 2] in _PNG_DEEP_COLORS:
        return "png_deep"
    return family


def _tell(data: bytes) -> Told:
    if data[_DICOM_PREAMBLE_BYTES : _DICOM_PREAMBLE_BYTES + 4] == b"DICM":
        return Told("dicom")  # first: its preamble may hold the header of a TIFF (PS3.10, 7.1)
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return Told(name.lower())
    if data[:4] == b"RIFF":
        return _riff(data)
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES:
        return Told("bmp")
    if _PNM.match(data):
        return Told("pnm")
    return _what_it_is(data)


def _riff(data: bytes) -> Told:
    match data[8:12]:
        case b"WEBP":
            return Told("webp")
        case b"AVI ":
            return Told("video", "a video (AVI)", is_image=False)
        case b"WAVE":
            return Told("audio", "a sound (WAVE)", is_image=False)
    return _unknown(data)


def _iso_media(data: bytes) -> Told:
    """Tell AVIF from its relatives by the major or a compatible brand (ISO/IEC 14496-12, 4.3)."""
    box_bytes = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, box_bytes, 4))]
    if brands[0] == b"mif3":  # a minimized container says its coding as its version
        is_hevc = data[12:16] == b"heic"
        words = "HEIF with a minimized header is not read: convert it to PNG or TIFF"
        return Told("heif", "" if is_hevc else words)
    if any(brand in _AVIF_BRANDS for brand in brands):
        return Told("avif")
    if any(brand in _HEIF_BRANDS for brand in brands):
        return Told("heif")
    major = data[8:12].decode("ascii", "replace")
    if major == "crx ":
        return Told("raw", "Canon CR3: a camera raw is not read: develop it to TIFF, PNG or JPEG")
    if major == "jxl ":
        return Told("jpegxl", "JPEG XL is not read: convert it to PNG or TIFF")
    if brands[0].startswith(_VIDEO_BRANDS):
        return Told("video", "a video (MP4, QuickTime)", is_image=False)
    return Told(None, f"ISO media of brand {major!r} is not read")


def _what_it_is(data: bytes) -> Told:
    """Name what is not read: an image, something else, or nothing known."""
    if not data:
        return Told(None, "the file is empty")
    if is_bare_dicom(data):
        return Told("dicom")
    if unread := name_unread(data):
        return Told(*unread)
    if (inside := _tell(peek_gzip(data))).is_image and inside.family:
        if not inside.words:
            return Told("gzip", f"a gzip file that holds {inside.family.upper()}: unpack it")
        return Told(inside.family, f"{inside.words} (and unpack the gzip file)")
    for magic, family, words in _NOT_IMAGES:
        if data.startswith(magic):
            return Told(family, words, is_image=False)
    if data[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return Told("tar", "a tar archive", is_image=False)
    return _text(data) if _is_text(data[:_TEXT_BYTES]) else _unknown(data)


def _text(data: bytes) -> Told:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return Told("svg", "SVG is not read: convert it to PNG or TIFF")
    if b"<html" in start or b"<!doctype html" in start:
        return Told("html", "an HTML page", is_image=False)
    if start.startswith(b"<"):
        return Told("xml", "an XML document", is_image=False)
    if start.startswith((b"{", b"[{", b"[\n")):
        return Told("json", "a JSON document", is_image=False)
    return Told("text", "a text", is_image=False)


def _is_text(start: bytes) -> bool:
    """Tell whether bytes are surely text: UTF-8, UTF-16 with its mark, or a Latin code page."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = start[: len(start) & ~1].decode("utf-16", "replace")
        return "\ufffd" not in text[:-1] and text.replace("\r", "").replace("\n", "").isprintable()
    if _CONTROL.search(start):
        return False
    try:
        start[:-3].decode() if len(start) == _TEXT_BYTES else start.decode()
    except UnicodeDecodeError as error:
        if len(start) == _TEXT_BYTES and error.start >= len(start) - 6:
            return True  # a character that was cut
        high = sum(byte >= 0x80 for byte in start)
        return len(start) >= _MIN_LATIN_BYTES and high <= _MAX_HIGH_FRACTION * len(start)
    return True


def _unknown(data: bytes) -> Told:
    del data  # not shown: a list of images may name any file, and this goes into a table
    return Told(None, "no known image format")
