"""One optimizer step: pixels to gradients to new weights.

In: a Batch of this rank. Out: sums of loss and weight; the model and optimizer, one step further.
Invariants: the gradient is that of the weighted mean loss over the images of ALL ranks, so N
workers step as one would; a loss that is not finite raises before any weight changes.

Shape legend: B batch, C channel, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from imgcls.errors import ConfigError
from imgcls.image.augment import NUM_DRAWS, augment
from imgcls.image.policy import apply_policy
from imgcls.image.preprocess import normalize
from imgcls.training.draws import image_seeds, step_seed, uniform
from imgcls.training.ema import follow
from imgcls.training.loader import Batch, LabelledImage
from imgcls.training.losses import loss_per_image, smooth_targets
from imgcls.training.mix import mix
from imgcls.training.optimizer import set_lr
from imgcls.training.place import Place
from imgcls.training.recipe import Recipe
from imgcls.training.state import TrainState

NAMED_URIS = 8


@dataclass(frozen=True, slots=True)
class StepResult:
    """This rank's sums of loss and weight, and how many of its images are right, as trained on.

    Also the images of all ranks, and whether one is to stop.
    """

    loss_sum: float
    weight_sum: float
    num_right: int
    num_seen: int
    num_images: int
    stop_wanted: bool


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
) -> StepResult:
    """Take one optimizer step.

    Args:
        state: holds the optimizer, and the epoch and step that the random numbers belong to.
        wrapped: state.model, as place.wrap made it.
        batch: this rank's images.
        lr: learning rate of this step.
        recipe: how.
        place: this rank.
        samples: what batch.index_B refers to, for messages.
        stop_wanted: whether this rank has been asked to stop; all of them hear of it at this step.

    Raises:
        ConfigError: the loss is nan or infinite; names the images.
    """
    # Dropout and stochastic depth: seeded by the step, so a resumed run draws what this one would
    # have drawn.
    torch.manual_seed(step_seed(recipe.seed, state.total_steps, place.rank))
    weight_sum, num_seen = float(batch.weight_B.sum()), float((batch.weight_B > 0).sum())
    weight_sum_all, num_images, num_stops = place.sum(weight_sum, num_seen, float(stop_wanted))
    # torch averages gradients over ranks; we want the mean over images.
    scale = place.world_size / weight_sum_all if weight_sum_all > 0 else 0.0
    state.optimizer.zero_grad(set_to_none=True)
    loss_sum, num_right = 0.0, 0.0
    parts = list(_split(batch, recipe.batch_size))
    for number, part in enumerate(parts, 1):
        with place.without_sync(wrapped) if number < len(parts) else nullcontext():
            loss, right = _weighted_loss(state, wrapped, part, recipe, place)
            # One read of the device for both: the loss has to be looked at before it is used.
            part_sum, part_right = torch.stack([loss.detach(), right]).tolist()
            if not math.isfinite(part_sum):
                raise ConfigError(_diverged(state, part, lr, part_sum, samples))
            (loss * scale).backward()  # type: ignore[no-untyped-call]  # torch
            loss_sum += part_sum
            num_right += part_right
    if recipe.max_grad_norm > 0:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.max_grad_norm)
    set_lr(state.optimizer, lr)
    state.optimizer.step()
    if state.ema is not None:
        follow(state.ema, state.model, recipe.ema_decay, state.total_steps + 1)
    return StepResult(
        loss_sum, weight_sum, round(num_right), round(num_seen), round(num_images), num_stops > 0
    )


def to_model_input(x_BCHW: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Normalise uint8 pixels, in the memory format that the model was built for."""
    x_BCHW = normalize(x_BCHW, recipe.preprocess)
    return x_BCHW.contiguous(memory_format=torch.channels_last) if recipe.channels_last else x_BCHW


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 where it is safe, if the recipe says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")


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
    x_BCHW = batch.x_BCHW.to(device, non_blocking=True)
    target_BK = batch.target_BK.to(device, non_blocking=True)
    weight_B = batch.weight_B.to(device, non_blocking=True)
    index_B = batch.index_B.numpy()
    draws = uniform(recipe.seed, state.epoch, index_B, NUM_DRAWS)
    x_BCHW = augment(x_BCHW, torch.from_numpy(draws).to(device), recipe.augment)
    if recipe.policy != "none":
        seeds = image_seeds(recipe.seed, state.epoch, index_B)
        x_BCHW = apply_policy(x_BCHW, seeds, recipe.policy)
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
    loss_B = loss_per_image(
        logits_BK,
        target_BK,
        recipe.loss,
        multi_label=recipe.multi_label,
        pos_weight_K=torch.tensor(recipe.pos_weight, device=device) if recipe.pos_weight else None,
    )
    right_B = is_right(logits_BK.detach(), target_BK, multi_label=recipe.multi_label)
    return (loss_B * weight_B).sum(), (right_B & (weight_B > 0)).sum().float()


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into parts of at most `size` rows, sizes differing by one at most."""
    num_rows = len(batch.x_BCHW)
    num_parts = -(-num_rows // size)
    for part in range(num_parts):
        rows = slice(num_rows * part // num_parts, num_rows * (part + 1) // num_parts)
        yield Batch(
            batch.x_BCHW[rows], batch.target_BK[rows], batch.weight_B[rows], batch.index_B[rows]
        )


def _diverged(
    state: TrainState, batch: Batch, lr: float, loss: float, samples: Sequence[LabelledImage]
) -> str:
    uris = [samples[index].uri for index in batch.index_B.tolist()]
    more = f" and {len(uris) - NAMED_URIS} more" if len(uris) > NAMED_URIS else ""
    return (
        f"the loss is {loss} in epoch {state.epoch + 1}, step {state.step + 1} (learning rate "
        f"{lr:.3g}); no weight was changed by it. Lower --lr, or look at the images of this batch: "
        f"{', '.join(uris[:NAMED_URIS])}{more}"
    )
