"""Train: epochs of steps, validation after each, the best weights kept. No Ray, no storage.

In: a TrainState, loaders of the splits, a Recipe. Out: the state, further on, with the best weights
in it. Invariants: a fit that starts from a snapshot ends as the undisturbed one; validation sees
every image once, whatever the world size.

Shape legend: B batch, C channel, K classes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from imgcls.config.choices import BestBy
from imgcls.errors import ConfigError, RunStoppedError
from imgcls.metrics.quality import macro_auroc
from imgcls.training.augment.changes import ImageChanges
from imgcls.training.data.sampler import Sampler, divide, rarest_labels
from imgcls.training.data.unit_loader import Loader
from imgcls.training.instances.batch import Batch
from imgcls.training.instances.first_guess import guess_instances
from imgcls.training.optim.forward import ValidationForward
from imgcls.training.optim.layer_groups import to_train_mode
from imgcls.training.optim.losses import loss_per_image
from imgcls.training.optim.optimizer import lr_at
from imgcls.training.optim.precision import compile_steps, set_arithmetic
from imgcls.training.optim.step import StepResult, is_right, to_model_input, train_step
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.ranks.stop_request import StopRequest
from imgcls.training.train_plan import Recipe


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step: images on all ranks, mean loss over this rank's, learning rate.

    `epoch` and `step` count from 1; `step` within the epoch, `total_steps` from the first one on.
    After a step that `is_due` or `is_last` the state is that of this very step, as a checkpoint
    wants it; else it may be one step further. After the one that `is_last` the run stops, because a
    rank was asked to.
    """

    num_images: int
    loss: float
    lr: float
    is_last: bool
    is_due: bool
    epoch: int
    step: int
    total_steps: int


def fit(
    state: TrainState,
    train: Loader,
    val: Loader | None,
    recipe: Recipe,
    place: Place,
    *,
    after_step: Callable[[StepReport], None],
    after_epoch: Callable[[dict[str, Any]], None],
    is_due: Callable[[int], bool] = lambda total_steps: True,
    compile_model: bool = False,
    stop: StopRequest | None = None,
) -> None:
    """Train `state` from where it is to the last epoch.

    A step is looked at when the next one is under way, so that the device never waits for the CPU.

    Args:
        state: its model and optimizer on place.device; changed in place.
        train: loader of the training split.
        val: loader of the validation split; None where there is none: then the last weights are the
            best.
        recipe: how.
        place: this rank.
        after_step: called for each optimizer step in turn; may take a snapshot where it is due.
        after_epoch: called with each epoch's numbers, after validation; may take a snapshot.
        is_due: takes the number of the step to come, from 1: is the state to be written after it?
        compile_model: run the steps through torch.compile, all in one shape.
        stop: asks this rank to stop; then all ranks do, after the same step.

    Raises:
        ConfigError: the loss became nan or infinite.
        BudgetExceededError: too many images give no pixels.
        RunStoppedError: a rank was asked to stop; `after_step` was called for the last step.
    """
    stop = stop or StopRequest()
    set_arithmetic(recipe.precision, place.device)
    wrapped = place.wrap(state.model)
    if compile_model:
        wrapped = compile_steps(wrapped)
    epochs = partial(
        _train_epoch,
        state,
        wrapped,
        train,
        recipe,
        place,
        after_step=after_step,
        is_due=is_due,
        fixed_shape=compile_model,
        stop=stop,
    )
    if state.total_steps == 0:
        state.first_guess = _guess(state.model, train, recipe, place)
    forward = ValidationForward(recipe, place)
    while not is_finished(state, recipe):
        numbers = epochs()
        place.average_buffers(state.model)
        if state.ema is not None:
            place.average_buffers(state.ema)
        if val is not None:
            numbers |= validate(state.evaluated, val, recipe, place, forward)
        _share_bad([train, val] if val is not None else [train], place)
        if is_better(numbers, state.best_metrics, recipe.best_by):
            state.keep_as_best(numbers)
        else:
            state.epochs_since_best += 1
        state.history.append(numbers)
        state.begin_next_epoch()
        after_epoch(numbers)


