from collections import Counter

import numpy as np
import pytest

from imgcls.training.data.sampler import Sampler, divide, rarest_labels


@pytest.mark.parametrize(
    ("num_samples", "global_batch_size"), [(100, 32), (33, 32), (7, 7), (5, 2)]
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_is_seen_once_per_epoch_whatever_the_world_size(
    num_samples: int, global_batch_size: int, world_size: int
) -> None:
    sampler = Sampler(num_samples, global_batch_size, seed=1)
    seen = Counter[int]()
    for step in range(sampler.num_steps):
        for rank in range(world_size):
            seen.update(sampler.step_indices(4, step, rank=rank, world_size=world_size).tolist())
    assert seen == Counter(range(num_samples))


def test_the_samples_of_a_step_do_not_depend_on_the_world_size() -> None:
    sampler = Sampler(101, 24, seed=0)
    for step in range(sampler.num_steps):
        alone = sampler.step_indices(2, step)
        of_ranks = [sampler.step_indices(2, step, rank=r, world_size=3) for r in range(3)]
        assert np.array_equal(np.concatenate(of_ranks), alone)


def test_steps_differ_by_one_sample_and_none_exceeds_the_batch() -> None:
    sampler = Sampler(33, 32, seed=0)
    sizes = [len(sampler.step_indices(0, step)) for step in range(sampler.num_steps)]
    assert sizes == [16, 17]
    assert sampler.min_step_size == 16


def test_order_changes_with_epoch_and_seed_and_is_otherwise_fixed() -> None:
    first = Sampler(50, 50, seed=0).step_indices(0, 0)
    assert np.array_equal(first, Sampler(50, 50, seed=0).step_indices(0, 0))
    assert not np.array_equal(first, Sampler(50, 50, seed=0).step_indices(1, 0))
    assert not np.array_equal(first, Sampler(50, 50, seed=1).step_indices(0, 0))


def test_divide_covers_everything_once() -> None:
    index_N = np.arange(11)
    parts = [divide(index_N, rank, 4) for rank in range(4)]
    assert np.array_equal(np.concatenate(parts), index_N)
    assert {len(part) for part in parts} == {2, 3}


def test_balanced_classes_come_equally_often_and_steps_stay_world_size_free() -> None:
    labels = (0,) * 90 + (1,) * 8 + (2,) * 2
    sampler = Sampler(100, 10, seed=0, balanced_labels=labels)
    epoch = np.concatenate([sampler.step_indices(3, step) for step in range(sampler.num_steps)])
    counts = Counter(labels[index] for index in epoch)
    assert len(epoch) == 100
    assert max(counts.values()) - min(counts.values()) <= 1
    # Within a class, too, no sample comes more than once more often than another.
    times = Counter(epoch.tolist())
    for label in (1, 2):
        of_class = [times[index] for index in range(100) if labels[index] == label]
        assert max(of_class) - min(of_class) <= 1
    ranks = [sampler.step_indices(3, 4, rank=rank, world_size=2) for rank in range(2)]
    assert np.array_equal(np.concatenate(ranks), sampler.step_indices(3, 4))


def test_an_image_of_several_classes_counts_as_its_rarest() -> None:
    labels_N = [(0,), (0, 1), (0, 1, 2), (), (1,)]
    assert rarest_labels(labels_N) == (0, 0, 2, -1, 1), "0 and 1 are equally frequent: the lower"
    assert rarest_labels([(2,), (0,), (2,)]) == (2, 0, 2)
