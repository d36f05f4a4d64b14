"""What a step counts as right: the images as they were trained on."""

from typing import Any

import pytest
import torch
from torch import nn

from imgcls.errors import ConfigError
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.data.loader import Batch
from imgcls.training.optim import precision
from imgcls.training.optim.optimizer import build_optimizer
from imgcls.training.optim.step import StepResult, is_right, train_step
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from tests.training.rank_main import SIDE_PX, make_recipe


class SaysTheSame(nn.Module):
    """Gives every image the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits_K = nn.Parameter(torch.tensor(logits))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.logits_K.expand(len(x_BCHW), -1)


def step(
    logits: list[float], targets: list[list[float]], weights: list[float], **changes: Any
) -> StepResult:
    model = SaysTheSame(logits)
    state = TrainState(model, build_optimizer(model, "sgd", lr=0.1, weight_decay=0.0))
    num_images = len(targets)
    batch = Batch(
        torch.zeros((num_images, 3, SIDE_PX, SIDE_PX), dtype=torch.uint8),
        torch.tensor(targets),
        torch.tensor(weights),
        torch.arange(num_images),
    )
    recipe = make_recipe(1, augment=build_recipe("none"), **changes)
    return train_step(state, model, batch, 0.1, recipe, Place(), [])


A, B = [1.0, 0.0], [0.0, 1.0]


@pytest.mark.parametrize(
    "changes", [{}, {"label_smoothing": 0.2}, {"batch_size": 2}, {"loss": "focal"}]
)
def test_a_step_counts_the_images_whose_class_is_on_top(changes: dict[str, Any]) -> None:
    result = step([2.0, -1.0], [A, B, A, A, B], [1.0] * 5, **changes)
    assert (result.num_right, result.num_seen, result.num_images) == (3, 5, 5)


def test_rows_that_stand_for_no_image_do_not_count_and_weights_do_not_weigh() -> None:
    result = step([2.0, -1.0], [A, B, A], [4.0, 0.5, 0.0])
    assert (result.num_right, result.num_seen) == (1, 2)


def test_of_several_labels_the_whole_set_has_to_be_right() -> None:
    targets = [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    result = step([1.0, 1.0, -1.0], targets, [1.0] * 3, multi_label=True, label_smoothing=0.1)
    assert (result.num_right, result.num_seen) == (1, 3)


def test_of_a_mixed_image_the_greater_share_counts() -> None:
    mixed = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    assert is_right(torch.tensor([[1.0, 0.0]] * 2), mixed, multi_label=False).tolist() == [
        True,
        False,
    ]
    # Every image is mixed with its opposite in the batch: all of A with all of B, one share each.
    result = step([2.0, -1.0], [A, A, B, B], [1.0] * 4, mixup=1.0)
    assert (result.num_right, result.num_seen) == (2, 4)


def linear_step(state: TrainState, arithmetic: str) -> StepResult:
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randint(0, 256, (4, 3, SIDE_PX, SIDE_PX), generator=generator).to(torch.uint8)
    batch = Batch(x_BCHW, torch.tensor([A, B, A, B]), torch.ones(4), torch.arange(4))
    recipe = make_recipe(1, augment=build_recipe("none"), precision=arithmetic)
    return train_step(state, state.model, batch, 1e-3, recipe, Place(), [])


def linear_state() -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE_PX * SIDE_PX, 2))
    return TrainState(model, build_optimizer(model, "sgd", lr=0.1, weight_decay=0.0))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_step_in_fp16_is_that_of_fp32_whatever_the_scale(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_FIRST_SCALE", scale)
    exact, scaled = linear_state(), linear_state()
    before = exact.model[1].weight.detach().clone()  # type: ignore[index, union-attr]
    linear_step(exact, "fp32").check()
    linear_step(scaled, "fp16").check()
    moved, expected = (one.model[1].weight - before for one in (scaled, exact))  # type: ignore[index, operator]
    assert float(expected.detach().abs().max()) > 1e-4
    torch.testing.assert_close(moved, expected, rtol=0.02, atol=1e-5)
    assert scaled.loss_scale is not None
    assert scaled.loss_scale.state_3.tolist() == [scale, 1.0, 0.0]


def test_gradients_that_overflow_in_fp16_change_no_weight_and_halve_the_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_FIRST_SCALE", 2.0**30)
    state = linear_state()
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    linear_step(state, "fp16").check()
    assert state.loss_scale is not None
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert state.loss_scale.state_3.tolist() == [2.0**29, 0.0, 1.0]
    resumed = linear_state()
    resumed.restore(state.snapshot())
    state.loss_scale.state_3[:2] = torch.tensor([8.0, 1_999.0])
    for _ in range(2):
        linear_step(state, "fp16").check()
    assert state.loss_scale.state_3.tolist() == [16.0, 1.0, 1.0], "doubled, and counted from there"
    assert resumed.loss_scale is not None
    assert resumed.loss_scale.state_3.tolist() == [2.0**29, 0.0, 1.0]
    state.loss_scale.check(3)
    state.loss_scale.state_3[0] = 0.5
    with pytest.raises(ConfigError, match=r"gradients are beyond .* in 1 of 3 steps"):
        state.loss_scale.check(3)
