"""A few numbers about each image, measured of what was decoded, so that nobody reads it again.

In: crops, and what their decoders saw. Out: ImageFacts. Invariant: a function of the image and the
two specs; padding beside the picture counts for nothing.

Many at a time, of a few lines of each: to measure every pixel of one image by itself would cost a
tenth of its decoding.

Legend: N images, L lines, S pixels of a line, C channels, Y, X height and width of the model's
input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.image.facts.source import SourceFacts
from imgcls.image.fit.placement import place
from imgcls.image.spec import PreprocessSpec

_NUM_LINES: Final = 16
_NUM_GREYS: Final = 256
_VALUES: Final = np.arange(_NUM_GREYS, dtype=np.float64)
_MIN_SIDE: Final = 3  # of a line with neighbours


@dataclass(frozen=True, slots=True)
class Looks:
    """What one frame looks like to the model: of its greys 0..255, in colour of the green ones."""

    brightness: float
    """Mean."""
    contrast: float
    """Standard deviation."""
    sharpness: float
    """Variance of the Laplacian: little where a picture is out of focus."""
    levels: int
    """How many of the 256 greys there are."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one frame looks like to the model, and what the file held."""

    looks: Looks
    source: SourceFacts


def measure(
    inputs: Sequence[npt.NDArray[Any]],
    sizes: Sequence[tuple[int, int]],
    spec: PreprocessSpec | None = None,
) -> list[Looks]:
    """Measure pictures.

    Args:
        inputs: uint8 or float32 0..255 [C,Y,X], all of one shape where there is a spec.
        sizes: width and height of the source of each.
        spec: how they were fitted; None: they are whole pictures, without padding.
    """
    found: list[Looks | None] = [None] * len(inputs)
    by_shape: dict[tuple[int, ...], list[tuple[int, npt.NDArray[Any]]]] = {}
    for index, (x_CYX, size) in enumerate(zip(inputs, sizes, strict=True)):
        x_YX = x_CYX[len(x_CYX) // 2]
        lines = _lines(x_YX if spec is None else _shown(x_YX, size, spec))
        by_shape.setdefault(lines.shape, []).append((index, lines))
    for members in by_shape.values():
        looks = _measure_lines(np.stack([lines for _, lines in members]))
        for (index, _), look in zip(members, looks, strict=True):
            found[index] = look
    return [look for look in found if look is not None]


def _shown(x_YX: npt.NDArray[Any], size: tuple[int, int], spec: PreprocessSpec) -> npt.NDArray[Any]:
    """Return what is not padding."""
    if spec.fit != "pad":
        return x_YX
    where = place(*size, spec)
    left, right = where.left_px, where.left_px + where.width_px
    top, bottom = where.top_px, where.top_px + where.height_px
    # A JPEG that was scaled as it was decoded may be a line larger or smaller than from its size.
    if left or right < spec.width_px:
        left, right = min(left + 1, right - 1), max(left + 1, right - 1)
    if top or bottom < spec.height_px:
        top, bottom = min(top + 1, bottom - 1), max(top + 1, bottom - 1)
    return x_YX[top:bottom, left:right]


def _lines(x_YX: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return lines from all over a picture with those before and after each: [3,L,S].

    They run along the longer side, which padding leaves whole: so most pictures of a batch have
    lines of one length, and are measured together.
    """
    x_LS = x_YX if x_YX.shape[1] >= x_YX.shape[0] else x_YX.T
    if min(x_LS.shape) < _MIN_SIDE:
        return np.broadcast_to(x_LS, (3, *x_LS.shape))
    most = len(x_LS) - 2
    first = np.arange(_NUM_LINES) * most // _NUM_LINES
    lines: npt.NDArray[Any] = x_LS[first + np.arange(3)[:, np.newaxis]]
    return lines


def _measure_lines(lines_N3LS: npt.NDArray[Any]) -> list[Looks]:
    num_images = len(lines_N3LS)
    x_NS = lines_N3LS[:, 1].reshape(num_images, -1)
    if x_NS.dtype != np.uint8:
        x_NS = np.clip(np.rint(x_NS), 0, _NUM_GREYS - 1)
    numbered_NS = x_NS + (np.arange(num_images, dtype=np.int64) * _NUM_GREYS)[:, np.newaxis]
    counts = np.bincount(numbered_NS.astype(np.int64).ravel(), minlength=num_images * _NUM_GREYS)
    share_NV = counts.reshape(num_images, -1) / x_NS.shape[1]
    mean_N = share_NV @ _VALUES
    variance_N = (share_NV @ _VALUES**2 - mean_N**2).clip(0)
    levels_N = np.count_nonzero(share_NV, axis=1)
    columns = zip(
        mean_N.round(2).tolist(),
        np.sqrt(variance_N).round(2).tolist(),
        _variance_of_laplacian(lines_N3LS).round(2).tolist(),
        levels_N.tolist(),
        strict=True,
    )
    return [Looks(*values) for values in columns]


def _variance_of_laplacian(lines_N3LS: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return it of the inner pixels of the middle lines, by 4 neighbours."""
    if lines_N3LS.shape[3] < _MIN_SIDE:
        return np.zeros(len(lines_N3LS))
    kind = np.int16 if lines_N3LS.dtype == np.uint8 else np.float32
    before, at, after = lines_N3LS.swapaxes(0, 1).astype(kind)
    edges = at[:, :, 1:-1] * 4
    for neighbour in (before[:, :, 1:-1], after[:, :, 1:-1], at[:, :, :-2], at[:, :, 2:]):
        edges -= neighbour
    edges_NS = edges.reshape(len(edges), -1).astype(np.float32)
    squares_N = np.einsum("ns,ns->n", edges_NS, edges_NS) / edges_NS.shape[1]
    variance: npt.NDArray[np.float64] = squares_N - edges_NS.mean(axis=1) ** 2
    return variance.astype(np.float64)
