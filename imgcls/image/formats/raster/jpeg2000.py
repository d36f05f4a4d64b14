"""The codestream of a JPEG 2000: the depth of its samples, and whether all its tiles are there.

In: a JP2 file or a bare codestream (ITU-T T.800, annexes A and I). Out: depths, or an error.
Invariant: a file that was cut at the end of a packet is noticed: decoders fill up what is missing.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from imgcls.errors import CorruptImageError

_START: Final = b"\xff\x4f\xff\x51"
_SIZ, _SOT, _EOC = 0xFF51, 0xFF90, 0xFFD9
_CODESTREAM: Final = b"jp2c"
# Lsiz, Rsiz, sizes and offsets of image and tiles, number of components.
_SIZ_BODY: Final = struct.Struct(">HH8IH")
_SOT_BODY: Final = struct.Struct(">HHIBB")
_SIGNED: Final = 0x80
_MAX_TILES: Final = 65535


class Component(NamedTuple):
    """One channel."""

    bits: int
    is_signed: bool


def read_codestream(data: bytes) -> list[Component]:
    """Return the channels of a JPEG 2000 whose tiles are all there.

    Raises:
        CorruptImageError: the header is cut, or tiles are missing or cut.
    """
    start = _find_codestream(data)
    try:
        fields = _SIZ_BODY.unpack_from(data, start + 4)
        stored = data[start + 4 + _SIZ_BODY.size :]
        components = [
            Component((stored[3 * i] & 0x7F) + 1, bool(stored[3 * i] & _SIGNED))
            for i in range(fields[10])
        ]
        _check_tiles(data, start, fields)
    except (struct.error, IndexError) as error:
        raise CorruptImageError("JPEG2000: the header is cut") from error
    return components


def _find_codestream(data: bytes) -> int:
    """Return where the codestream begins: at once, or in its box."""
    if data.startswith(_START):
        return 0
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if length == 1:
            length, header = int.from_bytes(data[position + 8 : position + 16]), 16
        if kind == _CODESTREAM:
            return position + header
        if length < header:
            break
        position += length
    raise CorruptImageError("JPEG2000: no codestream")


def _check_tiles(data: bytes, start: int, fields: tuple[int, ...]) -> None:
    _, _, width, height, _, _, tile_width, tile_height, tile_x, tile_y, _ = fields
    if not tile_width or not tile_height:
        raise CorruptImageError("JPEG2000: tiles of no size")
    num_tiles = -(-(width - tile_x) // tile_width) * -(-(height - tile_y) // tile_height)
    if not 0 < num_tiles <= _MAX_TILES:
        raise CorruptImageError(f"JPEG2000: {num_tiles} tiles")
    parts_left: dict[int, int | None] = {}
    for tile, part, num_parts in _tile_parts(data, start):
        known = num_parts or parts_left.get(tile)
        parts_left[tile] = known if known is None else max(known, part + 1)
        if known is not None and part + 1 == known:
            parts_left[tile] = 0
    if len(parts_left) < num_tiles or any(parts_left.values()):
        raise CorruptImageError("JPEG2000: tiles are missing")


def _tile_parts(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield tile, part and number of parts (0: not said yet) of each tile-part that is whole."""
    position = start + 2
    while position + 2 <= len(data):
        (marker,) = struct.unpack_from(">H", data, position)
        if marker == _EOC:
            return
        if marker != _SOT:  # of the main header
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
            continue
        _, tile, length, part, num_parts = _SOT_BODY.unpack_from(data, position + 2)
        if length == 0:  # the last one, up to the end marker
            if data.rfind(b"\xff\xd9", position) < 0:
                raise CorruptImageError("JPEG2000: the end is missing")
            yield tile, part, num_parts
            return
        if length < _SOT_BODY.size + 2 or position + length > len(data):
            raise CorruptImageError("JPEG2000: a tile is cut")
        yield tile, part, num_parts
        position += length
