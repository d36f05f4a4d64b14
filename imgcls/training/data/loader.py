"""Labelled samples to batches of pixels, ready before the step asks for them.

In: the samples of one split and, per step, which of them. Out: Batch, in the order of the
steps. Invariant: a batch holds exactly the samples asked for, less those that give no image; such a
sample is counted and named, weighs nothing, and no neighbour takes its place.

    positions -> access (GETs in flight) -> DecoderPool (processes) -> cache -> batch
        -> policy, draws -> queue

All of it runs in a thread of its own, PREFETCH_BATCHES ahead. A sample is one crop of its file, or,
with `targets`, all of them. Shape legend: B batch, I instance, C channel, P epoch's
positions, K classes, N NUM_DRAWS.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import NamedTuple, Protocol

import numpy as np

from imgcls.errors import BudgetExceededError, ObjectUnreadableError
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.image.fit.view import Part
from imgcls.image.outcome import outcome_of
from imgcls.schema import Status
from imgcls.sources.located import access_to, request_for
from imgcls.sources.members import Member
from imgcls.storage.access import Access, ImageResult
from imgcls.storage.bulk_get import GetRequest
from imgcls.training.augment.changes import ImageChanges
from imgcls.training.data.ahead import run_ahead
from imgcls.training.data.assemble import Assembler
from imgcls.training.data.image_cache import ImageCache
from imgcls.training.data.parts import frame_chance, part_of
from imgcls.training.data.sampler import Share
from imgcls.training.instances.batch import Batch
from imgcls.training.instances.cache import InstanceCache, KnownInstances
from imgcls.training.instances.labels import InstanceTargets, PlacedImage

PREFETCH_BATCHES = 4
# Of samples of many instances: a batch may be hundreds of megabytes.
_PREFETCH_POOLED = 1
NAMED_BAD_IMAGES = 5
# Of a batch that no sampler planned.
_MIN_ROWS = 2

log = logging.getLogger(__name__)


class LabelledImage(PlacedImage, Protocol):
    """What the loader needs of a sample."""

    @property
    def uri(self) -> str:
        """Where it is."""

    @property
    def member(self) -> Member | None:
        """Of an image in a container: what is read of it."""


class BadImage(NamedTuple):
    """Why an image gives no pixels."""

    status: Status
    reason: str


class SplitLoader:
    """Reads the images of one split.

    Args:
        name: of the split, for messages.
        samples: the split, in the order that indices refer to.
        num_classes: classes of the data set.
        shape_CHW: shape of a preprocessed image.
        pool: decodes and preprocesses.
        cache: keeps what was decoded, or None to read it again each epoch, as a recipe of changes
            that are made from the source needs it; an InstanceCache where samples have instances.
        max_bad_fraction: of the split's images that may fail to give pixels.
        weight_N: float32, how much each sample weighs in the loss; 1 by default.
        pin_memory: page-lock batches, for copies to a CUDA device that do not block.
        access: of the whole data set; by default of this split alone.
        targets: what instances show, where all crops of a file are the instances of one sample;
            None where a sample is one crop.
        any_frame: it is one of the file's by chance, in each epoch another; a cache keeps all.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[LabelledImage],
        *,
        num_classes: int,
        shape_CHW: tuple[int, int, int],
        pool: DecoderPool,
        cache: ImageCache | InstanceCache | None,
        max_bad_fraction: float,
        weight_N: np.ndarray | None = None,
        pin_memory: bool = False,
        access: Access | None = None,
        targets: InstanceTargets | None = None,
        any_frame: bool = False,
    ) -> None:
        self.name, self.samples = name, samples
        self.bad: dict[str, BadImage] = {}  # by uri
        self._num_classes = num_classes
        self._shape_CHW = shape_CHW
        self._pool, self._cache, self._targets = pool, cache, targets
        self._any_frame = any_frame
        self._max_bad = int(max_bad_fraction * len(samples))
        self._assembler = Assembler(
            samples,
            num_classes=num_classes,
            shape_CHW=shape_CHW,
            weight_N=weight_N,
            pin_memory=pin_memory,
            pixel_type=pool.pixel_type,
        )
        self._access = access or access_to(samples)

    def batches(
        self, steps: Iterable[np.ndarray], watch: Callable[[int, bytes], None] | None = None
    ) -> Generator[Batch]:
        """Yield one Batch per array of sample indices, prefetched.

        Args:
            steps: which samples each batch holds.
            watch: takes (sample index, encoded bytes) of each image that is read, in another
                thread.

        Raises:
            BudgetExceededError: more images than allowed gave no pixels; names some of them.
            AccessDeniedError: the store refuses us, not one image.
            StorageError: the store failed.
        """
        shares = [Share(index_B, num_passes=0, min_rows=_MIN_ROWS) for index_B in steps]
        return run_ahead(self._read(shares, watch), self._depth)

    def batches_to_train(self, shares: Iterable[Share], changes: ImageChanges) -> Iterator[Batch]:
        """Yield one Batch per share of a step, prefetched, with the changes drawn or made.

        Raises:
            BudgetExceededError, AccessDeniedError, StorageError: as for `batches`.
        """
        return run_ahead(self._read(list(shares), None, changes), self._depth)

    @property
    def _depth(self) -> int:
        return _PREFETCH_POOLED if self._takes_all_crops else PREFETCH_BATCHES

    @property
    def _takes_all_crops(self) -> bool:
        return self._targets is not None or (self._any_frame and self._cache is not None)

    @property
    def num_threads(self) -> int:
        """How many cores the loader may use."""
        return self._pool.num_processes

    def add_bad(self, found: dict[str, BadImage]) -> None:
        """Take over what another rank found bad, by uri.

        Raises:
            BudgetExceededError: together they are too many.
        """
        self.bad |= found
        self._check_bad()

    def read(self, requests: Iterable[GetRequest]) -> Iterator[ImageResult]:
        """Read images; one that is refused while others are given is a result, and bad."""
        return self._access.read(requests, refused_before=self.bad)

    def _read(
        self,
        shares: list[Share],
        watch: Callable[[int, bytes], None] | None,
        changes: ImageChanges | None = None,
    ) -> Generator[Batch]:
        index_P = np.concatenate([np.zeros(0, np.int64), *(share.index_B for share in shares)])
        wanted_P = self._positions_to_read(index_P)
        requests = (
            request_for(int(position), self.samples[index_P[position]])
            for position in np.flatnonzero(wanted_P)
        )
        arrived: dict[int, _Pixels | None] = {}

        def on_bytes(position: int, data: bytes) -> None:
            if watch is not None:
                watch(int(index_P[position]), data)

        is_one = self._any_frame and self._cache is None

        def part_at(position: int) -> Part:
            return part_of(int(index_P[position]), changes, self._shape_CHW, is_one_frame=is_one)

        with closing(self._decode(requests, on_bytes, part_at)) as decoded:
            start = 0
            for share in shares:
                positions = range(start, start + len(share.index_B))
                start = positions.stop
                missing = {p for p in positions if wanted_P[p]} - arrived.keys()
                while missing:
                    image = next(decoded)
                    missing.discard(image.index)
                    arrived[image.index] = self._accept(int(index_P[image.index]), image)
                images = [arrived.pop(p, None) for p in positions]
                yield self._assemble(share, images, changes)

    def _positions_to_read(self, index_P: np.ndarray) -> np.ndarray:
        """Return bool [P]: of all positions in the epoch, those whose image must be fetched."""
        if self._cache is None:
            return np.ones(len(index_P), bool)
        if isinstance(self._cache, InstanceCache):  # which may have no room for what is read
            return self._cache.unknown(index_P)
        first_P = np.zeros(len(index_P), bool)
        first_P[np.unique(index_P, return_index=True)[1]] = True
        return np.asarray(first_P & self._cache.unknown(index_P))

    def _decode(
        self,
        requests: Iterator[GetRequest],
        on_bytes: Callable[[int, bytes], None],
        part_at: Callable[[int], Part],
    ) -> Generator[Decoded]:
        first = next(requests, None)
        if first is not None:  # else all is cached: no GET, and no decoder has to be woken
            results = self.read(chain([first], requests))
            yield from self._pool.decode_many(_watched(results, on_bytes), part_at)

    def _accept(self, index: int, image: Decoded) -> "_Pixels | None":
        """Keep an image that arrived; where it is bad, count it and return None.

        What was bad once stays so: an image named as left out does not train in a later epoch.
        """
        uri = self.samples[index].uri
        if image.error is not None or uri in self.bad:
            if image.error is not None:
                self._count_bad(uri, image.error, image.format)
            if self._cache is not None:
                self._cache.put_bad(index)
            return None
        if self._takes_all_crops:
            target_IK = np.full((len(image.crops), self._num_classes), np.nan, np.float32)
            if self._targets is not None:
                target_IK = self._targets.of(self.samples[index], image.crops)
            found = KnownInstances(np.stack([crop.x_CHW for crop in image.crops]), target_IK)
            if isinstance(self._cache, InstanceCache):
                self._cache.put(index, found)
            return found
        x_CHW = image.crops[0].x_CHW
        if not isinstance(self._cache, ImageCache):
            return x_CHW
        self._cache.put(index, x_CHW)
        return None

    def _count_bad(self, uri: str, error: Exception, family: str | None) -> None:
        if uri in self.bad:
            return
        status, _ = outcome_of(error, uri, family)
        self.bad[uri] = BadImage(status, str(error))
        log.warning("%s split: left out %s: %s", self.name, uri, error)
        if isinstance(error, ObjectUnreadableError) and len(self.bad) > self._max_bad:
            self._access.prove(error)
        self._check_bad()

    def _check_bad(self) -> None:
        if len(self.bad) > self._max_bad:
            named = islice(self.bad.items(), NAMED_BAD_IMAGES)
            some = "; ".join(f"{uri}: {image.reason}" for uri, image in named)
            raise BudgetExceededError(
                f"{len(self.bad)} of {len(self.samples)} images of the {self.name} split give no "
                f"pixels, --max-bad-fraction allows {self._max_bad}: {some}. "
                "Mend or remove them, or allow more."
            )

    def _assemble(
        self, share: Share, images: list["_Pixels | None"], changes: ImageChanges | None
    ) -> Batch:
        if self._targets is not None:
            found = list(self._known(share.index_B, images))
            return self._assembler.batch_of_instances(share, found, changes)
        index_B, x_BCHW = self._good_images(share.index_B, images, changes)
        return self._assembler.batch(share, index_B, x_BCHW, None, changes)

    def _good_images(
        self,
        index_B: np.ndarray,
        images: list["_Pixels | None"],
        changes: ImageChanges | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the samples have an image, and the images."""
        if self._takes_all_crops:
            frames = self._frames_by_chance(index_B, images, changes)
            x_BCHW = np.stack([x for _, x in frames]) if frames else self._no_images()
            return np.array([index for index, _ in frames], np.int64), x_BCHW
        if isinstance(self._cache, ImageCache):
            index_B = index_B[self._cache.good(index_B)]
            return index_B, self._cache.take(index_B)
        good = [x for x in images if isinstance(x, np.ndarray)]
        x_BCHW = np.stack(good) if good else self._no_images()
        return index_B[[x is not None for x in images]], x_BCHW

    def _no_images(self) -> np.ndarray:
        return np.empty((0, *self._shape_CHW), self._pool.pixel_type)

    def _known(
        self, index_B: np.ndarray, images: list["_Pixels | None"]
    ) -> Iterator[tuple[int, KnownInstances]]:
        """Yield the samples that have an image, with all of its crops."""
        for index, image in zip(index_B.tolist(), images, strict=True):
            found = image
            if found is None and isinstance(self._cache, InstanceCache):
                found = self._cache.take(index)
            if isinstance(found, KnownInstances):
                yield index, found

    def _frames_by_chance(
        self,
        index_B: np.ndarray,
        images: list["_Pixels | None"],
        changes: ImageChanges | None,
    ) -> list[tuple[int, np.ndarray]]:
        """Return a frame of each sample that has an image."""
        chosen = []
        for index, found in self._known(index_B, images):
            chosen.append((index, found.x_ICHW[frame_chance(index, changes) % len(found.x_ICHW)]))
        return chosen


# Of a sample: its crop, or all of its instances.
_Pixels = np.ndarray | KnownInstances


def _watched(
    results: Iterator[ImageResult], on_bytes: Callable[[int, bytes], None]
) -> Generator[ImageResult]:
    for position, result in results:
        if isinstance(result, bytes):
            on_bytes(position, result)
        yield position, result
