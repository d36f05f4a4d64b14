"""A moving average of the weights, often better than the weights themselves.

In: a model after each step. Out: a second model, slowly following. Invariant: the average is state
like the weights: in every checkpoint, and the same after a resume. Polyak and Juditsky (1992).

The tensors of both are looked up once, and moved by one call for all: name by name, a ResNet-50
takes a few thousand calls of Python at every step.
"""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn


class _Tensors(NamedTuple):
    """What a checkpoint of a model holds: of floating point, and counts."""

    floats: list[torch.Tensor]
    counts: list[torch.Tensor]


# The very parameters and buffers, whose values change in place; gone with their model.
_of_model: WeakKeyDictionary[nn.Module, _Tensors] = WeakKeyDictionary()


def copy_for_average(model: nn.Module) -> nn.Module:
    """Return a copy that no gradient reaches."""
    average = copy.deepcopy(model)
    return average.requires_grad_(False).eval()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float, num_steps: int) -> None:
    """Move the average towards the model after its num_steps-th step, counted from 1.

    The first steps move it faster, (1 + n) / (10 + n), so that the initial weights are soon
    forgotten, as in TensorFlow's ExponentialMovingAverage.
    """
    rate = 1.0 - min(decay, (1.0 + num_steps) / (10.0 + num_steps))
    ours, theirs = _tensors(average), _tensors(model)
    torch._foreach_lerp_(ours.floats, theirs.floats, rate)
    if ours.counts:
        torch._foreach_copy_(ours.counts, theirs.counts)


def _tensors(model: nn.Module) -> _Tensors:
    if model not in _of_model:
        tensors = list(_saved(model))
        _of_model[model] = _Tensors(
            [tensor for tensor in tensors if tensor.is_floating_point()],
            [tensor for tensor in tensors if not tensor.is_floating_point()],
        )
    return _of_model[model]


def _saved(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the parameters and buffers that a checkpoint holds: not state_dict's views of them."""
    saved = model.state_dict().keys()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in saved:
            yield tensor
