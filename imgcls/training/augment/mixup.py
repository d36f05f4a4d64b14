"""Mixup and cutmix: train on pairs of images and on both their labels.

In: a normalised batch and its targets. Out: the same shapes, mixed. Invariant: which pairs and how
much depends on the step's number and the batch alone; images are paired within a rank, so unlike
every other augmentation this one differs between one worker and two.

Zhang et al., mixup (ICLR 2018); Yun et al., CutMix (ICCV 2019). Shape legend: B batch, C channel, K
classes, H, W height and width of the input.
"""

import math

import numpy as np
import torch

from imgcls.training.augment.counter_rng import hash64

_STREAM = 3  # keeps these draws apart from others of the same seed and step


def mix(
    x_BCHW: torch.Tensor,
    target_BK: torch.Tensor,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    seed: int,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image with its opposite in the batch.

    Args:
        x_BCHW: float [B,C,H,W], normalised.
        target_BK: float32 [B,K].
        mixup_alpha: Beta(alpha, alpha) gives the share; 0 turns mixup off.
        cutmix_alpha: the same for cutmix. Where both are on, each step takes one of them.
        seed: of the run.
        step: optimizer step of the run.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return x_BCHW, target_BK
    rng = np.random.default_rng(int(hash64(seed, step, _STREAM)[0]))
    use_cutmix = rng.random() < 0.5 if mixup_alpha > 0 and cutmix_alpha > 0 else cutmix_alpha > 0
    alpha = cutmix_alpha if use_cutmix else mixup_alpha
    kept = float(rng.beta(alpha, alpha))
    if use_cutmix:
        x_BCHW, kept = _paste(x_BCHW, kept, rng)
    else:
        x_BCHW = x_BCHW * kept + x_BCHW.flip(0) * (1.0 - kept)
    return x_BCHW, target_BK * kept + target_BK.flip(0) * (1.0 - kept)


def _paste(
    x_BCHW: torch.Tensor, kept: float, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Put a rectangle of the opposite image into each; return the share that was kept, too."""
    sides_px = x_BCHW.shape[-2:]
    cut_h, cut_w = (round(side_px * math.sqrt(1.0 - kept)) for side_px in sides_px)
    top = int(rng.integers(0, sides_px[0] - cut_h + 1))
    left = int(rng.integers(0, sides_px[1] - cut_w + 1))
    rows, columns = slice(top, top + cut_h), slice(left, left + cut_w)
    mixed = x_BCHW.clone()
    mixed[:, :, rows, columns] = x_BCHW.flip(0)[:, :, rows, columns]
    return mixed, 1.0 - (cut_h / sides_px[0]) * (cut_w / sides_px[1])
