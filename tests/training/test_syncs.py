"""How often a training step makes the CPU wait for the device: seldom, and never for its own step.

On a GPU each of these waits until the GPU has done all it was given. Without one they are counted
all the same: what reads a tensor's values, and what makes a tensor of Python's numbers, which is a
copy to the device that is waited for.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.model.architectures import build_model
from imgcls.training.augment.changes import ImageChanges
from imgcls.training.augment.counter_rng import uniform
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.data.loader import Batch
from imgcls.training.optim.ema import copy_for_average
from imgcls.training.optim.late import LateRead
from imgcls.training.optim.optimizer import build_optimizer
from imgcls.training.optim.step import train_step
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import Recipe
from tests.kit.samples import labelled
from tests.training.rank_main import SIDE_PX, make_recipe

B = 8
_READS = (
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
)
_MAKES = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor)
_READING_OPERATIONS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


class _Calls(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func in _READS or func in _MAKES:
            self._seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func._schema.name
        if name in _READING_OPERATIONS:
            self._seen.append(name)
        if name == "aten::index.Tensor" and any(i.dtype == torch.bool for i in args[1]):
            self._seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[list[str]]:
    seen: list[str] = []
    with _Calls(seen), _Operations(seen):
        yield seen


def make_state(recipe: Recipe) -> TrainState:
    torch.manual_seed(0)
    model = build_model("simple_cnn", 3)
    model.train()
    optimizer = build_optimizer(model, recipe.optimizer, lr=0.01, weight_decay=0.01)
    return TrainState(model, optimizer, copy_for_average(model))


def make_batch(recipe: Recipe) -> Batch:
    rng = np.random.default_rng(0)
    x_BCHW = rng.integers(0, 256, (B, 3, SIDE_PX, SIDE_PX), dtype=np.uint8)
    index_B = np.arange(B)
    with ImageChanges(
        seed=0, epoch=0, recipe=recipe.augment, policy=recipe.policy, num_threads=1
    ) as changes:
        x_BCHW, draws_BN = changes.apply(x_BCHW, index_B)
    return Batch(
        torch.from_numpy(x_BCHW),
        torch.eye(3)[torch.from_numpy(index_B % 3)],
        torch.ones(B),
        torch.from_numpy(index_B),
        torch.from_numpy(draws_BN) if draws_BN.size else None,
        num_passes=2,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": build_recipe("strong", "both"), "max_grad_norm": 1.0, "ema_decay": 0.9},
        {"multi_label": True, "pos_weight": (1.0, 2.0, 3.0), "loss": "focal"},
        {"policy": "randaugment", "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
        {"precision": "bf16", "channels_last": True, "optimizer": "sgd"},
        {"precision": "fp16", "max_grad_norm": 1.0},
    ],
)
def test_a_step_reads_nothing_from_the_device_and_sends_it_no_number(
    changes: dict[str, Any],
) -> None:
    recipe = make_recipe(1, batch_size=B // 2, **changes)
    state, batch = make_state(recipe), make_batch(recipe)
    # The first step puts the constants where they are kept; every other finds them.
    train_step(state, state.model, batch, 0.01, recipe, Place(), [])
    with counted() as seen:
        result = train_step(state, state.model, batch, 0.01, recipe, Place(), [])
        # The two sums of the batch's weights are the CPU's, as the batch is.
        assert Counter(seen) == {"__float__": 2, "aten::_local_scalar_dense": 2}
        seen.clear()
        assert result.loss_sum > 0
        result.check()
        assert result.num_right >= 0
    assert seen == ["tolist"], "one read for all that there is to know of a step"


def test_a_late_read_waits_for_nothing_that_came_after_it() -> None:
    """On a CPU the values are there; what counts is that nobody else writes to them."""
    values = torch.ones(3)
    late = LateRead(values.clone())
    values += 1
    assert late.read() == [1.0] * 3


class AmongOthers(Place):
    """Stands for one of several ranks whose loss is not finite, if this one's is not."""

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        return values * 3


@pytest.mark.parametrize("place", [Place(), AmongOthers()])
def test_a_step_that_is_not_finite_changes_no_weight_before_anybody_has_looked(
    place: Place,
) -> None:
    for optimizer in ("adamw", "sgd"):
        recipe = make_recipe(1, batch_size=B, optimizer=optimizer)
        state, batch = make_state(recipe), make_batch(recipe)
        train_step(state, state.model, batch, 0.01, recipe, Place(), [])
        before = {n: p.detach().clone() for n, p in state.model.named_parameters()}
        broken = BreaksLogits(state.model)
        result = train_step(state, broken, batch, 0.01, recipe, place, named(B))
        assert all(torch.equal(before[n], p) for n, p in state.model.named_parameters())
        with pytest.raises(ConfigError, match=r"the loss is (nan|inf) in epoch 1.*u0, u1"):
            result.check()
        # The next one continues from the same weights.
        train_step(state, state.model, batch, 0.01, recipe, Place(), []).check()
        assert any(not torch.equal(before[n], p) for n, p in state.model.named_parameters())


class BreaksLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.model(x_BCHW)
        return logits_BK * float("inf")


def named(count: int) -> list[Sample]:
    return [labelled(f"u{number}", 0) for number in range(count)]


def test_the_draws_of_a_batch_are_those_that_the_step_made_itself() -> None:
    recipe = make_recipe(1)
    batch = make_batch(recipe)
    assert batch.draws_BN is not None
    assert np.array_equal(batch.draws_BN.numpy(), uniform(0, 0, np.arange(B), 16))
