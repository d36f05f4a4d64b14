from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torchvision.transforms import v2

from imgcls.training.augment.policies import apply_policy

POLICIES = ["randaugment", "trivialaugment", "augmix"]


def images(channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, channels, 24, 24), dtype=torch.uint8, generator=generator)


def test_none_returns_the_very_batch() -> None:
    x = images()
    assert apply_policy(x, [0] * 6, "none") is x


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_own_seed_only(policy: str, channels: int) -> None:
    x, seeds = images(channels), list(range(6))
    together = apply_policy(x, seeds, policy)  # type: ignore[arg-type]  # parametrised
    assert together.shape == x.shape
    assert together.dtype == torch.uint8
    assert not torch.equal(together, x)
    for i in range(6):
        alone = apply_policy(x[i : i + 1], [i], policy)  # type: ignore[arg-type]  # parametrised
        assert torch.equal(alone[0], together[i])


def test_the_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    apply_policy(images(), list(range(6)), "trivialaugment")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_generator_of_any_device_is_seeded_or_read(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.manual_seed seeds those of every CUDA device, too, and dropout draws from them."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    apply_policy(images(), list(range(6)), policy)  # type: ignore[arg-type]  # parametrised
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_draw_what_one_draws() -> None:
    x = images()

    def change(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)  # as training does meanwhile
        return apply_policy(x[:1], [seed], "trivialaugment")

    expected = torch.cat([apply_policy(x[:1], [seed], "trivialaugment") for seed in range(64)])
    with ThreadPoolExecutor(4) as threads:
        assert torch.equal(torch.cat(list(threads.map(change, range(64)))), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_draws_are_those_of_a_seeded_generator_of_torch(policy: str) -> None:
    """So a run that was begun by an older version continues with the same images."""
    transforms = {
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
        "augmix": v2.AugMix,
    }
    x = images()
    for seed in range(6):
        torch.manual_seed(seed)
        expected = transforms[policy]()(x[seed])
        found = apply_policy(x[seed : seed + 1], [seed], policy)  # type: ignore[arg-type]  # as above
        assert torch.equal(found[0], expected)
