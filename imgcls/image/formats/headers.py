"""What must be known of a file before, or although, a library decodes it.

In: encoded bytes. Out: sizes, or an error. Invariant: nothing is allocated by what a header claims.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from PIL import Image

from imgcls.errors import CorruptImageError
from imgcls.image.spec import DecodeSpec

_PNG_SIGNATURE_BYTES: Final = 8
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_HEADER: Final = struct.Struct(">IIBBBBB")
_XMP: Final = b"XML:com.adobe.xmp\0"
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
# First column, first row, column step, row step of each pass (PNG 1.2, section 2.6).
_ONE_PASS: Final = ((0, 0, 1, 1),)
_ADAM7: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_INFLATE_BYTES: Final = 1 << 20
# Known chunks that decide neither about pixels nor frames nor how the picture is turned (PNG 3rd
# edition, 11.3, and the extensions of 2003). A damaged name is not a known one.
_PNG_IDLE: Final = (
    *(b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"cICP", b"mDCV", b"cLLI", b"bKGD", b"hIST", b"sPLT"),
    *(b"pHYs", b"tIME", b"oFFs", b"pCAL", b"sCAL", b"sTER", b"dSIG", b"gIFg", b"gIFx"),
)
_PNG_TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt")
_PNG_DECISIVE: Final = (
    *(b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"),
)
_PNG_DECISIVE_TEXTS: Final = (b"Raw profile type exif\0", b"Raw profile type APP1\0", _XMP)
_PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
# Smallest VP8L image with its signature, and what VP8 and VP8X have before their first pixel.
_WEBP_LOSSLESS_HEADER_BYTES: Final = 5
_WEBP_HEADER_BYTES: Final = 10


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the canvas (RFC 9649, sections 2.5 to 2.7).

    Raises:
        CorruptImageError: the header is cut, or its first chunk is none that a WebP may begin with.
    """
    kind, head = data[12:16], data[20:30]
    if len(head) < (_WEBP_LOSSLESS_HEADER_BYTES if kind == b"VP8L" else _WEBP_HEADER_BYTES):
        raise CorruptImageError("WEBP: the header is cut")
    if kind == b"VP8X":
        width = int.from_bytes(head[4:7], "little") + 1
        height = int.from_bytes(head[7:10], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width = int.from_bytes(head[6:8], "little") & 0x3FFF
        height = int.from_bytes(head[8:10], "little") & 0x3FFF
    else:
        raise CorruptImageError(f"WEBP: first chunk {kind!r}")
    return width, height


def checked_png(data: bytes, spec: DecodeSpec) -> bytes:
    """Return a PNG without the chunks that decide nothing, the rest with right checksums.

    Decoders skip the checksums of pixels and stumble over texts. What lacks only its end gets one;
    whether all rows are there, `check_png_is_complete` tells.

    Raises:
        CorruptImageError: such a chunk is cut or its checksum is wrong: its pixels may be, too.
    """
    kept: list[bytes | memoryview] = [data[:_PNG_SIGNATURE_BYTES]]
    is_animated = False
    for chunk in _png_chunks(data):
        if _is_idle(chunk, spec):
            continue
        if not chunk.is_whole:
            raise CorruptImageError(f"PNG: {_named(chunk.kind)} is cut")
        if zlib.crc32(chunk.body, zlib.crc32(chunk.kind)) != chunk.checksum:
            raise CorruptImageError(f"PNG: wrong checksum of {_named(chunk.kind)}")
        is_animated = is_animated or chunk.kind == b"acTL"
        kept.append(chunk.stored)
    if is_animated and _PNG_END[4:8] not in data[-16:]:
        raise CorruptImageError("PNG: the end is missing")
    return b"".join((*kept, _PNG_END))


def _named(kind: bytes) -> str:
    """Return what to call a chunk: by its name only where that is not a piece of anything else."""
    is_known = kind in (*_PNG_DECISIVE, *_PNG_IDLE, *_PNG_TEXTS)
    return f"chunk {kind.decode()}" if is_known else "an unknown chunk"


def _is_idle(chunk: "_PngChunk", spec: DecodeSpec) -> bool:
    if chunk.kind in _PNG_TEXTS:
        return not bytes(chunk.body[:24]).startswith(_PNG_DECISIVE_TEXTS)
    return chunk.kind in _PNG_IDLE or (chunk.kind == b"iCCP" and spec.icc == "ignore")


def check_png_is_complete(image: Image.Image, data: bytes) -> None:
    """Refuse a PNG with fewer rows than its header says: a decoder leaves the missing ones zero.

    Counting takes half as long as decoding: it is done only where the last row is zero, or the rows
    are interlaced.

    Args:
        image: the loaded PNG.
        data: the whole file, as `checked_png` gives it.

    Raises:
        CorruptImageError: rows are missing.
    """
    header = _PNG_HEADER.unpack_from(data, _PNG_SIGNATURE_BYTES + _PNG_CHUNK.size)
    width, height, depth, color_type, _, _, interlace = header
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if not interlace and any(last_row.tobytes()):
        return
    bits_per_pixel = depth * _PNG_SAMPLES[color_type]
    expected = 0
    for x0, y0, dx, dy in _ADAM7 if interlace else _ONE_PASS:
        columns, rows = -(-(width - x0) // dx), -(-(height - y0) // dy)
        if columns > 0:
            expected += max(0, rows) * (1 + -(-columns * bits_per_pixel // 8))
    if _inflated_bytes(data, expected) < expected:
        raise CorruptImageError("PNG: rows are missing")


def _inflated_bytes(data: bytes, enough: int) -> int:
    """Count what the IDAT chunks inflate to, up to `enough`, a little at a time."""
    inflater = zlib.decompressobj()
    total = 0
    for chunk in _png_chunks(data):
        left: bytes | memoryview = chunk.body if chunk.kind == b"IDAT" else b""
        while left and total < enough:
            total += len(inflater.decompress(left, _INFLATE_BYTES))
            left = inflater.unconsumed_tail
    return total


class _PngChunk(NamedTuple):
    kind: bytes
    body: memoryview
    checksum: int
    stored: memoryview
    """All of it as it stands in the file."""
    is_whole: bool


def _png_chunks(data: bytes) -> Iterator[_PngChunk]:
    """Yield the chunks before IEND, or before the end of the data; the last one may be cut."""
    view = memoryview(data)
    position = _PNG_SIGNATURE_BYTES
    while position + _PNG_CHUNK.size <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        start = position + _PNG_CHUNK.size
        end = start + length + 4
        if kind == b"IEND":
            return
        checksum = int.from_bytes(view[end - 4 : end])
        yield _PngChunk(kind, view[start : end - 4], checksum, view[position:end], end <= len(data))
        position = end
