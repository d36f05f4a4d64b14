"""Where a picture goes in the input of a model: which part of it, how large, how far from the edge.

In: the size of a picture and a preprocess spec. Out: a Placement. Invariant: a function of these
alone, rounded as the library that a rule comes from rounds (torchvision, timm, transformers,
torchxrayvision), so that all who ask speak of the same pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy.typing as npt

from imgcls.image.fit.filters import Kernel
from imgcls.image.spec import CropPlace, PreprocessSpec

if TYPE_CHECKING:
    import torch

Box = tuple[float, float, float, float]
Pixels = TypeVar("Pixels", npt.NDArray[Any], "torch.Tensor")
Resize = Callable[[Pixels, Box, int, int, Kernel], Pixels]
# A picture of 1 to 1,000 would fill the memory, resized before the cut.
_MOST_IN_VAIN: Final = 16


@dataclass(frozen=True, slots=True)
class Placement:
    """One picture in one input. `box` of the picture becomes `width_px` by `height_px` pixels."""

    resized_width_px: int
    """Width of the whole picture after the resize."""
    resized_height_px: int
    """Height of it."""
    box: Box
    """What the input shows, in pixels of the picture: left, top, right, bottom."""
    left_px: int
    """Columns of padding on the left."""
    top_px: int
    """Rows of padding above."""
    width_px: int
    """Columns of the input that show the picture."""
    height_px: int
    """Rows of them."""

    start: tuple[int, int] | None
    """Where the cut begins in the resized picture: x, y. None: the box is cut out of the source, in
    whole pixels, before the resize, which then sees no more."""

    def resized(self, image_HWC: Pixels, kernel: Kernel, resize: Resize[Pixels]) -> Pixels:
        """Return what the input shows of an image, [Y,X,C] of the image's type.

        Args:
            image_HWC: an image of the size that was placed.
            kernel: how to resize.
            resize: does it: image, box, width, height, kernel -> [Y,X,C].
        """
        height_px, width_px, _ = image_HWC.shape
        if self.start is None:
            left, top, right, bottom = map(int, self.box)
            image_HWC = image_HWC[top:bottom, left:right]
            box = (0.0, 0.0, float(right - left), float(bottom - top))
            return resize(image_HWC, box, self.width_px, self.height_px, kernel)
        num_pixels = self.resized_width_px * self.resized_height_px
        is_too_large = num_pixels > _MOST_IN_VAIN * self.width_px * self.height_px
        if not kernel.resizes_whole or is_too_large:
            return resize(image_HWC, self.box, self.width_px, self.height_px, kernel)
        whole = (0.0, 0.0, float(width_px), float(height_px))
        x_HWC = resize(image_HWC, whole, self.resized_width_px, self.resized_height_px, kernel)
        left, top = self.start
        return x_HWC[top : top + self.height_px, left : left + self.width_px]

    def is_whole(self, spec: PreprocessSpec) -> bool:
        """Tell whether the picture fills the input, without padding."""
        return (self.width_px, self.height_px) == (spec.width_px, spec.height_px)


def place(width_px: int, height_px: int, spec: PreprocessSpec) -> Placement:
    """Return where a picture of that size goes."""
    resized_w, resized_h = resized_size(width_px, height_px, spec)
    if spec.fit == "crop" and spec.resize == "exact":
        return _cut_first(width_px, height_px, resized_w, resized_h, spec)
    across = _crop_or_pad(resized_w, spec.width_px, spec.crop_place)
    down = _crop_or_pad(resized_h, spec.height_px, spec.crop_place)
    scale_x, scale_y = width_px / resized_w, height_px / resized_h
    box = (
        across.start * scale_x,
        down.start * scale_y,
        (across.start + across.length) * scale_x,
        (down.start + down.length) * scale_y,
    )
    start = (across.start, down.start)
    return Placement(
        resized_w, resized_h, box, across.pad, down.pad, across.length, down.length, start
    )


def resized_size(width_px: int, height_px: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Return the width and height of the whole picture after the resize, before any cut."""
    if spec.resize_px:  # torchvision, transformers: the other side is rounded down
        short_px = min(width_px, height_px)
        return spec.resize_px * width_px // short_px, spec.resize_px * height_px // short_px
    target_w = int(spec.width_px / spec.crop_fraction)
    target_h = int(spec.height_px / spec.crop_fraction)
    if spec.fit == "stretch":
        return target_w, target_h
    ratios = width_px / target_w, height_px / target_h
    if spec.fit == "crop" and spec.resize == "exact":
        ratio = min(ratios)
        return math.ceil(width_px / ratio), math.ceil(height_px / ratio)
    # timm's ResizeKeepRatio
    ratio = max(ratios) if spec.resize == "longest" else min(ratios)
    return max(1, round(width_px / ratio)), max(1, round(height_px / ratio))


@dataclass(frozen=True, slots=True)
class _Span:
    """What one side of the input shows: from where in the resized picture, and behind what."""

    start: int
    length: int
    pad: int


def _crop_or_pad(resized_px: int, input_px: int, crop_place: CropPlace) -> _Span:
    if resized_px >= input_px:
        return _Span(_start(resized_px, input_px, crop_place), input_px, 0)
    pad_px = 0 if crop_place == "top_left" else (input_px - resized_px) // 2
    return _Span(0, resized_px, pad_px)


def _start(whole_px: int, kept_px: int, crop_place: CropPlace) -> int:
    """Return where a cut of `kept_px` begins."""
    match crop_place:
        case "center":
            return round((whole_px - kept_px) / 2)  # halves to even, as torchvision does
        case "center_floor":
            return (whole_px - kept_px) // 2
        case "center_halves":
            return whole_px // 2 - kept_px // 2
        case "top_left":
            return 0


def _cut_first(
    width_px: int, height_px: int, resized_w: int, resized_h: int, spec: PreprocessSpec
) -> Placement:
    """Cut whole pixels of the source in the shape of the input."""
    ratio = min(width_px / spec.width_px, height_px / spec.height_px) * spec.crop_fraction
    kept_w = min(width_px, max(1, round(spec.width_px * ratio)))
    kept_h = min(height_px, max(1, round(spec.height_px * ratio)))
    left = _start(width_px, kept_w, spec.crop_place)
    top = _start(height_px, kept_h, spec.crop_place)
    box = (float(left), float(top), float(left + kept_w), float(top + kept_h))
    return Placement(resized_w, resized_h, box, 0, 0, spec.width_px, spec.height_px, None)
