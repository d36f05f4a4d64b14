import numpy as np

from imgcls.training.augment.counter_rng import hash64, step_seed, uniform


def test_a_draw_depends_on_its_coordinates_alone() -> None:
    together = uniform(3, 1, np.arange(100), 16)
    alone = np.concatenate([uniform(3, 1, np.array([i]), 16) for i in (40, 7)])
    assert np.array_equal(together[[40, 7]], alone)


def test_draws_are_uniform_and_never_one() -> None:
    draws = uniform(0, 0, np.arange(20_000), 4)
    assert draws.dtype == np.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert np.abs(counts - 8000).max() < 500


def test_seed_epoch_sample_and_column_each_change_the_draw() -> None:
    index = np.arange(1000)
    first = uniform(0, 0, index, 2)
    for other in (uniform(1, 0, index, 2), uniform(0, 1, index, 2), uniform(0, 0, index + 1, 2)):
        assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.1


def test_the_hash_stays_what_it_was() -> None:
    """A resumed run must draw what the killed one would have drawn, whatever was upgraded."""
    assert hash64(1, 2, 3).tolist() == [HASH_OF_1_2_3]
    assert step_seed(0, 0, 0) != step_seed(0, 0, 1) != step_seed(0, 1, 0)


HASH_OF_1_2_3 = 15020427595393229491
