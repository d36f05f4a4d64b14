"""Writers of files that no library here writes, byte by byte from their standards."""

import struct
import zlib
from typing import Any

import numpy as np

from imgcls.image.decoded import WantedSize


def short_side(short_px: int | None) -> WantedSize | None:
    """What a resize of the short side needs."""
    if short_px is None:
        return None
    return lambda w, h: (short_px * w // min(w, h), short_px * h // min(w, h))


_ALL_LENGTHS_FIVE = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # a Huffman code of 17 symbols


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def lossless_jpeg(image_HWC: np.ndarray[Any, Any], adobe_transform: int | None = None) -> bytes:
    """A JPEG of the lossless process (SOF3), predictor 1, of any number of channels."""
    height, width, channels = image_HWC.shape
    values = image_HWC.astype(int)
    predicted = np.roll(values, 1, axis=1)
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 128
    bits = []
    for difference in (values - predicted).ravel().tolist():
        category = abs(difference).bit_length()
        extra = difference if difference > 0 else difference + (1 << category) - 1
        bits.append(f"{category:05b}" + (f"{extra:0{category}b}" if category else ""))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\x00")
    components = b"".join(bytes([c + 1, 0x11, 0]) for c in range(channels))
    scanned = b"".join(bytes([c + 1, 0]) for c in range(channels))
    adobe = b"Adobe\x00\x64\x00\x00\x00\x00" + bytes([adobe_transform or 0])
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xEE, adobe) if adobe_transform is not None else b"",
            segment(0xC3, struct.pack(">BHHB", 8, height, width, channels) + components),
            segment(0xC4, b"\x00" + _ALL_LENGTHS_FIVE),
            segment(0xDA, bytes([channels]) + scanned + b"\x01\x00\x00"),
            coded,
            b"\xff\xd9",
        )
    )


Ifd = list[tuple[int, int, tuple[int, ...]]]


def tiff(
    image_HWC: np.ndarray[Any, Any],
    *,
    order: str = "<",
    photometric: int = 1,
    is_separate: bool = False,
    is_deflated: bool = False,
    rows_per_strip: int = 0,
    extra_samples: tuple[int, ...] = (),
    tags: Ifd | None = None,
) -> bytes:
    """A TIFF of one page in strips, its samples as the array has them (TIFF 6.0)."""
    height, width, channels = image_HWC.shape
    rows_per_strip = rows_per_strip or height
    stored = image_HWC.astype(image_HWC.dtype.newbyteorder(order))
    planes = [stored[:, :, c] for c in range(channels)] if is_separate else [stored]
    strips = [
        plane[y : y + rows_per_strip].tobytes()
        for plane in planes
        for y in range(0, height, rows_per_strip)
    ]
    strips = [zlib.compress(strip) if is_deflated else strip for strip in strips]
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    kind = {"u": 1, "i": 2, "f": 3}[image_HWC.dtype.kind]
    entries: Ifd = [
        (256, 4, (width,)),
        (257, 4, (height,)),
        (258, 3, (8 * image_HWC.itemsize,) * channels),
        (259, 3, (8 if is_deflated else 1,)),
        (262, 3, (photometric,)),
        (273, 4, tuple(starts)),
        (277, 3, (channels,)),
        (278, 4, (rows_per_strip,)),
        (279, 4, tuple(map(len, strips))),
        (284, 3, (2 if is_separate else 1,)),
        (339, 3, (kind,) * channels),
        *([(338, 3, extra_samples)] if extra_samples else []),
        *(tags or []),
    ]
    body = b"".join(strips)
    body += b"\x00" * (len(body) % 2)
    magic = b"II" if order == "<" else b"MM"
    header = magic + struct.pack(order + "HI", 42, 8 + len(body))
    return header + body + _ifd(sorted(entries), 8 + len(body), order)


def _ifd(entries: Ifd, offset: int, order: str) -> bytes:
    fixed, extra = struct.pack(order + "H", len(entries)), b""
    extra_offset = offset + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack(f"{order}{len(values)}{'.BsHI'[kind]}", *values)
        if len(packed) > 4:
            where = struct.pack(order + "I", extra_offset + len(extra))
            extra += packed + b"\x00" * (len(packed) % 2)
        else:
            where = packed.ljust(4, b"\x00")
        fixed += struct.pack(order + "HHI", tag, kind, len(values)) + where
    return fixed + bytes(4) + extra
