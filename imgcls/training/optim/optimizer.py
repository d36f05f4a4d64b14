"""The optimizer, its parameter groups and its learning rate.

In: a model and the recipe's numbers. Out: a torch optimizer; the learning rate of any step.
Invariant: the learning rate is a function of the step alone, so a resumed run needs no scheduler's
state.
"""

import math

import torch
from torch import nn

from imgcls.config.choices import Optimizer, Schedule
from imgcls.training.optim.layer_groups import find_stages

SGD_MOMENTUM = 0.9
# Where the step schedule divides by ten, as He et al. (2016) did after 1/2 and 3/4 of the steps.
STEP_MILESTONES = (0.5, 0.75)
# One-cycle as torch's OneCycleLR has it, after Smith and Topin (2018): 30 % of the steps up, from
# 1/25 of the peak, and down to 1/250000 of it.
ONECYCLE_UP, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 250_000


def build_optimizer(
    model: nn.Module,
    name: Optimizer,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Build AdamW or SGD over the parameters that are not frozen.

    Weight decay spares biases, norms and all else of one dimension. Each stage learns layer_decay
    times as fast as the one after it; the head learns at `lr`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    stages = find_stages(model)
    for depth, stage in enumerate(stages):
        lr_scale = layer_decay ** (len(stages) - 1 - depth)
        for parameter in stage.parameters:
            if parameter.requires_grad:
                decay = weight_decay if parameter.ndim >= 2 else 0.0
                groups.setdefault((lr_scale, decay), []).append(parameter)
    described = [
        {"params": parameters, "weight_decay": decay, "lr_scale": lr_scale}
        for (lr_scale, decay), parameters in groups.items()
    ]
    if name == "adamw":
        return torch.optim.AdamW(described, lr=lr, fused=True)
    return torch.optim.SGD(described, lr=lr, momentum=SGD_MOMENTUM, fused=True)


def settle_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start the momentum of SGD at zero, which is what its first step would make of none.

    Fused, torch 2.14 leaves memory in it as it finds it where that first step is one that changes
    nothing.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if "momentum" in group else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the head, and of every stage in proportion, before a step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def lr_at(
    step: int,
    total_steps: int,
    *,
    peak_lr: float,
    warmup_fraction: float,
    schedule: Schedule = "cosine",
) -> float:
    """Return the learning rate of step 0 .. total_steps - 1.

    cosine: linear rise to peak_lr, then a cosine to zero (Loshchilov and Hutter, SGDR, ICLR 2017).
    step: the same rise, then a tenth after each of STEP_MILESTONES. onecycle: a cosine up and a
    cosine down; it has its own warm-up.
    """
    if schedule == "onecycle":
        return peak_lr * _onecycle(step / max(1, total_steps - 1))
    warmup_steps = round(warmup_fraction * total_steps)
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    if schedule == "step":
        return peak_lr * 0.1 ** sum(step >= m * total_steps for m in STEP_MILESTONES)
    return peak_lr * _cosine((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0, 0.0)


def _onecycle(progress: float) -> float:
    if progress < ONECYCLE_UP:
        return _cosine(progress / ONECYCLE_UP, ONECYCLE_START, 1.0)
    return _cosine((progress - ONECYCLE_UP) / (1.0 - ONECYCLE_UP), 1.0, ONECYCLE_END)


def _cosine(progress: float, start: float, end: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))
