"""One encoded image to its crops: the very function that decoder processes run.

In: encoded bytes. Out: one crop per frame, or per tile of a frame. Invariant: the result depends on
the bytes and the two specs alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from imgcls.image.decode import iter_images
from imgcls.image.decoded import ignore_frame
from imgcls.image.fit.placement import resized_size
from imgcls.image.fit.tiles import Place, cut_tiles, most_crops
from imgcls.image.preprocess import preprocess
from imgcls.image.spec import DecodeSpec, PreprocessSpec

Source = tuple[int, int, int | None, int, Place | None]


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One frame, or a part of it, as the model sees it, and where it comes from."""

    x_CHW: npt.NDArray[np.uint8]
    """uint8, of the shape that the preprocess spec names."""
    width_px: int
    """Width of the source as displayed, after EXIF orientation, before any scaling."""
    height_px: int
    """Height of the source as displayed."""
    frame: int | None
    """Index in a multi-frame file, else None."""
    sample: int = 0
    """Crops of a file with the same number are one sample: they get one answer."""
    place: Place | None = None
    """What it shows of the source as displayed: x, y, width and height in pixels; None: all that
    the preprocess spec keeps."""

    @property
    def source(self) -> Source:
        """All but the pixels, as JSON-able values."""
        return self.width_px, self.height_px, self.frame, self.sample, self.place

    @classmethod
    def from_source(cls, x_CHW: npt.NDArray[np.uint8], source: Sequence[Any]) -> Self:
        """Return a crop from what `source` gave, also after a way through JSON.

        Raises:
            TypeError, ValueError: it is something else.
        """
        width_px, height_px, frame, sample, place = source
        if place is not None:
            x_px, y_px, w_px, h_px = map(int, place)
            place = (x_px, y_px, w_px, h_px)
        frame = None if frame is None else int(frame)
        return cls(x_CHW, int(width_px), int(height_px), frame, int(sample), place)


def decode_one(data: bytes, decode_spec: DecodeSpec, preprocess_spec: PreprocessSpec) -> list[Crop]:
    """Decode and preprocess one encoded image.

    Raises:
        DecodeError: one of its subclasses; nothing else for whatever bytes.
    """
    return list(decode_frames(data, decode_spec, preprocess_spec))


def decode_frames(
    data: bytes,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    begin_frame: Callable[[int], None] = ignore_frame,
) -> Iterator[Crop]:
    """Yield the crops of one encoded image, one decoded frame in memory at a time.

    Args:
        data: the whole file.
        decode_spec: how it becomes pixels.
        preprocess_spec: how those become crops.
        begin_frame: told the index of each frame of a multi-frame file before it is decoded.

    Raises:
        DecodeError: as `decode_one`.
    """
    if preprocess_spec.fit == "tiles":
        yield from _tiles(data, decode_spec, preprocess_spec, begin_frame)
        return
    wanted_size = partial(resized_size, spec=preprocess_spec) if decode_spec.dct_scaling else None
    images = iter_images(data, decode_spec, wanted_size, begin_frame)
    for sample, image in enumerate(images):
        x_CHW = preprocess(image.image_HWC, preprocess_spec)
        yield Crop(x_CHW, image.width_px, image.height_px, image.frame, sample)


def _tiles(
    data: bytes,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    begin_frame: Callable[[int], None],
) -> Iterator[Crop]:
    """Yield the tiles of each frame, which are one sample; of the picture in its full size."""
    num_left = most_crops(decode_spec, preprocess_spec)
    for sample, image in enumerate(iter_images(data, decode_spec, None, begin_frame)):
        for x_CHW, place in cut_tiles(image.image_HWC, preprocess_spec, num_left):
            yield Crop(x_CHW, image.width_px, image.height_px, image.frame, sample, place)
            num_left -= 1
