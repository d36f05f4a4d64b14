"""One optimizer step: pixels to gradients to new weights.

In: a Batch of this rank. Out: sums of loss and weight; the model and optimizer, one step further.
Invariants: the gradient is that of the weighted mean loss over the images of ALL ranks, so N
workers step as one would; a loss or, in fp16, a gradient that is not finite changes no weight, on
any rank; nothing here
waits for the device, which would stand idle until it has the next step, but the choice of instances
of samples that have many.

Shape legend: B batch, C channel, K classes, N forward passes.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from imgcls.errors import ConfigError
from imgcls.image.constants import constant
from imgcls.image.preprocess import normalize
from imgcls.training.augment.counter_rng import step_seed
from imgcls.training.augment.geometric import augment
from imgcls.training.augment.mixup import mix
from imgcls.training.data.loader import LabelledImage
from imgcls.training.instances.batch import Batch
from imgcls.training.instances.choose import choose_instances
from imgcls.training.instances.first_guess import FIRST_GUESS_FRACTION
from imgcls.training.instances.pooled_loss import loss_of_samples, pool_batch
from imgcls.training.optim.ema import follow
from imgcls.training.optim.late import LateRead
from imgcls.training.optim.layer_groups import to_train_mode
from imgcls.training.optim.losses import loss_per_image, smooth_targets
from imgcls.training.optim.optimizer import set_lr, settle_momentum
from imgcls.training.optim.precision import LossScale, autocast
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import Recipe

NAMED_URIS = 8
# Instances that are looked at in one pass, at least; that takes no memory for a gradient.
_MIN_ROWS_TO_CHOOSE = 64
# Takes the number of a pass and its loss.
_DescribeLoss = Callable[[int, float], str]


class StepResult:
    """An optimizer step that the device may still be at.

    Its sums of loss and right images are read when they are first asked for; what came from the CPU
    is known: this rank's weight and images, the images of all ranks, and whether one of them wants
    to stop or, before the next step, to know how this one ended.
    """

    def __init__(
        self, host: tuple[float, ...], sums: LateRead, place: Place, describe: _DescribeLoss
    ) -> None:
        self.weight_sum, num_seen, num_images, num_stops, num_due = host
        self.num_seen, self.num_images = round(num_seen), round(num_images)
        self.stop_wanted, self.is_due = num_stops > 0, num_stops + num_due > 0
        self._late, self._place, self._describe = sums, place, describe

    @cached_property
    def _sums(self) -> tuple[list[float], list[float], bool]:
        """Loss and right images of each pass, and whether any rank's loss was not finite."""
        losses, rights, (is_bad, *_) = self._late.read()
        return losses, rights, is_bad > 0

    @property
    def loss_sum(self) -> float:
        """This rank's losses times their weights."""
        total = 0.0
        for loss in self._sums[0]:  # `sum` rounds in another way from Python 3.12 on
            total += loss
        return total

    @property
    def num_right(self) -> int:
        """How many of this rank's images are right, as they were trained on."""
        return round(sum(self._sums[1]))

    def check(self) -> None:
        """Wait for the step; every rank asks, and all of them after the same step.

        Raises:
            ConfigError: the loss of a rank is nan or infinite, and so no weight was changed; names
                the images, on every rank.
        """
        losses, _, is_bad = self._sums
        if is_bad:
            wrong = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
            ours = self._describe(wrong[0], losses[wrong[0]]) if wrong else ""
            raise ConfigError(next(filter(None, self._place.gather(ours))))


