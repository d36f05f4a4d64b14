import pytest
import torch

from imgcls.training.augment.mixup import mix

X = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
TARGET = torch.eye(4)


def mixed(mixup: float, cutmix: float, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return mix(X, TARGET, mixup_alpha=mixup, cutmix_alpha=cutmix, seed=0, step=step)


def test_off_returns_what_came() -> None:
    x, target = mixed(0.0, 0.0)
    assert x is X
    assert target is TARGET


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_say_how_much_of_each_image_is_there(mixup: float, cutmix: float) -> None:
    for step in range(10):
        x, target = mixed(mixup, cutmix, step)
        assert torch.allclose(target.sum(1), torch.ones(4))
        # Image i is all i: the mean pixel is the sum of labels times their shares.
        assert torch.allclose(x.mean((1, 2, 3)), target @ torch.arange(4.0), atol=1e-5)


def test_cutmix_keeps_pixels_whole() -> None:
    x, _ = mixed(0.0, 1.0)
    for i, image in enumerate(x):
        assert set(image.unique().tolist()) <= {float(i), float(3 - i)}


def test_a_step_mixes_the_same_again_and_another_step_otherwise() -> None:
    assert torch.equal(mixed(0.4, 1.0, 5)[0], mixed(0.4, 1.0, 5)[0])
    shares = {round(mixed(0.4, 0.0, step)[1][0, 0].item(), 4) for step in range(10)}
    assert len(shares) > 5
