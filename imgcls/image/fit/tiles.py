"""A grid of tiles that covers a picture, each of the size of the model's input, none resized.

In: the size of a picture as displayed, a preprocess spec of fit `tiles`. Out: places in it; its
pixels, cut at these. Invariants: every pixel of the picture lies in some tile; neighbours share at
least `overlap_px`, so that an object of up to that size lies whole in one of them; a tile reaches
beyond the picture only where that is smaller than a tile, and is padded there.

Legend: H, W height and width of the source, C channels, Y, X height and width of a tile.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from imgcls.errors import ImageTooLargeError
from imgcls.image.decoded import Pixels
from imgcls.image.spec import DecodeSpec, PreprocessSpec

Place = tuple[int, int, int, int]

# Of one file, as the message that names their places is bounded, and as the memory that decoders
# share with their parent is (which exists only as far as it is written to).
_MAX_TILES: Final = 1 << 14
_MAX_BYTES: Final = 1 << 30


def tile_places(width_px: int, height_px: int, spec: PreprocessSpec) -> list[Place]:
    """Return x, y, width and height of each tile, row by row, within the picture.

    As few tiles as cover it, spread evenly: they share more than `overlap_px` where that leaves
    something over.
    """
    across = _starts(width_px, spec.width_px, spec.overlap_px)
    down = _starts(height_px, spec.height_px, spec.overlap_px)
    size = min(spec.width_px, width_px), min(spec.height_px, height_px)
    return [(x, y, *size) for y in down for x in across]


def cut_tiles(image_HWC: Pixels, spec: PreprocessSpec, most: int) -> Iterator[tuple[Pixels, Place]]:
    """Yield each tile [C,Y,X] and its place; a tile may be a view of the picture.

    Raises:
        ImageTooLargeError: it has more than `most` tiles.
    """
    height_px, width_px, num_channels = image_HWC.shape
    places = tile_places(width_px, height_px, spec)
    if len(places) > most:
        raise ImageTooLargeError(
            f"{width_px} x {height_px} pixels are {len(places)} tiles of {spec.width_px} x "
            f"{spec.height_px}, more than the {most} that one file may have: train with larger "
            "tiles (--image-px)"
        )
    for x, y, width, height in places:
        tile_CHW = image_HWC[y : y + height, x : x + width].transpose(2, 0, 1)
        if (height, width) != (spec.height_px, spec.width_px):
            tile_CHW = _padded(tile_CHW, spec, num_channels)
        yield tile_CHW, (x, y, width, height)


def most_frames(decode_spec: DecodeSpec) -> int:
    """Return how many frames of one file are decoded."""
    return decode_spec.max_frames if decode_spec.takes_all_frames else 1


def most_crops(decode_spec: DecodeSpec, preprocess_spec: PreprocessSpec) -> int:
    """Return how many crops one file may give."""
    if preprocess_spec.fit != "tiles":
        return most_frames(decode_spec)
    num_bytes = math.prod(preprocess_spec.shape_CHW) * np.dtype(decode_spec.pixel_type).itemsize
    return max(1, min(_MAX_TILES, _MAX_BYTES // num_bytes))


def _starts(whole_px: int, tile_px: int, overlap_px: int) -> list[int]:
    """Return where the tiles of one direction begin."""
    if whole_px <= tile_px:
        return [0]
    num_steps = -(-(whole_px - tile_px) // (tile_px - overlap_px))
    return [step * (whole_px - tile_px) // num_steps for step in range(num_steps + 1)]


def _padded(tile_CHW: Pixels, spec: PreprocessSpec, num_channels: int) -> Pixels:
    """Put a picture that is smaller than a tile at the top left of one."""
    color = np.broadcast_to(np.array(spec.pad_color, np.uint8), num_channels)
    padded_CHW: Pixels = np.empty((num_channels, spec.height_px, spec.width_px), tile_CHW.dtype)
    padded_CHW[:] = color[:, None, None]
    padded_CHW[:, : tile_CHW.shape[1], : tile_CHW.shape[2]] = tile_CHW
    return padded_CHW
