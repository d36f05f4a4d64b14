"""Pixels of samples to a Batch: targets and weights, filled up, with the changes drawn or made.

In: a share of a step, the samples of it that have pixels. Out: Batch. Invariant: what fills a batch
up weighs nothing.

Shape legend: B sample, I instance, C channel, H height, W width, K classes.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from imgcls.training.augment.changes import ImageChanges
from imgcls.training.data.image_cache import PixelType
from imgcls.training.data.sampler import Share
from imgcls.training.instances.batch import Batch, Instances
from imgcls.training.instances.cache import KnownInstances
from imgcls.training.instances.choose import limit_known


class Labelled(Protocol):
    """What is looked at of a sample."""

    @property
    def labels(self) -> tuple[int, ...]:
        """What it shows."""


class Assembler:
    """Makes the batches of one split.

    Args:
        samples: The split, in the order that indices refer to.
        num_classes: Classes of the data set.
        shape_CHW: Shape of a preprocessed image.
        weight_N: float32, how much each sample weighs in the loss; 1 by default.
        pin_memory: Page-lock batches, for copies to a CUDA device that do not block.
        pixel_type: Of the images: uint8; of depth 16 float32.
    """

    def __init__(
        self,
        samples: Sequence[Labelled],
        *,
        num_classes: int,
        shape_CHW: tuple[int, int, int],
        weight_N: np.ndarray | None,
        pin_memory: bool,
        pixel_type: PixelType,
    ) -> None:
        self._samples, self._num_classes, self._shape_CHW = samples, num_classes, shape_CHW
        self._weight_N = np.ones(len(samples), np.float32) if weight_N is None else weight_N
        self._pin_memory, self._pixel_type = pin_memory, pixel_type

    def batch(
        self,
        share: Share,
        index_B: np.ndarray,
        x_BCHW: np.ndarray,
        instances: Instances | None,
        changes: ImageChanges | None,
    ) -> Batch:
        """Return the batch of a share.

        Args:
            share: What was asked for.
            index_B: Which of its samples have pixels.
            x_BCHW: Pixels, a row per sample, or per instance.
            instances: Whose these are; None where a sample is one.
            changes: To draw or to make; None for none.
        """
        weight_B = self._weight_N[index_B]
        num_missing = share.min_rows - len(index_B)
        if num_missing > 0:
            if not len(index_B):
                index_B, weight_B = np.zeros(1, np.int64), np.zeros(1, np.float32)
                x_BCHW = np.zeros((1, *self._shape_CHW), self._pixel_type)
                if instances is not None:
                    nothing_IK = np.full((1, self._num_classes), np.nan, np.float32)
                    instances = Instances(np.zeros(1, np.int64), torch.from_numpy(nothing_IK))
            # Images of the batch, not black ones, which would shift its statistics.
            row_B = np.arange(share.min_rows) % len(index_B)
            index_B = index_B[row_B]
            weight_B = np.append(weight_B, np.zeros(share.min_rows - len(weight_B), np.float32))
            rows = row_B
            if instances is not None:
                rows, instances = instances.take(row_B)
            x_BCHW = x_BCHW[rows]
        draws_BN = np.zeros((0, 0), np.float32)
        if changes is not None:
            of_row = index_B if instances is None else index_B[instances.sample_I]
            x_BCHW, draws_BN = changes.apply(x_BCHW, of_row)
        return Batch(
            self._tensor(x_BCHW),
            self._tensor(self._targets_of(index_B)),
            self._tensor(weight_B),
            self._tensor(index_B),
            self._tensor(draws_BN) if draws_BN.size else None,
            share.num_passes,
            instances,
        )

    def batch_of_instances(
        self,
        share: Share,
        found: Sequence[tuple[int, KnownInstances]],
        changes: ImageChanges | None,
    ) -> Batch:
        """Return the batch of samples with all of their instances, of which few may be kept."""
        good = [
            (index, known if changes is None else limit_known(known, changes.chance(index)))
            for index, known in found
        ]
        x_ICHW = [known.x_ICHW for _, known in good]
        target_IK = [known.target_IK for _, known in good]
        instances = Instances(
            np.repeat(np.arange(len(good)), [len(x) for x in x_ICHW]),
            torch.from_numpy(
                np.concatenate([np.empty((0, self._num_classes), np.float32), *target_IK])
            ),
        )
        pixels = np.concatenate([np.empty((0, *self._shape_CHW), self._pixel_type), *x_ICHW])
        index_B = np.array([index for index, _ in good], np.int64)
        return self.batch(share, index_B, pixels, instances, changes)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pin_memory else tensor

    def _targets_of(self, index_B: np.ndarray) -> np.ndarray:
        target_BK = np.zeros((len(index_B), self._num_classes), np.float32)
        for row, index in enumerate(index_B):
            target_BK[row, list(self._samples[index].labels)] = 1.0
        return target_BK
