"""The markers of a JPEG: how it is coded, and what of it a decoder may do without.

In: the bytes of a JPEG (ITU-T T.81, annex B). Out: its frame marker, or a plainer file with the
same pixels. Invariant: entropy-coded data is never touched: damage in it stays to be found.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

START_OF_IMAGE: Final = b"\xff\xd8"
END_OF_IMAGE: Final = b"\xff\xd9"
BASELINE: Final = 0xC0
EXTENDED: Final = 0xC1
PROGRESSIVE: Final = 0xC2
JPEG_LS: Final = 0xF7
# The processes by DCT with Huffman coding: libjpeg scales these. A lossless one (SOF3) it writes at
# full size into whatever buffer it got.
SCALABLE: Final = (BASELINE, EXTENDED, PROGRESSIVE)

_END, _SCAN = 0xD9, 0xDA
_FRAME_HEADER: Final = struct.Struct(">BHHB")
_JFIF, _ADOBE = 0xE0, 0xEE
_FRAMES: Final = frozenset(
    (*(m for m in range(0xC0, 0xD0) if m not in (0xC4, 0xC8, 0xCC)), JPEG_LS)
)
_SEQUENTIAL: Final = (BASELINE, EXTENDED, 0xC9)
# Quantisation, Huffman and arithmetic tables, restart interval: what pixels are made from.
_TABLES: Final = (0xDB, 0xC4, 0xCC, 0xDD)
_WITHOUT_LENGTH: Final = (0x01, *range(0xD0, 0xDA))
_AFTER_SCAN: Final = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
_PLAIN_JFIF: Final = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ALL_COEFFICIENTS: Final = frozenset(range(64))


class _Segment(NamedTuple):
    marker: int
    body: bytes
    """Without its length."""
    coded: bytes
    """The entropy-coded data that follows a scan header."""


class Frame(NamedTuple):
    """What the frame header says (T.81, B.2.2)."""

    marker: int
    """The coding process; 0 where there is no frame header before the pixels."""
    precision: int
    """Bits of a sample."""
    height_px: int
    width_px: int
    num_channels: int


def read_frame(data: bytes) -> Frame:
    """Return the frame header."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else _END
        position += 1
        if marker in (_SCAN, _END):
            break
        if marker in _FRAMES and len(data) >= position + 2 + _FRAME_HEADER.size:
            return Frame(marker, *_FRAME_HEADER.unpack_from(data, position + 2))
        if marker and marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2])
    return Frame(0, 0, 0, 0, 0)


def without_oddities(data: bytes) -> bytes:
    """Return a JPEG of the same pixels that libjpeg has nothing harmless to warn of.

    Stray bytes before markers, malformed profiles, unknown versions and impossible parameters of a
    sequential scan go: libjpeg ends at the first warning, and what it would say next counts. An end
    marker comes back where it alone was missing.
    """
    parts = [START_OF_IMAGE]
    is_sequential = False
    for marker, body, coded in _segments(data):
        if marker == _JFIF and body.startswith(b"JFIF\x00"):
            parts.append(_PLAIN_JFIF)
        elif marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
            transform = min(body[11], 2)
            parts.append(_segment(marker, body[:11] + bytes([transform]) + body[12:]))
        elif marker in _FRAMES or marker in _TABLES:
            is_sequential = marker in _SEQUENTIAL if marker in _FRAMES else is_sequential
            parts.append(_segment(marker, body))
        elif marker == _SCAN:
            body = body[:-3] + b"\x00\x3f\x00" if is_sequential else body
            parts.extend((_segment(marker, body), coded))
        elif marker == _END:
            parts.append(END_OF_IMAGE)
    if parts[-1] != END_OF_IMAGE and _has_all_scans(data):
        parts.append(END_OF_IMAGE)
    return b"".join(parts)


def _has_all_scans(data: bytes) -> bool:
    """Tell whether the scans bring every coefficient of every component, to its last bit.

    Without an end marker nothing else tells a whole file from one that was cut between two scans.
    """
    missing: dict[int, set[int]] = {}
    is_sequential = True
    for marker, body, _ in _segments(data):
        if marker in _FRAMES and len(body) >= 6:
            is_sequential = marker in _SEQUENTIAL
            missing = {component: set(_ALL_COEFFICIENTS) for component in body[6::3]}
        elif marker == _SCAN and len(body) >= 4:
            start, end, approximation = body[-3:]
            if not is_sequential and approximation & 15:  # bits are still to come
                continue
            brought = _ALL_COEFFICIENTS if is_sequential else range(start, end + 1)
            for component in body[1:-3:2]:
                missing.get(component, set()).difference_update(brought)
    return bool(missing) and not any(missing.values())


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments up to and with the end marker; stray bytes are skipped."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position] if position < len(data) else 0
        position += 1
        if marker == _END:
            yield _Segment(marker, b"", b"")
            return
        if marker == 0 or marker in _WITHOUT_LENGTH:
            continue
        end = position + int.from_bytes(data[position : position + 2])
        body = data[position + 2 : end]
        position = end
        if marker == _SCAN:
            found = _AFTER_SCAN.search(data, end)
            position = found.start() if found else len(data)
        yield _Segment(marker, body, data[end:position])


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2) + body
