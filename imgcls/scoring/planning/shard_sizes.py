"""How many images each shard of a run holds.

In: how many images there are, what was asked, and how many workers will share them. Out: the sizes
in plan order. Invariant: they add up to the number of images, and none is above MAX_SHARD_SIZE.

Derived sizes shrink towards the end, as in guided self-scheduling (C. Polychronopoulos and D. Kuck,
IEEE Trans. Computers C-36, 1987): a worker that takes one of the last shards is done with it soon,
so none waits alone.
"""

from collections.abc import Iterator

MIN_SHARD_SIZE, MAX_SHARD_SIZE = 64, 8192
# Small enough that a lost one costs seconds.
MAX_DERIVED_SHARD_SIZE = 2048
# Many enough that a run can be followed, and that every worker has several.
MIN_DERIVED_SHARDS, SHARDS_PER_WORKER = 64, 8
# What is left is shared out this many times over.
_ROUNDS_LEFT = 2


def derive_shard_size(num_images: int, asked: int = 0, num_workers: int = 1) -> int:
    """Return the images of a run's largest shard: as asked, or by its images and workers."""
    if asked:
        return asked
    num_shards = max(MIN_DERIVED_SHARDS, SHARDS_PER_WORKER * num_workers)
    return min(_whole_batches(-(-num_images // num_shards)), MAX_DERIVED_SHARD_SIZE)


def _whole_batches(size: int) -> int:
    """Round up to a multiple of the smallest shard: batches, powers of two, are full then."""
    return max(1, -(-size // MIN_SHARD_SIZE)) * MIN_SHARD_SIZE


def shard_sizes(num_images: int, asked: int = 0, num_workers: int = 1) -> Iterator[int]:
    """Yield the images of each shard, in order.

    Args:
        num_images: of the run.
        asked: --shard-size: every shard but the last has so many; 0 derives them.
        num_workers: actors that will share the shards.
    """
    largest = derive_shard_size(num_images, asked, num_workers)
    left = num_images
    while left > 0:
        size = largest
        if not asked:
            size = min(largest, _whole_batches(left // (_ROUNDS_LEFT * num_workers)))
        yield min(size, left)
        left -= size