def train_step(
    state: TrainState,
    wrapped: nn.Module,
    batch: Batch,
    lr: float,
    recipe: Recipe,
    place: Place,
    samples: Sequence[LabelledImage],
    *,
    stop_wanted: bool = False,
    is_due: bool = False,
) -> StepResult:
    """Take one optimizer step; returns before a device of its own has taken it.

    Where a loss is not finite, no rank's weights are changed, and `StepResult.check` raises.

    Args:
        state: holds the optimizer, and the epoch and step that the random numbers belong to.
        wrapped: state.model, as place.wrap made it.
        batch: this rank's images.
        lr: learning rate of this step.
        recipe: how.
        place: this rank.
        samples: what batch.index_B refers to, for messages.
        stop_wanted: whether this rank has been asked to stop; all of them hear of it at this step.
        is_due: whether this rank is going to write the state down after this step; likewise.
    """
    # Dropout and stochastic depth: seeded by the step, so a resumed run draws what this one would
    # have drawn.
    torch.manual_seed(step_seed(recipe.seed, state.total_steps, place.rank))
    weight_sum, num_seen = float(batch.weight_B.sum()), float((batch.weight_B > 0).sum())
    weight_sum_all, *of_all = place.sum(weight_sum, num_seen, float(stop_wanted), float(is_due))
    # torch averages gradients over ranks; we want the mean over images.
    scale = place.world_size / weight_sum_all if weight_sum_all > 0 else 0.0
    state.optimizer.zero_grad(set_to_none=True)
    parts = list(batch.cut(batch.num_passes or -(-len(batch.index_B) // recipe.batch_size)))
    if recipe.precision == "fp16" and state.loss_scale is None:
        state.loss_scale = LossScale(place.device)
        settle_momentum(state.optimizer)
    factor = scale if state.loss_scale is None else scale * state.loss_scale.value
    losses, rights = [], []
    for number, part in enumerate(parts, 1):
        with place.without_sync(wrapped) if number < len(parts) else nullcontext():
            loss, right = _weighted_loss(state, wrapped, part, recipe, place)
            (loss * factor).backward()  # type: ignore[no-untyped-call]  # torch
            losses.append(loss.detach())
            rights.append(right)
    loss_N = torch.stack(losses)
    # Exactly 1, on however many ranks: with any other number the optimizer continues.
    is_bad = (place.add_up((~loss_N.isfinite()).any().float()) > 0).float()
    is_left_out = is_bad
    if state.loss_scale is not None:
        is_left_out = is_bad.maximum(state.loss_scale.unscale(state.model.parameters()))
    if recipe.max_grad_norm > 0:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.max_grad_norm)
    set_lr(state.optimizer, lr)
    # So does torch.amp.GradScaler tell an optimizer to change nothing, without asking the device.
    state.optimizer.found_inf = is_left_out  # type: ignore[attr-defined]
    state.optimizer.step()
    if state.ema is not None:
        follow(state.ema, state.model, recipe.ema_decay, state.total_steps + 1)
    sums = LateRead(torch.stack([loss_N, torch.stack(rights), is_bad.expand(len(parts))]))
    indices = [part.index_B for part in parts]
    where = f"in epoch {state.epoch + 1}, step {state.step + 1} (learning rate {lr:.3g})"

    def describe(part: int, loss: float) -> str:
        return _diverged(where, loss, [samples[index].uri for index in indices[part].tolist()])

    return StepResult((weight_sum, num_seen, *of_all), sums, place, describe)


def to_model_input(x_BCHW: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Normalise pixels 0..255, in the memory format that the model was built for."""
    x_BCHW = normalize(x_BCHW, recipe.preprocess)
    return x_BCHW.contiguous(memory_format=torch.channels_last) if recipe.channels_last else x_BCHW


def is_right(
    logits_BK: torch.Tensor, target_BK: torch.Tensor, *, multi_label: bool
) -> torch.Tensor:
    """Return bool [B]: the class on top is the target's; multi-label, each is on its side of 0.5.

    Of smoothed or mixed targets the class with the greatest share counts; multi-label, those with
    more than half.
    """
    if multi_label:
        return ((logits_BK >= 0) == (target_BK > 0.5)).all(dim=1)
    return logits_BK.argmax(dim=1) == target_BK.argmax(dim=1)


def _weighted_loss(
    state: TrainState, wrapped: nn.Module, batch: Batch, recipe: Recipe, place: Place
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the images' losses times their weights, and how many of them are right.

    Each is one float32 on the device.
    """
    device = place.device
    if batch.instances is not None:
        batch = _with_few_instances(state, wrapped, batch, recipe, place)
    x_BCHW = batch.x_BCHW.to(device, non_blocking=True)
    target_BK = batch.target_BK.to(device, non_blocking=True)
    weight_B = batch.weight_B.to(device, non_blocking=True)
    if batch.draws_BN is not None:
        x_BCHW = augment(x_BCHW, batch.draws_BN.to(device, non_blocking=True), recipe.augment)
    target_BK = smooth_targets(target_BK, recipe.label_smoothing, multi_label=recipe.multi_label)
    x_BCHW, target_BK = mix(
        to_model_input(x_BCHW, recipe),
        target_BK,
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        seed=recipe.seed,
        step=state.total_steps,
    )
    with autocast(recipe, device):
        logits_BK = wrapped(x_BCHW).float()
    loss_of = partial(
        loss_per_image,
        loss=recipe.loss,
        multi_label=recipe.multi_label,
        pos_weight_K=constant(recipe.pos_weight, logits_BK) if recipe.pos_weight else None,
    )
    if batch.instances is None:
        loss_B = loss_of(logits_BK, target_BK)
    else:
        logits_IK, logits_BK = logits_BK, pool_batch(logits_BK, batch.instances, recipe)
        loss_B = loss_of_samples(logits_IK, loss_of(logits_BK, target_BK), batch.instances, loss_of)
    right_B = is_right(logits_BK.detach(), target_BK, multi_label=recipe.multi_label)
    return (loss_B * weight_B).sum(), (right_B & (weight_B > 0)).sum().float()


def _with_few_instances(
    state: TrainState, wrapped: nn.Module, batch: Batch, recipe: Recipe, place: Place
) -> Batch:
    """Return the batch with the instances that are trained on; waits for the device."""
    state.model.eval()

    @torch.no_grad()
    def probs_of(x_ICHW: torch.Tensor) -> np.ndarray:
        parts = []
        size = max(_MIN_ROWS_TO_CHOOSE, recipe.batch_size)
        for start in range(0, len(x_ICHW), size):
            rows_ICHW = x_ICHW[start : start + size]
            x_BCHW = to_model_input(rows_ICHW.to(place.device, non_blocking=True), recipe)
            with autocast(recipe, place.device):
                logits_BK = state.model(x_BCHW).float()
            parts.append(logits_BK.sigmoid() if recipe.multi_label else logits_BK.softmax(dim=1))
        probs_IK: np.ndarray = torch.cat(parts).cpu().numpy()
        return probs_IK

    try:
        is_early = state.epoch < FIRST_GUESS_FRACTION * recipe.epochs
        guesses = state.first_guess if is_early else ()
        return choose_instances(batch, probs_of, recipe, state.total_steps, guesses)
    finally:
        to_train_mode(wrapped)


def _diverged(where: str, loss: float, uris: list[str]) -> str:
    more = f" and {len(uris) - NAMED_URIS} more" if len(uris) > NAMED_URIS else ""
    return (
        f"the loss is {loss} {where}; no weight was changed by it. Lower --lr, or look at the "
        f"images of this batch: {', '.join(uris[:NAMED_URIS])}{more}"
    )
