"""What each instance of a labelled sample shows, as far as DATA says it.

In: samples, their boxes, the crops of an image. Out: a target per instance, NaN where DATA says
nothing. Invariant: an instance has a target only where it cannot be wrong:

- of a sample of the background class (a good picture) every instance is background;
- of a picture with boxes a tile that holds half of a box shows that box's class, one that touches
  no box is background, and one that holds less than half of a box is left open;
- of any other picture nothing is known but that some instance shows its label.

Shape legend: I instance, K classes.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from imgcls.image.crops import Crop
from imgcls.image.fit.tiles import Place

# A tile with less of a box than this may not show what is in it.
MIN_BOX_FRACTION = 0.5


class Box(Protocol):
    """Where a label applies, in pixels of the picture as displayed."""

    @property
    def place(self) -> Place:
        """Return x, y, width and height."""

    @property
    def labels(self) -> tuple[int, ...]:
        """What is there."""


class PlacedImage(Protocol):
    """What is looked at of a sample."""

    @property
    def labels(self) -> tuple[int, ...]:
        """What the sample shows."""

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Where; empty where DATA does not say."""


class InstanceTargets:
    """Gives the targets of instances.

    Args:
        num_classes: classes of the data set.
        background: label of the background, None where the classes have none.
        multi_label: the background is to show none of the classes.
    """

    def __init__(self, num_classes: int, background: int | None, *, multi_label: bool) -> None:
        self._num_classes = num_classes
        self._background = background
        self._multi_label = multi_label

    def of(self, sample: PlacedImage, crops: Sequence[Crop]) -> np.ndarray:
        """Return float32 [I,K]: 1 for each class that an instance shows, else 0; NaN if unknown."""
        if not sample.boxes or not self._has_background:
            return self.without_places(sample.labels, len(crops))
        nothing_K = self._nothing_K()
        target_IK = np.full((len(crops), self._num_classes), np.nan, np.float32)
        for row, crop in enumerate(crops):
            assert crop.place is not None, "a tile knows its place"
            shares = [_share_inside(box.place, crop.place) for box in sample.boxes]
            if not any(shares):
                target_IK[row] = nothing_K
            elif max(shares) >= MIN_BOX_FRACTION:
                shown = {
                    label
                    for box, share in zip(sample.boxes, shares, strict=True)
                    if share >= MIN_BOX_FRACTION
                    for label in box.labels
                }
                target_IK[row] = 0.0
                target_IK[row, sorted(shown)] = 1.0
        return target_IK

    def without_places(self, labels: tuple[int, ...], num: int) -> np.ndarray:
        """Return float32 [I,K] of a sample of which nothing but its labels is known."""
        target_IK = np.full((num, self._num_classes), np.nan, np.float32)
        if self._has_background and set(labels) <= {self._background}:
            target_IK[:] = self._nothing_K()
        return target_IK

    @property
    def _has_background(self) -> bool:
        return self._multi_label or self._background is not None

    def _nothing_K(self) -> np.ndarray:
        nothing_K = np.zeros(self._num_classes, np.float32)
        if not self._multi_label and self._background is not None:
            nothing_K[self._background] = 1.0
        return nothing_K


def _share_inside(box: Place, tile: Place) -> float:
    """Return how much of a box lies in a tile; of a box larger than the tile, of what could."""
    x, y, width, height = box
    tile_x, tile_y, tile_width, tile_height = tile
    inside_x = min(x + width, tile_x + tile_width) - max(x, tile_x)
    inside_y = min(y + height, tile_y + tile_height) - max(y, tile_y)
    most = min(width, tile_width) * min(height, tile_height)
    return max(0, inside_x) * max(0, inside_y) / most
