"""What a training step minimises: a loss per image, and how much each image weighs.

In: logits and targets. Out: float32 [B]. Invariant: one value per image, so that the step can weigh
and count images over all ranks itself. Shape legend: B batch, N samples, K classes.

Of one label per image, targets are rows that sum to 1, and the classes compete (softmax). Of any
number of labels, each class is a question of its own (sigmoid), and an image's loss is the mean
over its questions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from imgcls.config.choices import Loss

# Lin et al., Focal loss for dense object detection (ICCV 2017), found 2 best.
FOCAL_GAMMA = 2.0


def loss_per_image(
    logits_BK: torch.Tensor,
    target_BK: torch.Tensor,
    loss: Loss,
    *,
    multi_label: bool = False,
    pos_weight_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of each image.

    Args:
        logits_BK: float32 [B,K].
        target_BK: float32 [B,K] in 0..1; rows that sum to 1, unless multi-label.
        loss: "focal" lets what is right already weigh less, by (1 - p) ** FOCAL_GAMMA.
        multi_label: binary cross-entropy of every class, not cross-entropy over the classes.
        pos_weight_K: float32 [K], multi-label only: how much more the presence of a class weighs
            than its absence.
    """
    if multi_label:
        return _loss_of_each_class(logits_BK, target_BK, loss, pos_weight_K).mean(dim=1)
    loss_B = cross_entropy(logits_BK, target_BK, reduction="none")
    if loss == "focal":
        prob_B = (logits_BK.softmax(dim=1) * target_BK).sum(dim=1)
        loss_B = (1.0 - prob_B) ** FOCAL_GAMMA * loss_B
    return loss_B


def _loss_of_each_class(
    logits_BK: torch.Tensor,
    target_BK: torch.Tensor,
    loss: Loss,
    pos_weight_K: torch.Tensor | None,
) -> torch.Tensor:
    loss_BK = binary_cross_entropy_with_logits(
        logits_BK, target_BK, reduction="none", pos_weight=pos_weight_K
    )
    if loss == "focal":
        prob_BK = logits_BK.sigmoid()
        right_BK = prob_BK * target_BK + (1.0 - prob_BK) * (1.0 - target_BK)
        loss_BK = (1.0 - right_BK) ** FOCAL_GAMMA * loss_BK
    return loss_BK


def smooth_targets(
    target_BK: torch.Tensor, smoothing: float, *, multi_label: bool = False
) -> torch.Tensor:
    """Return float32 [B,K]: 1 - smoothing of the target, and smoothing spread over the answers.

    They are the K classes; multi-label, the yes and no of each class.
    """
    num_answers = 2 if multi_label else target_BK.shape[1]
    return target_BK * (1.0 - smoothing) + smoothing / num_answers


def balanced_class_weights(label_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return float32 [K] that give every class the same total weight, 1 on average over images."""
    counts_K = np.bincount(label_N, minlength=num_classes)
    return (len(label_N) / (num_classes * np.maximum(counts_K, 1))).astype(np.float32)


def balanced_pos_weights(labels_N: Sequence[tuple[int, ...]], num_classes: int) -> list[float]:
    """Return, per class, images without it per image with it: both then weigh the same in total.

    A class that no image has keeps 1.
    """
    flat = np.fromiter((label for labels in labels_N for label in labels), np.int64)
    counts_K = np.bincount(flat, minlength=num_classes)
    # A class that every image has would weigh 0, and its presence would not be learnt.
    absent_K = np.maximum(len(labels_N) - counts_K, 1)
    return [float(a / n) if n else 1.0 for a, n in zip(absent_K, counts_K, strict=True)]
