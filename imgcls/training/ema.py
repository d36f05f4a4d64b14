"""A moving average of the weights, often better than the weights themselves.

In: a model after each step. Out: a second model, slowly following. Invariant: the average is state
like the weights: in every checkpoint, and the same after a resume. Polyak and Juditsky (1992).
"""

import copy

import torch
from torch import nn


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
    ours, theirs = average.state_dict(), model.state_dict()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], rate)
        else:
            tensor.copy_(theirs[name])
