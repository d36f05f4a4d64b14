"""How a training computes: the precision of products, autocast, compiling.

In: a recipe, a device. Out: torch's switches, a context, a compiled module. Invariant: `train` and
`bench train` compute alike, because both come here: what is measured is what trains.
"""

import logging
from typing import cast

import torch
from torch import nn

from imgcls.config.choices import TrainPrecision
from imgcls.inference.backends.arithmetic import gpu_has_bf16, set_fp32_arithmetic
from imgcls.training.train_plan import Recipe

log = logging.getLogger(__name__)


def set_arithmetic(precision: TrainPrecision, device: torch.device) -> None:
    """Set what float32 products of this process mean, and say what the precision costs here.

    They are IEEE in bf16 trainings, too: what autocast leaves in float32, it does for a reason.
    """
    set_fp32_arithmetic("fp32")
    if device.type != "cuda":
        return
    if precision == "fp32" and gpu_has_bf16(device):
        log.info("training in fp32: --precision bf16 makes use of this GPU's faster arithmetic")
    if precision == "bf16" and not gpu_has_bf16(device):
        log.warning("--precision bf16: this GPU emulates it, slower than fp32")


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 where it is safe, if the recipe says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")


def compile_steps(wrapped: nn.Module) -> nn.Module:
    """Compile a model as `Place.wrap` made it, for passes that are all of one shape.

    From outside: so the compiler cuts the graph where DDP sends gradients, while others are still
    computed.
    """
    return cast(nn.Module, torch.compile(wrapped))
