import pytest

from imgcls.scoring.planning.shard_sizes import MIN_SHARD_SIZE, derive_shard_size, shard_sizes


@pytest.mark.parametrize(
    ("num_images", "asked", "num_workers", "derived"),
    [
        (600, 0, 1, 64),
        (64_000, 0, 1, 1024),
        (64_000, 0, 100, 128),
        (10**8, 0, 1, 2048),
        (10**8, 8192, 1, 8192),
    ],
)
def test_derived_shard_size_is_bounded_and_gives_every_worker_several(
    num_images: int, asked: int, num_workers: int, derived: int
) -> None:
    assert derive_shard_size(num_images, asked, num_workers) == derived


@pytest.mark.parametrize("num_images", [1, 63, 64, 65, 2000, 99_999, 1_000_003])
@pytest.mark.parametrize("num_workers", [1, 3, 40])
def test_sizes_add_up_and_shrink_towards_the_end(num_images: int, num_workers: int) -> None:
    sizes = list(shard_sizes(num_images, num_workers=num_workers))
    assert sum(sizes) == num_images
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= MIN_SHARD_SIZE
    # What the last shard of the largest size holds is no more than what each worker gets after it.
    if sizes[0] > MIN_SHARD_SIZE:
        after = sum(size for size in sizes if size < sizes[0])
        assert after >= num_workers * sizes[0] / 2


def test_asked_size_is_kept() -> None:
    assert list(shard_sizes(1000, 300, num_workers=8)) == [300, 300, 300, 100]


def test_workers_of_equal_speed_end_within_a_small_shard_of_each_other() -> None:
    num_workers = 5
    busy_until = [0.0] * num_workers
    for size in shard_sizes(200_000, num_workers=num_workers):
        first = min(range(num_workers), key=busy_until.__getitem__)
        busy_until[first] += size
    assert max(busy_until) - min(busy_until) <= 2 * MIN_SHARD_SIZE
