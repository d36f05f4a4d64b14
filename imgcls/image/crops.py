"""One encoded image to its crops: the very function that decoder processes run.

In: encoded bytes. Out: one crop per frame, or per tile of a frame. Invariant: the result depends on
the bytes and the two specs alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import count
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from imgcls.image.decode import iter_images
from imgcls.image.decoded import DecodedImage, Pixels, WantedSize, ignore_frame
from imgcls.image.facts.image_facts import ImageFacts, Looks, measure
from imgcls.image.facts.source import Look, SourceFacts, looking
from imgcls.image.facts.thumbnail import count_picks, needs_picture, shrink
from imgcls.image.fit.placement import resized_size
from imgcls.image.fit.tiles import Place, cut_tiles, most_crops
from imgcls.image.fit.view import ALL, WHOLE, OneFrame, Part, View, resize_view, size_for_view
from imgcls.image.preprocess import preprocess
from imgcls.image.spec import DecodeSpec, PreprocessSpec

Source = (
    tuple[int, int, int | None, int, Place | None]
    | tuple[
        *tuple[int, int, int | None, int, Place | None],
        *tuple[list[Any] | None, list[Any] | None, tuple[int, int] | None],
    ]
)
_PICTURE_AT: Final = 7


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One frame, or a part of it, as the model sees it, and where it comes from."""

    x_CHW: npt.NDArray[Any]
    """Of the shape that the preprocess spec names; uint8, or of a decode spec of depth 16 float32
    0..255."""
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
    seen: SourceFacts | None = None
    """What the file held of the frame, where the look was for it and it is not just 8 bits: at the
    first crop of a frame."""
    looks: Looks | None = None
    """What the frame looks like, likewise, where it cannot be told from the crop later."""
    picture_HWC: npt.NDArray[np.uint8] | None = None
    """A small picture of the frame, likewise; None where the crop shows all of it."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the source as displayed."""
        return self.width_px, self.height_px

    @property
    def source(self) -> Source:
        """All but the pixels, as JSON-able values; the shape of the picture is the last one."""
        where = self.width_px, self.height_px, self.frame, self.sample, self.place
        if self.seen is None and self.looks is None and self.picture_HWC is None:
            return where  # short, for there may be thousands of tiles
        seen = None if self.seen is None else self.seen.to_list()
        looks = None if self.looks is None else list(astuple(self.looks))
        height, width, _ = (0, 0, 0) if self.picture_HWC is None else self.picture_HWC.shape
        return (*where, seen, looks, None if self.picture_HWC is None else (height, width))

    @classmethod
    def from_source(
        cls,
        x_CHW: npt.NDArray[Any],
        source: Sequence[Any],
        picture_HWC: npt.NDArray[np.uint8] | None = None,
    ) -> Self:
        """Return a crop from what `source` gave, also after a way through JSON.

        `picture_HWC` holds the small picture in its upper left.

        Raises:
            TypeError, ValueError: it is something else.
        """
        width_px, height_px, frame, sample, place, *look = source
        seen, looks, shape = look or (None, None, None)
        if place is not None:
            x_px, y_px, w_px, h_px = map(int, place)
            place = (x_px, y_px, w_px, h_px)
        frame = None if frame is None else int(frame)
        found = None if seen is None else SourceFacts.from_list(seen)
        if looks is not None:
            brightness, contrast, sharpness, levels = looks
            looks = Looks(float(brightness), float(contrast), float(sharpness), int(levels))
        if shape is None or picture_HWC is None:
            picture_HWC = None
        else:
            height, width = map(int, shape)
            picture_HWC = picture_HWC[:height, :width].copy()
        size = int(width_px), int(height_px)
        return cls(x_CHW, *size, frame, int(sample), place, found, looks, picture_HWC)


def facts_of(crops: Sequence[Crop], spec: PreprocessSpec) -> list[ImageFacts]:
    """Return the facts of crops, each of a whole frame or with looks of its own."""
    without = [crop for crop in crops if crop.looks is None]
    measured = iter(
        measure([crop.x_CHW for crop in without], [crop.size_px for crop in without], spec)
    )
    plain = SourceFacts()
    return [ImageFacts(crop.looks or next(measured), crop.seen or plain) for crop in crops]