def _guess(model: nn.Module, train: Loader, recipe: Recipe, place: Place) -> list[int]:
    """Return what the first epochs are to look at in samples with a label alone; on every rank."""
    if not recipe.pooling or recipe.pooling == "mean" or recipe.background is None:
        return []
    if place.rank != 0:
        return list(place.from_first(None))
    found = guess_instances(
        model,
        train.samples,
        recipe.background,
        train.batches,
        lambda x_BCHW: to_model_input(x_BCHW.to(place.device), recipe),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    return list(place.from_first(found))


def is_finished(state: TrainState, recipe: Recipe) -> bool:
    """Say whether every epoch is done, or validation has not improved for too many of them."""
    is_stuck = 0 < recipe.patience_epochs <= state.epochs_since_best
    return state.epoch >= recipe.epochs or is_stuck


def _train_epoch(
    state: TrainState,
    wrapped: nn.Module,
    train: Loader,
    recipe: Recipe,
    place: Place,
    *,
    after_step: Callable[[StepReport], None],
    is_due: Callable[[int], bool],
    fixed_shape: bool,
    stop: StopRequest,
) -> dict[str, Any]:
    """Take the steps that are left of the epoch; return its numbers.

    train_accuracy is that of the batches as they were trained on, each by the weights of its step:
    augmented, mixed (see `is_right`) and with dropout, so it may lie below val_accuracy.
    """
    sampler = make_sampler(train, recipe)
    shares = [
        sampler.share(
            state.epoch,
            step,
            batch_size=recipe.batch_size,
            rank=place.rank,
            world_size=place.world_size,
            fixed_shape=fixed_shape,
        )
        for step in range(state.step, sampler.num_steps)
    ]
    to_train_mode(wrapped)
    lr_of = partial(
        lr_at,
        total_steps=recipe.epochs * sampler.num_steps,
        peak_lr=recipe.lr,
        warmup_fraction=recipe.warmup_fraction,
        schedule=recipe.schedule,
    )
    begun_s = time.monotonic() - state.epoch_s
    under_way: deque[_UnderWay] = deque()
    with make_changes(train, recipe, state.epoch) as changes:
        for batch, wait_s in _with_wait(train.batches_to_train(shares, changes)):
            lr = lr_of(state.total_steps)
            result = train_step(
                state,
                wrapped,
                batch,
                lr,
                recipe,
                place,
                train.samples,
                stop_wanted=stop.requested,
                is_due=is_due(state.total_steps + 1),
            )
            state.step += 1
            state.total_steps += 1
            state.num_images += result.num_images
            state.waited_s += wait_s
            under_way.append(_UnderWay(result, lr, state.step, state.total_steps))
            # All ranks decide alike: a step that fails is talked about by all of them.
            while len(under_way) > (0 if result.is_due else 1):
                _look_at(under_way.popleft(), state, begun_s, after_step)
            if result.stop_wanted:
                raise RunStoppedError(
                    f"stopped when asked to, in epoch {state.epoch + 1} after step {state.step}; "
                    "the same command continues there"
                )
    while under_way:
        _look_at(under_way.popleft(), state, begun_s, after_step)
    if state.loss_scale is not None:
        state.loss_scale.check(state.total_steps)
    state.epoch_s = time.monotonic() - begun_s
    state.train_s += state.epoch_s
    loss_sum, weight_sum, num_right, num_seen = place.sum(
        state.loss_sum, state.weight_sum, state.num_right, state.num_seen
    )
    return {
        "epoch": state.epoch + 1,
        "train_loss": _ratio(loss_sum, weight_sum),
        "train_accuracy": num_right / num_seen if num_seen else None,
        "lr": lr_of(state.total_steps - 1),
        "images_per_s": _ratio(state.num_images, state.epoch_s),
        "waited_fraction": _ratio(state.waited_s, state.epoch_s),
    }


def make_sampler(train: Loader, recipe: Recipe) -> Sampler:
    """Return the order of the training samples."""
    return Sampler(
        len(train.samples),
        recipe.global_batch_size,
        recipe.seed,
        rarest_labels(s.labels for s in train.samples) if recipe.balance == "sampling" else (),
    )


def make_changes(train: Loader, recipe: Recipe, epoch: int) -> ImageChanges:
    """Return what is drawn for the images of an epoch."""
    return ImageChanges(
        seed=recipe.seed,
        epoch=epoch,
        recipe=recipe.augment,
        policy=recipe.policy,
        num_threads=train.num_threads,
    )


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that the device may be at, and which one it was."""

    result: StepResult
    lr: float
    step: int
    total_steps: int


def _look_at(
    done: _UnderWay, state: TrainState, begun_s: float, after_step: Callable[[StepReport], None]
) -> None:
    """Wait for a step, add its numbers to those of the epoch that began then, and report it."""
    result = done.result
    result.check()
    state.epoch_s = time.monotonic() - begun_s
    state.loss_sum += result.loss_sum
    state.weight_sum += result.weight_sum
    state.num_right += result.num_right
    state.num_seen += result.num_seen
    after_step(
        StepReport(
            result.num_images,
            _ratio(result.loss_sum, result.weight_sum),
            done.lr,
            is_last=result.stop_wanted,
            is_due=result.is_due,
            epoch=state.epoch + 1,
            step=done.step,
            total_steps=done.total_steps,
        )
    )


@torch.inference_mode()
def validate(
    model: nn.Module,
    val: Loader,
    recipe: Recipe,
    place: Place,
    forward: ValidationForward | None = None,
) -> dict[str, Any]:
    """Measure the mean of the unweighted loss and accuracy over every image of `val` exactly once.

    Each rank takes its part of the split, in as many batches as that needs: no pass of a model that
    is not being trained waits for another rank. Sums and counts are added up.

    Returns:
        val_loss, val_accuracy, and num_val: the images measured (those that decode, and that the
        model does not fail on). Multi-label, val_accuracy is the share of images with every class
        right, and val_auroc is there as well, the mean over the classes; null where no class has
        images with and without it.

    Raises:
        ConfigError: there is no such image: a loss of nothing would be the best of all.
    """
    model.eval()
    forward = forward or ValidationForward(recipe, place)
    index_N = divide(np.arange(len(val.samples)), place.rank, place.world_size)
    num_images, sums = 0.0, list[torch.Tensor]()  # sums of loss and right images, of each batch
    targets, probs = list[np.ndarray](), list[tuple[torch.Tensor, torch.Tensor]]()
    steps = [index_N[i : i + recipe.batch_size] for i in range(0, len(index_N), recipe.batch_size)]
    for batch in val.batches(steps):
        logits_BK, batch = forward(model, batch, val)
        target_BK = batch.target_BK.to(place.device, non_blocking=True)
        weight_B = batch.weight_B.to(place.device, non_blocking=True)
        loss_B = loss_per_image(
            logits_BK, target_BK, "cross_entropy", multi_label=recipe.multi_label
        )
        right_B = is_right(logits_BK, target_BK, multi_label=recipe.multi_label)
        sums.append(torch.stack([(loss_B * weight_B).sum(), (right_B * weight_B).sum()]))
        rows_B = batch.weight_B > 0
        num_images += float(rows_B.sum())
        if recipe.multi_label:
            targets.append(batch.target_BK[rows_B].numpy())
            probs.append((rows_B, logits_BK.sigmoid()))
    # Read only now: so the device had every batch without waiting for the CPU.
    loss_sum, num_correct = 0.0, 0.0
    for loss, right in torch.stack(sums).tolist() if sums else ():
        loss_sum += loss
        num_correct += right
    loss_sum, num_correct, num_images = place.sum(loss_sum, num_correct, num_images)
    if not num_images:
        raise ConfigError(
            f"not one of {len(val.samples)} validation images could be measured: none decodes, or "
            "the model fails on each; the log names them"
        )
    numbers: dict[str, Any] = {
        "val_loss": _ratio(loss_sum, num_images),
        "val_accuracy": _ratio(num_correct, num_images),
        "num_val": round(num_images),
    }
    if recipe.multi_label:
        ours = [(t, p.cpu()[rows_B].numpy()) for t, (rows_B, p) in zip(targets, probs, strict=True)]
        pairs = [pair for of_rank in place.gather(ours) for pair in of_rank]
        target_NK, probs_NK = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        numbers["val_auroc"] = macro_auroc(target_NK, probs_NK)
    return numbers


def is_better(numbers: dict[str, Any], best: dict[str, Any], best_by: BestBy) -> bool:
    """Say whether an epoch beats the best so far; without validation the later one does.

    Of multi-label models "accuracy" is the mean AUROC: the share of images with every class right
    stays near zero for long where there are many classes.
    """
    if not best or "val_loss" not in numbers:
        return True
    has_auroc = all(each.get("val_auroc") is not None for each in (numbers, best))
    name = "val_auroc" if has_auroc else "val_accuracy"
    if best_by == "accuracy" and numbers[name] != best[name]:
        return bool(numbers[name] > best[name])
    return bool(numbers["val_loss"] < best["val_loss"])


def _share_bad(loaders: list[Loader], place: Place) -> None:
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
