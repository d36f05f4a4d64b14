"""What must be known of a file before, or although, a library decodes it.

In: encoded bytes. Out: sizes, or an error. Invariant: nothing is allocated by what a header claims.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from PIL import Image

from imgcls.errors import CorruptImageError

_PNG_SIGNATURE_BYTES: Final = 8
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_HEADER: Final = struct.Struct(">IIBBBBB")
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


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the canvas (RFC 9649, sections 2.5 to 2.7).

    Raises:
        CorruptImageError: the header is cut, or its first chunk is none that a WebP may begin with.
    """
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
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


def check_png(data: bytes) -> None:
    """Verify the checksum of every chunk: decoders skip those of the pixels.

    Raises:
        CorruptImageError: a chunk that is cut or whose CRC differs: its pixels may be wrong ones.
    """
    for kind, body, checksum in _png_chunks(data):
        if zlib.crc32(body, zlib.crc32(kind)) != checksum:
            raise CorruptImageError(f"PNG: wrong checksum of chunk {kind!r}")


def check_png_is_complete(image: Image.Image, data: bytes) -> None:
    """Refuse a PNG with fewer rows than its header says: a decoder leaves the missing ones zero.

    Counting takes half as long as decoding: it is done only where the last row is zero, or the rows
    are interlaced.

    Args:
        image: the loaded PNG.
        data: the whole file, of which `check_png` approves.

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
    for kind, body, _ in _png_chunks(data):
        left: bytes | memoryview = body if kind == b"IDAT" else b""
        while left and total < enough:
            total += len(inflater.decompress(left, _INFLATE_BYTES))
            left = inflater.unconsumed_tail
    return total


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield kind, body and checksum of the chunks before IEND.

    Raises:
        CorruptImageError: a chunk that is cut, or no IEND.
    """
    view = memoryview(data)
    position = _PNG_SIGNATURE_BYTES
    while position + _PNG_CHUNK.size <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        start = position + _PNG_CHUNK.size
        position = start + length + 4
        if kind == b"IEND":
            return
        if position > len(data):
            raise CorruptImageError(f"PNG: chunk {kind!r} is cut")
        yield kind, view[start : start + length], int.from_bytes(data[position - 4 : position])
    raise CorruptImageError("PNG: the end is missing")