def has_picture(source: Sequence[Any]) -> bool:
    """Tell whether a crop of this source has a small picture of its own."""
    return len(source) > _PICTURE_AT and source[_PICTURE_AT] is not None


def decode_one(
    data: bytes,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    look: Look = "none",
) -> list[Crop]:
    """Decode and preprocess one encoded image.

    Raises:
        DecodeError: one of its subclasses; nothing else for whatever bytes.
    """
    return list(decode_frames(data, decode_spec, preprocess_spec, look=look))


def decode_frames(
    data: bytes,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    begin_frame: Callable[[int], None] = ignore_frame,
    look: Look = "none",
    part: Part = ALL,
) -> Iterator[Crop]:
    """Yield the crops of one encoded image, one decoded frame in memory at a time.

    Args:
        data: the whole file.
        decode_spec: how it becomes pixels.
        preprocess_spec: how those become crops.
        begin_frame: told the index of each frame of a multi-frame file before it is decoded.
        look: what to measure beside.
        part: which part of the input, in its size, and which frames are wanted; not of tiles.

    Raises:
        DecodeError: as `decode_one`.
    """
    is_tiled = preprocess_spec.fit == "tiles"  # of the picture in its full size
    is_scaled = decode_spec.dct_scaling and not is_tiled
    view = part.view
    if part.chance is not None:
        decode_spec = OneFrame.of(decode_spec, part.chance)
    wanted_size: WantedSize | None = None
    if is_scaled and view == WHOLE:
        wanted_size = partial(resized_size, spec=preprocess_spec)
    elif is_scaled:
        wanted_size = partial(size_for_view, spec=preprocess_spec, view=view)
    images = iter_images(data, decode_spec, wanted_size, begin_frame)
    num_left = most_crops(decode_spec, preprocess_spec)
    for number in count():
        with looking(look) as seen:
            image = next(images, None)
        if image is None:
            return
        sample = 0 if decode_spec.frames == "pool" else number
        parts = _cut(image.image_HWC, decode_spec, preprocess_spec, num_left, view)
        looked: tuple[Any, ...] = ()
        if look != "none":
            looked = _look_at(image, decode_spec, preprocess_spec, look, seen)
        for x_CHW, place in parts:
            size = image.width_px, image.height_px
            yield Crop(x_CHW, *size, image.frame, sample, place, *looked)
            looked = ()
            num_left -= 1


def _cut(
    image_HWC: Pixels,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    most: int,
    view: View,
) -> Iterator[tuple[Pixels, Place | None]]:
    """Yield what the model gets of a frame, in the type that the spec says, and its place."""
    pixel_type = decode_spec.pixel_type
    if preprocess_spec.fit == "tiles":
        for x_CHW, place in cut_tiles(image_HWC, preprocess_spec, most):
            yield x_CHW.astype(pixel_type, copy=False), place
        return
    # Before the resize, which rounds to the type that it is given.
    pixels_HWC = image_HWC.astype(pixel_type, copy=False)
    if view == WHOLE:
        yield preprocess(pixels_HWC, preprocess_spec), None
    else:
        yield resize_view(pixels_HWC, preprocess_spec, view), None


def _look_at(
    image: DecodedImage,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    look: Look,
    seen: SourceFacts,
) -> tuple[SourceFacts | None, Looks | None, npt.NDArray[np.uint8] | None]:
    """Return what a crop says of its frame: `seen`, `looks` and `picture_HWC`."""
    told = None if seen == SourceFacts() else seen
    if not needs_picture(decode_spec, preprocess_spec):
        return told, None, None
    size = image.width_px, image.height_px
    has_many_crops = preprocess_spec.fit == "tiles" or decode_spec.frames == "pool"
    num_picks = count_picks(size[0] * size[1], has_many_crops=has_many_crops)
    picture_HWC, pixels_HWC = shrink(image.image_HWC, num_picks)
    looks = None
    if has_many_crops:  # no crop to tell it later; a mean has not the sharpness of the picture
        [looks] = measure([pixels_HWC.transpose(2, 0, 1)], [size])
    return told, looks, picture_HWC if look == "facts" else None
