"""Which samples a step trains on, as a pure function of (seed, epoch, step, rank, world_size).

In: counts. Out: arrays of sample indices. Invariants:
- every sample occurs once per epoch, none is dropped, none repeated (unless classes are balanced);
- the samples of a step do not depend on the world size: the ranks divide among them what one worker
  would take;
- every rank makes the same number of forward passes in a step, whatever its share and whichever of
  its images are bad: each pass may hold a collective, of SyncBatchNorm's or of DDP's.

An epoch has ceil(num_samples / global_batch_size) steps, and their sizes differ by at most one
sample. So there is no small last batch, whose gradient would be noise and whose batch statistics
would be worse: global_batch_size is an upper limit.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from imgcls.training.augment.counter_rng import hash64

# Batch normalisation needs two rows to have a variance.
_MIN_PASS_ROWS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one rank takes of a step.

    index_B int64: its samples. They go through the model in `num_passes` parts, as many as on every
    other rank. Where images turn out bad, rows of weight 0 fill the share up to `min_rows`, so that
    no pass is left without any.
    """

    index_B: np.ndarray
    num_passes: int
    min_rows: int


@dataclass(frozen=True, slots=True)
class Sampler:
    """The order of training samples.

    Args:
        num_samples: samples of the training split.
        global_batch_size: most samples per optimizer step, over all ranks.
        seed: seed of the order.
        balanced_labels: label of each sample (`rarest_labels`), to see every class equally often:
            those of a rare class several times per epoch, not all of a frequent one. Empty: each
            sample once.
    """

    num_samples: int
    global_batch_size: int
    seed: int
    balanced_labels: tuple[int, ...] = ()

    @property
    def num_steps(self) -> int:
        """Optimizer steps per epoch."""
        return -(-self.num_samples // self.global_batch_size)

    @property
    def min_step_size(self) -> int:
        """Samples of the smallest step."""
        return self.num_samples // self.num_steps

    def step_indices(
        self, epoch: int, step: int, *, rank: int = 0, world_size: int = 1
    ) -> np.ndarray:
        """Return int64 [B]: the samples of one rank in one step (0-based) of an epoch."""
        if self.balanced_labels:
            order = _balanced_order(self.balanced_labels, self.seed, epoch)
        else:
            order = _permutation(self.num_samples, self.seed, epoch)
        start, stop = _share(self.num_samples, self.num_steps, step)
        return divide(order[start:stop], rank, world_size)

    def max_pass_rows(self, world_size: int, batch_size: int) -> int:
        """Return the samples of the largest forward pass of any rank and step."""
        sizes = {self.min_step_size, -(-self.num_samples // self.num_steps)}
        return max(_pass_rows(size, world_size, batch_size) for size in sizes)

    def share(
        self,
        epoch: int,
        step: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        fixed_shape: bool = False,
    ) -> Share:
        """Return what a rank does in one step.

        Args:
            epoch: 0-based.
            step: 0-based, of the epoch.
            batch_size: most rows of a pass.
            rank: which.
            world_size: among how many the step is divided.
            fixed_shape: give every pass of every rank and step the same number of rows.
        """
        start, stop = _share(self.num_samples, self.num_steps, step)
        num_passes = _num_passes(stop - start, world_size, batch_size)
        # Of one image each, there are no passes of two: nor is there batch normalisation.
        pass_rows = min(_MIN_PASS_ROWS, batch_size)
        if fixed_shape:
            pass_rows = max(pass_rows, self.max_pass_rows(world_size, batch_size))
        index_B = self.step_indices(epoch, step, rank=rank, world_size=world_size)
        return Share(index_B, num_passes, num_passes * pass_rows)


def rarest_labels(labels_N: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the label that each sample is counted under when classes are balanced.

    That is its only one; of several the rarest, or an image of two classes would always be drawn as
    one of the frequent. Images without any label are a class of their own, -1.
    """
    labels_N = list(labels_N)
    counts = Counter(label for labels in labels_N for label in labels)

    def rarity(label: int) -> tuple[int, int]:
        return counts[label], label

    return tuple(min(labels, key=rarity, default=-1) for labels in labels_N)


def divide(index_B: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return this rank's part; the parts are disjoint, cover `index_B`, differ by one at most."""
    start, stop = _share(len(index_B), world_size, rank)
    return index_B[start:stop]


def _num_passes(step_size: int, world_size: int, batch_size: int) -> int:
    """Return the passes of every rank: as many as the one with the largest share needs."""
    return max(1, -(-step_size // (world_size * batch_size)))


def _pass_rows(step_size: int, world_size: int, batch_size: int) -> int:
    """Return the rows of the largest pass of any rank."""
    return -(-step_size // (world_size * _num_passes(step_size, world_size, batch_size)))


def _share(total: int, num_parts: int, part: int) -> tuple[int, int]:
    return total * part // num_parts, total * (part + 1) // num_parts


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    # Sorting hashes, unlike numpy's Generator, gives the same order in every version of numpy.
    order = np.argsort(hash64(seed, epoch, np.arange(num_samples)), kind="stable")
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)
def _balanced_order(labels: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    """Return as many samples as there are, with every class equally often, give or take one."""
    label_N = np.asarray(labels)
    shuffled = _permutation(len(labels), seed, epoch)
    classes = np.unique(label_N)
    chosen = []
    for place, label in enumerate(classes):
        start, stop = _share(len(labels), len(classes), place)
        members = shuffled[label_N[shuffled] == label]
        # Where a class comes several times, each of its samples comes equally often, or once more.
        chosen.append(np.resize(members, stop - start))
    order = np.concatenate(chosen)
    mixed = order[np.argsort(hash64(seed, epoch, np.arange(len(order)), 1), kind="stable")]
    mixed.flags.writeable = False
    return np.asarray(mixed)
