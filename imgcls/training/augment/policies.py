"""Published augmentation policies: RandAugment, TrivialAugment, AugMix, as torchvision has them.

In: uint8 [B,C,P,P] and a seed per image. Out: uint8 [B,C,P,P]. Invariant: as in changes.py, an
image's result depends on its pixels and its seed only; no generator of torch's own is read or
seeded, so that any thread may do it while another trains.

They invert, solarise and posterise: made for photographs, and seldom right where a grey level means
something. Image by image, so about a millisecond each. Shape legend: B batch, C channel, P
image_px.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

Policy = Literal["none", "randaugment", "trivialaugment", "augmix"]

_TRANSFORMS = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "augmix": v2.AugMix,
}
# What they draw with; the tests notice if that grows.
_DRAWS = frozenset({torch.rand, torch.randint, torch._sample_dirichlet})


class _DrawFrom(TorchFunctionMode):
    """Lets torchvision's transforms, which take no generator, draw from one; for this thread only.

    torch.manual_seed would seed the generators of every CUDA device, too, and of all threads.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the function returns
        del types
        if func in _DRAWS:
            return func(*args, **(kwargs or {}) | {"generator": self._generator})
        return func(*args, **(kwargs or {}))


def apply_policy(x_BCHW: torch.Tensor, seeds: list[int], policy: Policy) -> torch.Tensor:
    """Change each image by its own draw of the policy.

    Args:
        x_BCHW: uint8 [B,C,P,P], on the CPU.
        seeds: one per image.
        policy: which.
    """
    if policy == "none":
        return x_BCHW
    transform = _TRANSFORMS[policy]()
    generator = torch.Generator()
    changed = []
    with _DrawFrom(generator):
        for x_CHW, seed in zip(x_BCHW, seeds, strict=True):
            generator.manual_seed(seed)
            changed.append(transform(x_CHW))
    return torch.stack(changed)
