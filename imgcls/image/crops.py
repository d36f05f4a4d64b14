"""One encoded image to its crops: the very function that decoder processes run.

In: encoded bytes. Out: one crop per frame. Invariant: the result depends on the bytes and the two
specs alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imgcls.image.decode import iter_images
from imgcls.image.decoded import ignore_frame
from imgcls.image.preprocess import preprocess
from imgcls.image.spec import DecodeSpec, PreprocessSpec


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One frame as the model sees it, and the size of its source."""

    x_CHW: npt.NDArray[np.uint8]
    """uint8 [C,P,P]."""
    width_px: int
    """Width of the source as displayed, after EXIF orientation, before any scaling."""
    height_px: int
    """Height of the source as displayed."""
    frame: int | None
    """Index in a multi-frame file, else None."""


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
    min_short_px = preprocess_spec.resize_px if decode_spec.dct_scaling else None
    for image in iter_images(data, decode_spec, min_short_px, begin_frame):
        x_CHW = preprocess(image.image_HWC, preprocess_spec)
        yield Crop(x_CHW, image.width_px, image.height_px, image.frame)
