"""Train: epochs of steps, validation after each, the best weights kept. No Ray, no storage.

In: a TrainState, loaders of the splits, a Recipe. Out: the state, further on, with the best weights
in it. Invariants: a fit that starts from a snapshot ends as the undisturbed one; validation sees
every image once, whatever the world size.

Shape legend: B batch, C channel, K classes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from imgcls.training.loader import Batch, SplitLoader
from imgcls.training.optimizer import lr_at
from imgcls.training.place import Place
from imgcls.training.recipe import BestBy, Recipe
from imgcls.training.sampler import Sampler, divide
from imgcls.training.stages import to_train_mode
from imgcls.training.state import TrainState
from imgcls.training.step import autocast, to_model_input, train_step


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step: images on all ranks, mean loss over this rank's, learning rate."""

    num_images: int
    loss: float
    lr: float


def fit(
    state: TrainState,
    train: SplitLoader,
    val: SplitLoader | None,
    recipe: Recipe,
    place: Place,
    *,
    after_step: Callable[[StepReport], None],
    after_epoch: Callable[[dict[str, Any]], None],
    compile_model: bool = False,
) -> None:
    """Train `state` from where it is to the last epoch.

    Args:
        state: its model and optimizer on place.device; changed in place.
        train: loader of the training split.
        val: loader of the validation split; None where there is none: then the last weights are the
            best.
        recipe: how.
        place: this rank.
        after_step: called after each optimizer step; may take a snapshot.
        after_epoch: called with each epoch's numbers, after validation; may take a snapshot.
        compile_model: run the steps through torch.compile.

    Raises:
        ConfigError: the loss became nan or infinite.
        BudgetExceededError: too many images give no pixels.
    """
    stepped = cast(nn.Module, torch.compile(state.model)) if compile_model else state.model
    wrapped = place.wrap(stepped)
    while not is_finished(state, recipe):
        numbers = _train_epoch(state, wrapped, train, recipe, place, after_step)
        place.average_buffers(state.model)
        if state.ema is not None:
            place.average_buffers(state.ema)
        if val is not None:
            numbers |= validate(state.evaluated, val, recipe, place)
        _share_bad([train, val] if val is not None else [train], place)
        if is_better(numbers, state.best_metrics, recipe.best_by):
            state.keep_as_best(numbers)
        else:
            state.epochs_since_best += 1
        state.history.append(numbers)
        state.epoch, state.step, state.loss_sum, state.weight_sum = state.epoch + 1, 0, 0.0, 0.0
        after_epoch(numbers)


def is_finished(state: TrainState, recipe: Recipe) -> bool:
    """Say whether every epoch is done, or validation has not improved for too many of them."""
    is_stuck = 0 < recipe.patience_epochs <= state.epochs_since_best
    return state.epoch >= recipe.epochs or is_stuck


def _train_epoch(
    state: TrainState,
    wrapped: nn.Module,
    train: SplitLoader,
    recipe: Recipe,
    place: Place,
    after_step: Callable[[StepReport], None],
) -> dict[str, Any]:
    """Take the steps that are left of the epoch; return its numbers."""
    sampler = Sampler(
        len(train.samples),
        recipe.global_batch_size,
        recipe.seed,
        tuple(sample.label for sample in train.samples) if recipe.balance == "sampling" else (),
    )
    steps = [
        sampler.step_indices(state.epoch, step, rank=place.rank, world_size=place.world_size)
        for step in range(state.step, sampler.num_steps)
    ]
    to_train_mode(wrapped)
    start_s, waited_s, num_images, lr = time.monotonic(), 0.0, 0, 0.0
    for batch, wait_s in _with_wait(train.batches(steps)):
        lr = lr_at(
            state.total_steps,
            recipe.epochs * sampler.num_steps,
            peak_lr=recipe.lr,
            warmup_fraction=recipe.warmup_fraction,
            schedule=recipe.schedule,
        )
        result = train_step(state, wrapped, batch, lr, recipe, place, train.samples)
        state.loss_sum += result.loss_sum
        state.weight_sum += result.weight_sum
        state.step += 1
        state.total_steps += 1
        waited_s += wait_s
        num_images += result.num_images
        after_step(StepReport(result.num_images, _ratio(result.loss_sum, result.weight_sum), lr))
    epoch_s = time.monotonic() - start_s
    state.train_s += epoch_s
    return {
        "epoch": state.epoch + 1,
        "train_loss": _ratio(*place.sum(state.loss_sum, state.weight_sum)),
        "lr": lr,
        "images_per_s": _ratio(num_images, epoch_s),
        "waited_fraction": _ratio(waited_s, epoch_s),
    }


@torch.inference_mode()
def validate(model: nn.Module, val: SplitLoader, recipe: Recipe, place: Place) -> dict[str, Any]:
    """Measure mean cross-entropy and accuracy over every image of `val` exactly once.

    Each rank takes its part of the split; sums and counts are added up, so that no rank needs a
    filled-up batch.

    Returns:
        val_loss, val_accuracy, and num_val: the images measured (those that decode).
    """
    model.eval()
    index_N = divide(np.arange(len(val.samples)), place.rank, place.world_size)
    loss_sum, num_correct, num_images = 0.0, 0.0, 0.0
    steps = [index_N[i : i + recipe.batch_size] for i in range(0, len(index_N), recipe.batch_size)]
    for batch in val.batches(steps):
        x_BCHW = to_model_input(batch.x_BCHW.to(place.device), recipe)
        label_B, weight_B = batch.label_B.to(place.device), batch.weight_B.to(place.device)
        with autocast(recipe, place.device):
            logits_BK = model(x_BCHW).float()
        loss_sum += float((cross_entropy(logits_BK, label_B, reduction="none") * weight_B).sum())
        num_correct += float(((logits_BK.argmax(dim=1) == label_B) * weight_B).sum())
        num_images += float(weight_B.sum())
    loss_sum, num_correct, num_images = place.sum(loss_sum, num_correct, num_images)
    return {
        "val_loss": _ratio(loss_sum, num_images),
        "val_accuracy": _ratio(num_correct, num_images),
        "num_val": round(num_images),
    }


def is_better(numbers: dict[str, Any], best: dict[str, Any], best_by: BestBy) -> bool:
    """Say whether an epoch beats the best so far; without validation the later one does."""
    if not best or "val_loss" not in numbers:
        return True
    if best_by == "accuracy" and numbers["val_accuracy"] != best["val_accuracy"]:
        return bool(numbers["val_accuracy"] > best["val_accuracy"])
    return bool(numbers["val_loss"] < best["val_loss"])


def _share_bad(loaders: list[SplitLoader], place: Place) -> None:
    """Let every rank know every bad image: the limit is on their sum."""
    for loader in loaders:
        for found in place.gather(loader.bad):
            loader.add_bad(found)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _with_wait(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the seconds that it was waited for."""
    while True:
        start_s = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - start_s
