"""Units - studies, parts - as samples of many instances, out of the images of a split.

In: the loader of the images, which image is of which unit. Out: Batch, as of tiles. Invariant: all
images of a unit are in one batch, but for those that give no pixels; a unit of which none does
weighs nothing, and is missing in the batch.

Shape legend: B sample, I instance, K class.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from imgcls.training.augment.changes import ImageChanges
from imgcls.training.data.ahead import run_ahead
from imgcls.training.data.assemble import Assembler
from imgcls.training.data.loader import BadImage, SplitLoader
from imgcls.training.data.sampler import Share
from imgcls.training.instances.batch import Batch
from imgcls.training.instances.cache import KnownInstances
from imgcls.training.instances.labels import InstanceTargets
from imgcls.training.units import LearntUnit

_PREFETCHED = 1  # a batch may be hundreds of megabytes
_MIN_ROWS = 2  # of a batch that no sampler planned


class UnitLoader:
    """Reads the units of one split.

    Args:
        images: Loader of the images of the split, each of which weighs 1.
        units: What is learnt; its images are places among `images.samples`.
        targets: What an image shows by itself, as far as the label of its unit tells.
        assembler: Makes batches of the units.
    """

    def __init__(
        self,
        images: SplitLoader,
        units: Sequence[LearntUnit],
        targets: InstanceTargets,
        assembler: Assembler,
    ) -> None:
        self.images, self.samples, self.name = images, units, images.name
        self._targets, self._assembler = targets, assembler

    @property
    def bad(self) -> dict[str, BadImage]:
        """Why images give no pixels, by uri."""
        return self.images.bad

    @property
    def num_threads(self) -> int:
        """How many cores the loader may use."""
        return self.images.num_threads

    def add_bad(self, found: dict[str, BadImage]) -> None:
        """Take over what another rank found bad, see `SplitLoader`."""
        self.images.add_bad(found)

    def batches(self, steps: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Yield one Batch per array of indices of units, prefetched, see `SplitLoader`."""
        shares = [Share(index_B, num_passes=0, min_rows=_MIN_ROWS) for index_B in steps]
        return run_ahead(self._read(shares, None), _PREFETCHED)

    def batches_to_train(self, shares: Iterable[Share], changes: ImageChanges) -> Iterator[Batch]:
        """Yield one Batch per share of a step, prefetched, with the changes drawn or made."""
        return run_ahead(self._read(list(shares), changes), _PREFETCHED)

    def _read(self, shares: list[Share], changes: ImageChanges | None) -> Generator[Batch]:
        steps = [self._images_of(share.index_B) for share in shares]
        with closing(self.images.batches(steps)) as batches:
            for share, batch in zip(shares, batches, strict=True):
                # Rows that weigh nothing fill a batch of images up.
                real = (batch.weight_B > 0).nonzero().flatten().tolist()
                row_of = {int(batch.index_B[row]): row for row in real}
                found = list(self._found(share.index_B, batch, row_of))
                yield self._assembler.batch_of_instances(share, found, changes)

    def _images_of(self, index_B: np.ndarray) -> np.ndarray:
        images = [image for index in index_B.tolist() for image in self.samples[index].images]
        return np.array(images, np.int64)

    def _found(
        self, index_B: np.ndarray, batch: Batch, row_of: dict[int, int]
    ) -> Iterator[tuple[int, KnownInstances]]:
        for index in index_B.tolist():
            unit = self.samples[index]
            rows = [row_of[image] for image in unit.images if image in row_of]
            if rows:
                x_ICHW = batch.x_BCHW[rows].numpy()
                target_IK = self._targets.without_places(unit.labels, len(rows))
                yield index, KnownInstances(x_ICHW, target_IK)


# The samples of a split: images, or units.
Loader = SplitLoader | UnitLoader


def images_of(loader: Loader) -> SplitLoader:
    """Return the loader of the images themselves."""
    return loader.images if isinstance(loader, UnitLoader) else loader


def why_bad(loader: Loader) -> dict[int, BadImage]:
    """Return why samples give nothing, by index: of a unit, where none of its images does."""
    if isinstance(loader, SplitLoader):
        bad = loader.bad
        return {i: bad[s.uri] for i, s in enumerate(loader.samples) if s.uri in bad}
    found = dict[int, BadImage]()
    for index, unit in enumerate(loader.samples):
        uris = [loader.images.samples[image].uri for image in unit.images]
        if all(uri in loader.bad for uri in uris):
            found[index] = loader.bad[uris[0]]
    return found
