"""The images of one step, of one rank.

In: pixels, targets and weights. Out: `Batch`, whole or cut into passes. Invariant: all instances of
a sample are in one pass.

Shape legend: B sample, I instance, C channel, H height, W width, K classes, N NUM_DRAWS. Pixels and
draws have a row per instance; they are called B, too, for most samples have one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """To which sample each row of pixels belongs, and what it shows.

    sample_I int64, rising, on the CPU: the row of target_BK. target_IK float32, as target_BK: what
    DATA says of the instance itself, NaN where it says nothing.
    """

    sample_I: np.ndarray
    target_IK: torch.Tensor

    def rows_of(self, start: int, stop: int) -> slice:
        """Return the rows of samples `start` to `stop`."""
        first, last = np.searchsorted(self.sample_I, [start, stop])
        return slice(int(first), int(last))

    def take(self, samples: np.ndarray) -> "tuple[np.ndarray, Instances]":
        """Return the rows of some samples in that order, and whose they are then."""
        slices = [self.rows_of(sample, sample + 1) for sample in samples.tolist()]
        rows = np.concatenate([np.arange(each.start, each.stop) for each in slices])
        counts = [each.stop - each.start for each in slices]
        of_row = np.repeat(np.arange(len(samples)), counts)
        return rows, Instances(of_row, self.target_IK[torch.from_numpy(rows)])

    def cut(self, start: int, stop: int) -> "Instances":
        """Return those of samples `start` to `stop`, counted from 0."""
        rows = self.rows_of(start, stop)
        return Instances(self.sample_I[rows] - start, self.target_IK[rows])


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one step, of one rank.

    x_BCHW as decoded, target_BK float32 (1 for each class that the image shows, else 0), weight_B
    float32, index_B int64 (place in the split). Where too few images are left (bad ones took the
    rest), they are repeated as rows of weight 0: batch normalisation needs two rows in each forward
    pass, and a rank without a row would leave the others waiting for its gradient. Such a row
    counts as no image. A batch for training also says in how many passes the step takes it, and
    has draws_BN, float32, by which `augment` changes its images; None where nothing is to change.
    `instances` is None where each sample has one.
    """

    x_BCHW: torch.Tensor
    target_BK: torch.Tensor
    weight_B: torch.Tensor
    index_B: torch.Tensor
    draws_BN: torch.Tensor | None = None
    num_passes: int = 0  # 0: as few as the batch size allows
    instances: Instances | None = None

    def cut(self, num_parts: int) -> Iterator["Batch"]:
        """Yield the batch in parts, whose sizes differ by one sample at most."""
        num_samples = len(self.index_B)
        for part in range(num_parts):
            start, stop = num_samples * part // num_parts, num_samples * (part + 1) // num_parts
            rows = (
                slice(start, stop)
                if self.instances is None
                else self.instances.rows_of(start, stop)
            )
            yield Batch(
                self.x_BCHW[rows],
                self.target_BK[start:stop],
                self.weight_B[start:stop],
                self.index_B[start:stop],
                None if self.draws_BN is None else self.draws_BN[rows],
                instances=None if self.instances is None else self.instances.cut(start, stop),
            )

    def rows_of(self, sample: int) -> slice:
        """Return the rows of pixels of a sample."""
        if self.instances is None:
            return slice(sample, sample + 1)
        return self.instances.rows_of(sample, sample + 1)

    @property
    def label_B(self) -> torch.Tensor:
        """The only class of each image, int64; of no use in multi-label data."""
        return self.target_BK.argmax(dim=1)
