"""Published augmentation policies: RandAugment, TrivialAugment, AugMix, as torchvision has them.

In: uint8 [B,C,P,P] and a seed per image. Out: uint8 [B,C,P,P]. Invariant: as in augment.py, an
image's result depends on its pixels and its seed only; torch's generator is left as it was.

They invert, solarise and posterise: made for photographs, and seldom right where a grey level means
something. Image by image, so about a millisecond each. Shape legend: B batch, C channel, P
image_px.
"""

from typing import Literal

import torch
from torchvision.transforms import v2

Policy = Literal["none", "randaugment", "trivialaugment", "augmix"]

_TRANSFORMS = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "augmix": v2.AugMix,
}


def apply_policy(x_BCHW: torch.Tensor, seeds: list[int], policy: Policy) -> torch.Tensor:
    """Change each image by its own draw of the policy.

    Args:
        x_BCHW: uint8 [B,C,P,P].
        seeds: one per image.
        policy: which.
    """
    if policy == "none":
        return x_BCHW
    transform = _TRANSFORMS[policy]()
    changed = []
    with torch.random.fork_rng(devices=[]):
        for x_CHW, seed in zip(x_BCHW, seeds, strict=True):
            torch.manual_seed(seed)
            changed.append(transform(x_CHW))
    return torch.stack(changed)
