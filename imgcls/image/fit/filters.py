"""The filters of a resize, and the weights of those that no library here computes.

In: a box in a side, and to how many pixels it goes. Out: the weight of each pixel of the side in
each of these. Invariant: a weight is the number that the library has from which its filter is
known: OpenCV for `area`, scikit-image for `gaussian`, torch where a filter is not widened.

Legend: P pixels of the result, N pixels of the side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from imgcls.image.spec import Arithmetic, Filter, PreprocessSpec

Weights = npt.NDArray[np.float64]
Computed = Literal["fast_image_resize", "pillow", "weights"]
Shape = Callable[[Weights], Weights]

_GAUSSIAN_REACH: Final = 4  # of its standard deviation, as scipy cuts it off


@dataclass(frozen=True, slots=True)
class Kernel:
    """A filter, and what it is told besides."""

    filter: Filter = "bilinear"
    antialias: bool = True
    """Widen it when shrinking."""
    arithmetic: Arithmetic = "pillow"
    """Whose."""
    outside: float = 0.0
    """What `gaussian` sees beyond the picture, on the scale of its pixels."""

    @classmethod
    def of(cls, spec: PreprocessSpec) -> "Kernel":
        """Return that of a spec: scikit-image sees 0 beyond a picture, in the input's range."""
        low, high = spec.input_range
        return cls(spec.filter, spec.antialias, spec.arithmetic, 255 * -low / (high - low))

    @property
    def computed_by(self) -> Computed:
        """What computes it: a library, or a product with `dense`."""
        if self.filter in ("area", "gaussian"):
            return "weights"
        if self.filter == "nearest":
            return "pillow"
        if not self.antialias:
            return "weights"
        if self.arithmetic == "torch":
            return "fast_image_resize"
        is_fast = self.filter == "bilinear" and self.arithmetic == "pillow"
        return "fast_image_resize" if is_fast else "pillow"

    @property
    def resizes_whole(self) -> bool:
        """Tell whether the picture is resized before a cut, as libraries do.

        fast_image_resize gives a pixel of a part the value that it has in the whole, but for the
        last digits of a weight.
        """
        return self.computed_by != "fast_image_resize" or self.arithmetic == "torch"

    @property
    def goes_across_first(self) -> bool:
        """Tell whether fast_image_resize is to go the way of torch, which version 1 did not."""
        return self.arithmetic == "torch"

    @property
    def rounds_between(self) -> bool:
        """Tell whether what lies between the two passes is rounded and clipped to pixels."""
        return self.filter not in ("area", "gaussian")


PLAIN: Final = Kernel()


def dense(
    kernel: Kernel, in_px: int, start: float, side: float, out_px: int, *, both_shrink: bool
) -> Weights:
    """Return weights [P,N].

    Args:
        kernel: one that is `computed_by` weights.
        in_px: N.
        start: where the box begins, in pixels of the side.
        side: how long it is.
        out_px: P.
        both_shrink: neither width nor height grows; OpenCV's `area` asks for both.
    """
    if kernel.filter == "area":
        return _area(in_px, start, side, out_px, both_shrink)
    if kernel.filter == "gaussian":
        return _gaussian(in_px, start, side, out_px)
    return _interpolation(kernel.filter, in_px, start, side, out_px)


def _interpolation(name: Filter, in_px: int, start: float, side: float, out_px: int) -> Weights:
    """Weigh the nearest 2 or 4 pixels, edges repeated, as torch does (UpSample.h)."""
    center_P = start + (np.arange(out_px) + 0.5) * (side / out_px) - 0.5
    shape: Shape = cubic(-0.75)
    steps = range(-1, 3)
    if name == "bilinear":
        center_P, shape, steps = np.maximum(center_P, 0), triangle, range(2)
    weight_PN = np.zeros((out_px, in_px))
    for step in steps:
        index_P = np.floor(center_P).astype(np.int64) + step
        at_P = np.clip(index_P, 0, in_px - 1)
        np.add.at(weight_PN, (np.arange(out_px), at_P), shape(index_P - center_P))
    return weight_PN


def _area(in_px: int, start: float, side: float, out_px: int, both_shrink: bool) -> Weights:
    """Weigh by the covered area; linearly where a side grows.

    Source: computeResizeAreaTab and the linear tables of OpenCV's resize.cpp.
    """
    step_P = np.arange(out_px)
    if both_shrink:
        low_P = (start + step_P * (side / out_px))[:, None]
        pixel_N = np.arange(in_px)
        high_PN = np.minimum(low_P + side / out_px, pixel_N + 1)
        covered_PN = np.maximum(high_PN - np.maximum(low_P, pixel_N), 0)
        return np.asarray(covered_PN / covered_PN.sum(axis=1, keepdims=True))
    inverse = out_px / side
    first_P = np.floor(step_P * (1 / inverse))
    # In float32, as there: a share of 1 less an ulp is the next pixel otherwise.
    share_P = ((step_P + 1) - (first_P + 1) * inverse).astype(np.float32)
    share_P = np.where(share_P <= 0, 0, share_P - np.floor(share_P))
    index_P = first_P.astype(np.int64) + int(start)
    weight_PN = np.zeros((out_px, in_px))
    np.add.at(weight_PN, (step_P, np.minimum(index_P, in_px - 1)), 1 - share_P)
    np.add.at(weight_PN, (step_P, np.minimum(index_P + 1, in_px - 1)), share_P)
    return weight_PN


def _gaussian(in_px: int, start: float, side: float, out_px: int) -> Weights:
    """Blur, then interpolate; a row that sums to less than 1 sees `outside` with the rest.

    Source: skimage.transform.resize with mode="constant", by scipy's gaussian_filter and zoom.
    """
    scale = side / out_px
    sigma = max(0.0, (scale - 1) / 2)
    radius = int(_GAUSSIAN_REACH * sigma + 0.5)
    offset_T = np.arange(-radius, radius + 1)
    bell_T = np.exp(-0.5 * (offset_T / sigma) ** 2) if sigma > 0 else np.ones(1)
    bell_T /= bell_T.sum()
    center_P = start + (np.arange(out_px) + 0.5) * scale - 0.5
    below_P = np.floor(center_P).astype(np.int64)
    weight_PN = np.zeros((out_px, in_px))
    for step, share_P in ((0, 1 - (center_P - below_P)), (1, center_P - below_P)):
        # A blurred pixel beyond the picture is not there.
        is_there_P = (below_P + step >= 0) & (below_P + step < in_px)
        index_PT = (below_P + step)[:, None] + offset_T
        weight_PT = np.where(is_there_P, share_P, 0)[:, None] * bell_T
        row_PT, tap_PT = np.nonzero((index_PT >= 0) & (index_PT < in_px))
        np.add.at(weight_PN, (row_PT, index_PT[row_PT, tap_PT]), weight_PT[row_PT, tap_PT])
    return weight_PN


def triangle(x: Weights) -> Weights:
    """Return the weight at a distance in pixels, of a bilinear filter."""
    return np.maximum(0.0, 1.0 - np.abs(x))


def cubic(a: float) -> Shape:
    """Return the weight at a distance, of a bicubic filter (Keys 1981, with his parameter a)."""

    def shape(x: Weights) -> Weights:
        x = np.abs(x)
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))

    return shape
