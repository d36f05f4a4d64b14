import pytest
import torch

from imgcls.image.policy import apply_policy

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
