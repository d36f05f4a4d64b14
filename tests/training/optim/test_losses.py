import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import sigmoid_focal_loss

from imgcls.training.optim.losses import (
    balanced_class_weights,
    balanced_pos_weights,
    loss_per_image,
    smooth_targets,
)

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.2, 0.0]])
LABELS = torch.tensor([0, 2])
TARGET = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
MULTI_HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def test_hard_targets_give_torchs_cross_entropy() -> None:
    losses = loss_per_image(LOGITS, smooth_targets(TARGET, 0.0), "cross_entropy")
    torch.testing.assert_close(losses, cross_entropy(LOGITS, LABELS, reduction="none"))


def test_smoothed_targets_give_torchs_label_smoothing() -> None:
    losses = loss_per_image(LOGITS, smooth_targets(TARGET, 0.1), "cross_entropy")
    expected = cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses, expected)


def test_focal_loss_discounts_what_is_right_already() -> None:
    """By (1 - p) ** 2, as Lin et al. (2017) define it."""
    target = smooth_targets(TARGET, 0.0)
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


def test_multi_label_loss_is_torchs_binary_cross_entropy_averaged_over_the_classes() -> None:
    losses = loss_per_image(LOGITS, MULTI_HOT, "cross_entropy", multi_label=True)
    expected = binary_cross_entropy_with_logits(LOGITS, MULTI_HOT, reduction="none").mean(dim=1)
    torch.testing.assert_close(losses, expected)


def test_multi_label_focal_loss_is_torchvisions_without_alpha() -> None:
    soft = smooth_targets(MULTI_HOT, 0.2, multi_label=True)
    for target in (MULTI_HOT, soft):
        losses = loss_per_image(LOGITS, target, "focal", multi_label=True)
        expected = sigmoid_focal_loss(LOGITS, target, alpha=-1, gamma=2).mean(dim=1)
        torch.testing.assert_close(losses, expected)


def test_multi_label_smoothing_moves_yes_and_no_towards_each_other() -> None:
    soft = smooth_targets(MULTI_HOT, 0.2, multi_label=True)
    torch.testing.assert_close(soft, MULTI_HOT * 0.8 + 0.1)


def test_presence_and_absence_of_a_class_weigh_the_same_in_total() -> None:
    labels_N = [(0,), (0, 1), (0,), (), (), (), (), ()]
    weights = balanced_pos_weights(labels_N, 3)
    assert weights == [pytest.approx(5 / 3), 7.0, 1.0], "3 of 8, 1 of 8, and a class without images"
    logits = torch.zeros(8, 3)
    target = torch.tensor([[float(k in labels) for k in range(3)] for labels in labels_N])
    plain_BK, weighed_BK = (
        binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=w)
        for w in (None, torch.tensor(weights))
    )
    losses = loss_per_image(
        logits, target, "cross_entropy", multi_label=True, pos_weight_K=torch.tensor(weights)
    )
    torch.testing.assert_close(losses, weighed_BK.mean(dim=1))
    present = target[:, 1] == 1
    assert weighed_BK[present, 1].sum() == pytest.approx(float(plain_BK[~present, 1].sum()))
