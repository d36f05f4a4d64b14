"""What a training step minimises: a loss per image, and how much each image weighs.

In: logits and targets. Out: float32 [B]. Invariant: one value per image, so that the step can weigh
and count images over all ranks itself. Shape legend: B batch, K classes.
"""

from typing import Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy, one_hot

# Lin et al., Focal loss for dense object detection (ICCV 2017), found 2 best.
FOCAL_GAMMA = 2.0

LossName = Literal["cross_entropy", "focal"]


def loss_per_image(
    logits_BK: torch.Tensor, target_BK: torch.Tensor, loss: LossName
) -> torch.Tensor:
    """Return the loss of each image.

    Args:
        logits_BK: float32 [B,K].
        target_BK: float32 [B,K], rows that sum to 1.
        loss: "focal" lets images that are right already weigh less, by (1 - p) ** FOCAL_GAMMA.
    """
    loss_B = cross_entropy(logits_BK, target_BK, reduction="none")
    if loss == "focal":
        prob_B = (logits_BK.softmax(dim=1) * target_BK).sum(dim=1)
        loss_B = (1.0 - prob_B) ** FOCAL_GAMMA * loss_B
    return loss_B


def smooth_targets(label_B: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Return float32 [B,K]: 1 - smoothing on the label, and smoothing spread over all classes."""
    hard_BK = one_hot(label_B, num_classes).float()
    return hard_BK * (1.0 - smoothing) + smoothing / num_classes


def balanced_class_weights(label_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return float32 [K] that give every class the same total weight, 1 on average over images."""
    counts_K = np.bincount(label_N, minlength=num_classes)
    return (len(label_N) / (num_classes * np.maximum(counts_K, 1))).astype(np.float32)
