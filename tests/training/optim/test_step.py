"""What a step counts as right: the images as they were trained on."""

from typing import Any

import pytest
import torch
from torch import nn

from imgcls.training.augment.geometric import build_recipe
from imgcls.training.data.loader import Batch
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
