import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from imgcls.training.losses import balanced_class_weights, loss_per_image, smooth_targets

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.2, 0.0]])
LABELS = torch.tensor([0, 2])


def test_hard_targets_give_torchs_cross_entropy() -> None:
    losses = loss_per_image(LOGITS, smooth_targets(LABELS, 3, 0.0), "cross_entropy")
    torch.testing.assert_close(losses, cross_entropy(LOGITS, LABELS, reduction="none"))


def test_smoothed_targets_give_torchs_label_smoothing() -> None:
    losses = loss_per_image(LOGITS, smooth_targets(LABELS, 3, 0.1), "cross_entropy")
    expected = cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses, expected)


def test_focal_loss_discounts_what_is_right_already() -> None:
    """By (1 - p) ** 2, as Lin et al. (2017) define it."""
    target = smooth_targets(LABELS, 3, 0.0)
    plain = loss_per_image(LOGITS, target, "cross_entropy")
    prob = LOGITS.softmax(1)[[0, 1], LABELS]
    focal = loss_per_image(LOGITS, target, "focal")
    torch.testing.assert_close(focal, (1 - prob) ** 2 * plain)


def test_balanced_weights_give_each_class_the_same_total() -> None:
    label_N = np.array([0] * 6 + [1] * 3 + [2])
    weight_K = balanced_class_weights(label_N, 3)
    totals = [weight_K[label_N[label_N == k]].sum() for k in range(3)]
    assert totals == pytest.approx([10 / 3] * 3, rel=1e-6)
    assert weight_K[label_N].mean() == pytest.approx(1.0)
