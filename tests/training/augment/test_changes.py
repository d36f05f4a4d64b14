"""Policies done by threads of the loader, to the bit what one call would do."""

from pathlib import Path

import numpy as np
import pytest
import torch

from imgcls.image.decoders.pool import DecoderPool
from imgcls.training.augment.changes import ImageChanges
from imgcls.training.augment.counter_rng import image_seeds, uniform
from imgcls.training.augment.geometric import NUM_DRAWS, augment, build_recipe
from imgcls.training.augment.policies import apply_policy
from imgcls.training.data.sampler import Share
from imgcls.training.optim.loop import make_changes
from tests.training.data.test_loader import make_loader, numbered_samples
from tests.training.rank_main import make_recipe

SIDE_PX = 24


def images(num: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, 3, SIDE_PX, SIDE_PX), dtype=np.uint8)


def changes(policy: str, augmentation: str = "standard", num_threads: int = 1) -> ImageChanges:
    recipe = build_recipe(augmentation)  # type: ignore[arg-type]  # parametrised
    return ImageChanges(seed=3, epoch=2, recipe=recipe, policy=policy, num_threads=num_threads)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "augmix"])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_policy_follows_the_augmentation_as_it_did_on_the_device(
    policy: str, num_threads: int
) -> None:
    x_BCHW, index_B = images(9), np.array([5, 1, 8, 70, 3, 3, 11, 2, 0])
    draws_BN = uniform(3, 2, index_B, NUM_DRAWS)
    expected = augment(
        torch.from_numpy(x_BCHW), torch.from_numpy(draws_BN), build_recipe("standard")
    )
    expected = apply_policy(expected, image_seeds(3, 2, index_B), policy)  # type: ignore[arg-type]  # as above
    with changes(policy, num_threads=num_threads) as made:
        found, left_BN = made.apply(x_BCHW, index_B)
    assert np.array_equal(found, expected.numpy())
    assert left_BN.shape == (9, 0), "nothing is left for the device"


def test_the_threads_of_a_policy_take_none_from_the_training() -> None:
    torch.set_num_threads(2)
    with changes("randaugment", num_threads=3) as made:
        assert torch.get_num_threads() == 2
        made.apply(images(6), np.arange(6))
    assert torch.get_num_threads() == 2


def test_without_a_policy_the_device_augments_by_numbers_that_come_along() -> None:
    x_BCHW, index_B = images(4), np.arange(4)
    with changes("none") as made:
        found, draws_BN = made.apply(x_BCHW, index_B)
    assert found is x_BCHW
    assert np.array_equal(draws_BN, uniform(3, 2, index_B, NUM_DRAWS))
    with changes("none", "none") as made:
        found, draws_BN = made.apply(x_BCHW, index_B)
    assert found is x_BCHW
    assert draws_BN.shape == (4, 0)


def test_the_loader_hands_out_changed_images_that_are_the_same_after_a_resume(
    tmp_path: Path, pool: DecoderPool
) -> None:
    loader = make_loader(numbered_samples(tmp_path, 12), pool, "ram")
    recipe = make_recipe(1, policy="trivialaugment")
    shares = [Share(np.arange(start, start + 4), 1, 2) for start in (0, 4, 8)]
    with make_changes(loader, recipe, epoch=1) as made:
        whole = list(loader.batches_to_train(shares, made))
    with make_changes(loader, recipe, epoch=1) as made:
        resumed = list(loader.batches_to_train(shares[1:], made))
    assert all(batch.draws_BN is None for batch in whole)
    for before, after in zip(whole[1:], resumed, strict=True):
        assert torch.equal(before.x_BCHW, after.x_BCHW)
    plain = list(loader.batches([share.index_B for share in shares]))
    assert not torch.equal(whole[0].x_BCHW, plain[0].x_BCHW)
    # What is cached, validated and measured stays as it was decoded.
    assert plain[0].x_BCHW[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
