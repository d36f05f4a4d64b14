"""How a training computes: the precision of products, autocast, the scale of its loss, compiling.

In: a recipe, a device. Out: torch's switches, a context, a compiled module. Invariant: `train` and
`bench train` compute alike, because both come here: what is measured is what trains.
"""

import logging
from collections.abc import Iterable
from typing import Final, cast

import torch
from torch import nn

from imgcls.config.choices import TrainPrecision
from imgcls.errors import ConfigError
from imgcls.inference.backends.arithmetic import gpu_has_bf16, set_fp32_arithmetic
from imgcls.training.train_plan import Recipe

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
# As torch.amp.GradScaler has them; Micikevicius et al., Mixed precision training (ICLR 2018).
_FIRST_SCALE: Final = 2.0**16
_GROWS_AFTER_STEPS: Final = 2_000

log = logging.getLogger(__name__)


def set_arithmetic(precision: TrainPrecision, device: torch.device) -> None:
    """Set what float32 products of this process mean, and say what the precision costs here.

    They are IEEE in bf16 trainings, too: what autocast leaves in float32, it does for a reason.
    """
    set_fp32_arithmetic("fp32")
    if device.type != "cuda":
        return
    if precision == "fp16" and gpu_has_bf16(device):
        log.info("training in fp16: this GPU has bf16, as fast and without a scale to look after")
    if precision == "fp32" and gpu_has_bf16(device):
        log.info("training in fp32: --precision bf16 makes use of this GPU's faster arithmetic")
    if precision == "bf16" and not gpu_has_bf16(device):
        log.warning("--precision bf16: this GPU emulates it, slower than fp32; take fp16 or auto")


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: two bytes where it is safe, if the recipe says so."""
    dtype = _DTYPES.get(recipe.precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


class LossScale:
    """What the loss is multiplied by, so that gradients of fp16 do not round to zero.

    Halved after a step whose gradients overflowed, and which changes no weight; doubled after
    2,000 without one. Not torch's GradScaler: it asks the device for the answer at each step, or
    takes the place of what else says that a step is bad; and its state is not tensors.

    Attributes:
        state_3: float32 on the device: the scale, steps since it changed, steps that overflowed.
    """

    def __init__(self, device: torch.device) -> None:
        self.state_3 = torch.tensor([_FIRST_SCALE, 0.0, 0.0], device=device)

    @property
    def value(self) -> torch.Tensor:
        """The scale, one float32."""
        return self.state_3[0]

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """Divide the gradients by the scale; return 1.0 if one of them overflowed, else 0.0.

        The scale of the next step follows. Ranks agree: they have the same gradients.
        """
        grads = [one.grad for one in parameters if one.grad is not None]
        torch._foreach_mul_(grads, self.value.reciprocal())
        largest = torch.stack([grad.abs().amax() for grad in grads if grad.numel()]).amax()
        overflowed = (~largest.isfinite()).float()
        scale, num_good, num_bad = self.state_3.unbind()
        num_good = (num_good + 1) * (1 - overflowed)
        grows = (num_good >= _GROWS_AFTER_STEPS).float()
        self.state_3 = torch.stack(
            [
                scale * (1 - 0.5 * overflowed) * (1 + grows),
                num_good * (1 - grows),
                num_bad + overflowed,
            ]
        )
        return overflowed

    def check(self, num_steps: int) -> None:
        """Say how many steps overflowed; waits for the device.

        Raises:
            ConfigError: they overflow at any scale.
        """
        scale, _, num_bad = self.state_3.tolist()
        if scale < 1:
            raise ConfigError(
                f"--precision fp16: gradients are beyond float16's 65,504 even unscaled, in "
                f"{num_bad:.0f} of {num_steps} steps, which changed no weight. Take --precision "
                "bf16 or fp32"
            )
        log.info("fp16: %d of %d steps overflowed and were left out", num_bad, num_steps)


def compile_steps(wrapped: nn.Module) -> nn.Module:
    """Compile a model as `Place.wrap` made it, for passes that are all of one shape.

    From outside: so the compiler cuts the graph where DDP sends gradients, while others are still
    computed.
    """
    return cast(nn.Module, torch.compile(wrapped))
