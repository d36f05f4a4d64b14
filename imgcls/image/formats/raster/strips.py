"""A TIFF too large to be decoded at once, as many small ones: of some strips, or rows of tiles.

In: a page and its file. Out: small files and the row at which each belongs. Invariant: a pixel is
the same as if all of it were decoded at once; what cannot be cut so is not.

A decoder takes up to 32 bytes for a pixel on its way, and the result one per channel. So a picture
whose result takes a quarter of the memory that `max_pixels` stands for can be had within that
memory, if only an eighth of `max_pixels` is on its way at a time.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from PIL import TiffImagePlugin

from imgcls.errors import CorruptImageError
from imgcls.image.spec import DecodeSpec

_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _PLANES = 256, 257, 259, 262, 284
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_SAMPLE_FORMAT: Final = 339
# What says how samples are stored: bits, compression, colour, fill order, samples, planes, fax
# options, predictor, colour map, inks, extra samples, format, JPEG tables, YCbCr, profile.
_COPIED: Final = (
    *(_WIDTH, 258, _COMPRESSION, _PHOTOMETRIC, 266, 277, _PLANES, 292, 293, 317, 320, 332, 338),
    *(_SAMPLE_FORMAT, 347, 529, 530, 531, 532, 34675, _TILE_WIDTH, _TILE_HEIGHT),
)
_UNCOMPRESSED, _OLD_JPEG, _SEPARATE, _FLOAT = 1, 6, 2, 3
_LONG: Final = 4
_RESULT_BYTES_PER_PIXEL: Final = 8
_SHARE_AT_A_TIME: Final = 8


def stored_size(source: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    """Return width and height before a turn; Pillow's are those after it."""
    return int(source.tag_v2[_WIDTH]), int(source.tag_v2[_HEIGHT])


def can_be_cut(source: TiffImagePlugin.TiffImageFile, spec: DecodeSpec) -> bool:
    """Say whether a page beyond `max_pixels` can be decoded piece by piece in the same memory."""
    tags = source.tag_v2
    # By its own extremes a picture has no greys before all of it is known.
    is_by_itself = spec.gray_range == "min_max" or _FLOAT in _all(tags.get(_SAMPLE_FORMAT, 1))
    is_cut = len(_all(tags.get(_TILE_OFFSETS, tags.get(_STRIP_OFFSETS, ())))) > 1
    fits = source.width * source.height * spec.num_channels
    return (
        not is_by_itself
        and (is_cut or tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED)
        and tags.get(_COMPRESSION) != _OLD_JPEG  # whose tables lie anywhere
        and tags.get(_PLANES) != _SEPARATE
        and fits <= _RESULT_BYTES_PER_PIXEL * spec.max_pixels
    )


def cut_in_bands(
    source: TiffImagePlugin.TiffImageFile, data: bytes, spec: DecodeSpec
) -> Iterator[tuple[int, bytes]]:
    """Yield the first row of a band and a TIFF of it, stored as the page is.

    Args:
        source: at a page that `can_be_cut`.
        data: the whole file.
        spec: how many pixels there may be at a time.

    Raises:
        CorruptImageError: the pieces do not make up the picture.
    """
    tags = source.tag_v2
    width, height = stored_size(source)
    is_tiled = _TILE_OFFSETS in tags
    offsets = np.array(_all(tags[_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS]), np.int64)
    sizes = np.array(_all(tags[_TILE_BYTES if is_tiled else _STRIP_BYTES]), np.int64)
    rows = int(tags[_TILE_HEIGHT] if is_tiled else min(tags.get(_ROWS_PER_STRIP, height), height))
    across = -(-width // int(tags[_TILE_WIDTH])) if is_tiled else 1
    if len(offsets) == 1 and not is_tiled and sizes[0] % height == 0:  # cut it by rows
        sizes = np.full(height, sizes[0] // height)
        offsets, rows = offsets[0] + np.arange(height) * sizes, 1
    if len(offsets) != -(-height // rows) * across:  # or rows would be what memory held before
        raise CorruptImageError(f"TIFF: {len(offsets)} strips or tiles do not make {height} rows")
    num_parts = max(1, spec.max_pixels // _SHARE_AT_A_TIME // (rows * width))
    for start in range(0, len(offsets), num_parts * across):
        part = slice(start, start + num_parts * across)
        first_row = start // across * rows
        num_rows = min(num_parts * rows, height - first_row)
        pieces = [data[o : o + n] for o, n in zip(offsets[part], sizes[part], strict=True)]
        yield first_row, _as_file(data[:4], tags, pieces, num_rows, rows, is_tiled=is_tiled)


def _as_file(
    start: bytes,
    tags: TiffImagePlugin.ImageFileDirectory_v2,
    pieces: list[bytes],
    num_rows: int,
    rows: int,
    *,
    is_tiled: bool,
) -> bytes:
    """Return a TIFF of some strips or tiles."""
    head = b"II*\0" if start[:2] == b"II" else b"MM\0*"
    sizes = [len(piece) for piece in pieces]
    within = np.cumsum([0, *sizes[:-1]])
    directory = TiffImagePlugin.ImageFileDirectory_v2(head + bytes(4))
    for tag in _COPIED:
        if tag in tags:
            directory.tagtype[tag] = tags.tagtype[tag]
            directory[tag] = tags[tag]
    added: dict[int, Any] = {_HEIGHT: num_rows}
    if not is_tiled:
        added[_ROWS_PER_STRIP] = rows
    names = (_TILE_OFFSETS, _TILE_BYTES) if is_tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    for tag, value in (added | dict.fromkeys(names, tuple(sizes))).items():
        directory.tagtype[tag] = _LONG
        directory[tag] = value
    offset = len(head) + 4
    size = offset + len(directory.tobytes(offset))
    # Pillow adds the size of the directory to the offsets of strips, and not to those of tiles.
    directory[names[0]] = tuple(int(begin) + (size if is_tiled else 0) for begin in within)
    written = directory.tobytes(offset)
    at = offset.to_bytes(4, "little" if head[:1] == b"I" else "big")
    return b"".join([head, at, written, *pieces])


def _all(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - of a tag
    return value if isinstance(value, tuple) else (value,)
