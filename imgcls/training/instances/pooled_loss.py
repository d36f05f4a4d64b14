"""The loss of samples of many instances.

In: logits of instances. Out: logits and a loss per sample. Invariant: the answer that is trained is
the one that scoring gives: pooled by the bundle's rule; only where DATA says what each instance
shows is each of them right or wrong by itself.

Shape legend: B sample, I instance, K classes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from imgcls.metrics.pooling import pool_logits
from imgcls.training.instances.batch import Instances
from imgcls.training.train_plan import Recipe

if TYPE_CHECKING:
    from torch import Tensor


def pool_batch(logits_IK: "Tensor", instances: Instances, recipe: Recipe) -> "Tensor":
    """Return the logits [B,K] of the samples."""
    assert recipe.pooling, "samples of several instances are pooled"
    return pool_logits(
        logits_IK,
        instances.sample_I,
        recipe.pooling,
        multi_label=recipe.multi_label,
        background=recipe.background,
    )


def loss_of_samples(
    logits_IK: "Tensor",
    pooled_B: "Tensor",
    instances: Instances,
    loss_of: Callable[["Tensor", "Tensor"], "Tensor"],
) -> "Tensor":
    """Return the loss [B] of each sample.

    Of a sample whose instances have targets it is the mean over those that show something, and the
    mean over those that do not, half each where there are both; of any other, the pooled loss.

    Args:
        logits_IK: of the instances that are trained on.
        pooled_B: loss of the pooled logits.
        instances: whose they are.
        loss_of: takes logits and targets, returns a loss per row.
    """
    target_IK = instances.target_IK.to(logits_IK.device, non_blocking=True)
    sample_I = torch.from_numpy(instances.sample_I).to(logits_IK.device, non_blocking=True)
    is_known_I = ~target_IK[:, 0].isnan()
    loss_I = loss_of(logits_IK, target_IK.nan_to_num())
    # Instances of a sample that show the same: its background, or what is in its boxes.
    first_I = _first_of_sample(instances)
    is_first_kind_I = (target_IK == target_IK[first_I]).all(dim=1)
    zeros_B = pooled_B.new_zeros(len(pooled_B))
    means, nums = [], []
    for kind_I in (is_known_I & is_first_kind_I, is_known_I & ~is_first_kind_I):
        num_B = zeros_B.index_add(0, sample_I, kind_I.to(pooled_B.dtype))
        sum_B = zeros_B.index_add(0, sample_I, torch.where(kind_I, loss_I, 0.0))
        means.append(sum_B / num_B.clamp(min=1))
        nums.append((num_B > 0).to(pooled_B.dtype))
    num_kinds_B = nums[0] + nums[1]
    known_B = (means[0] + means[1]) / num_kinds_B.clamp(min=1)
    return torch.where(num_kinds_B > 0, known_B, pooled_B)


def _first_of_sample(instances: Instances) -> "Tensor":
    """Return, per instance, the row of the first known one of its sample, or of its first one."""
    is_known_I = ~instances.target_IK[:, 0].isnan().numpy()
    first: dict[int, int] = {}
    for row, sample in enumerate(instances.sample_I.tolist()):
        if sample not in first or (is_known_I[row] and not is_known_I[first[sample]]):
            first[sample] = row
    rows = [first[sample] for sample in instances.sample_I.tolist()]
    return torch.tensor(rows).to(instances.target_IK.device)
