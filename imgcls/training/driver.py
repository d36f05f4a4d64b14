"""The training flow, top to bottom: data -> audit -> loop -> checkpoint -> bundle -> registry.

In: a TrainConfig. Out: the result as plain values. Invariants: this file alone knows all stages,
and ranks/ray_train.py alone knows Ray: `--num-workers 0` never imports it. A training that was
killed continues from its last checkpoint when the same command is given again.

    train -> make_plan -> train_rank                      in this process
                       -> run_on_workers -> train_rank    in each Ray Train worker
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from imgcls.config.training import TrainConfig
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inference.device import pick_device
from imgcls.logs import tell
from imgcls.model.registry import register
from imgcls.progress import Progress
from imgcls.storage.probe import require_conditional_writes
from imgcls.training.data.leak_check import check_groups, check_images
from imgcls.training.data.unit_loader import images_of
from imgcls.training.finish.finish import (
    describe,
    find_registered,
    make_bundle,
    measure_fold,
)
from imgcls.training.finish.out_of_fold import is_measured
from imgcls.training.finish.recalibrate import recalibrate
from imgcls.training.head.linear_head import fit_head
from imgcls.training.optim.loop import fit, is_finished
from imgcls.training.optim.setup import make_loaders, make_state
from imgcls.training.optim.train_state import TrainState
from imgcls.training.planning.choose_precision import settle_precision
from imgcls.training.planning.folds import fold_plans
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.ranks.placement import warn_of_idle_gpus
from imgcls.training.ranks.rank import Place
from imgcls.training.ranks.stop_request import StopRequest
from imgcls.training.record.checkpoint import CheckpointWriter, list_checkpoints, read_latest
from imgcls.training.record.finished import read_finished, read_finished_otherwise, write_finished
from imgcls.training.record.input_sheet import write_inputs
from imgcls.training.record.recorder import Recorder, Show
from imgcls.training.record.run_record import check_writable, write_start
from imgcls.training.record.trackers import MlflowTracker, TensorBoardTracker, Tracker
from imgcls.training.train_plan import TrainPlan

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a classifier and register it as the next version of its name.

    Returns:
        JSON-able: verdict (see metrics/verdict.py), model (REGISTRY/NAME@v<N>), uri, version,
        digest, num_train, num_val, num_test,
        num_bad, num_preemptions (moves to other nodes after a notice), accuracy (on test, or on val
        where there is no test), test_accuracy, test_accuracy_interval, leaks (pairs that splits
        share, by kind), leak_check_complete, val_accuracy, val_loss, golden_miss (why the CPU
        measured instead of the device that trained; ""), measured_by, epochs, best_epoch,
        stopped_early, images_per_s, train_s, total_s.

    Raises:
        ConfigError: a flag, the data or the loss is wrong; no version was registered.
        BudgetExceededError: too many images give no pixels.
        RunStoppedError: workers died too often; the same command continues.
    """
    start_s = time.monotonic()
    plan = make_plan(config)
    require_conditional_writes(plan.config.registry)
    # The first thing written: a registry that may not be written to is found now, not after the
    # training.
    check_writable(plan)
    check_groups(plan)
    if done := read_finished(plan):
        return _concluded(done, start_s)
    if done := read_finished_otherwise(plan):
        return _concluded(recalibrate(plan, done, Place(pick_device(config.device))), start_s)
    if config.folds:
        for fold in fold_plans(plan):
            if not is_measured(fold):
                log.info("fold %s: %d images", fold.fold, len(fold.splits["train"]))
                _run(fold)
        log.info("the final model: all %d images", len(plan.splits["train"]))
    return _concluded(_run(plan), start_s)


def _run(plan: TrainPlan) -> dict[str, Any]:
    """Train in this process or by Ray Train, as the flags say."""
    config = plan.config
    if config.workers.most == 0:
        place = Place(pick_device(config.device))
        if place.device.type == "cuda":
            warn_of_idle_gpus(torch.cuda.device_count())
        with make_progress(plan) as progress:
            return train_rank(plan, place, progress.advance, StopRequest())
    from imgcls.training.ranks.ray_train import run_on_workers

    return run_on_workers(
        train_rank,
        plan,
        name=f"imgcls-{plan.fingerprint}",
        workers=config.workers,
        device=config.device,
        max_failures=config.max_failures,
        progress=make_progress(plan),
    )


def _concluded(result: dict[str, Any], start_s: float) -> dict[str, Any]:
    """Say the verdict, which stands first in the result, and return the result."""
    for line in (result.get("verdict") or {}).get("lines", ()):
        tell(line)
    total_s = round(time.monotonic() - start_s, 3)
    return {**result, "num_preemptions": result.get("num_preemptions", 0), "total_s": total_s}


def train_rank(plan: TrainPlan, place: Place, show: Show, stop: StopRequest) -> dict[str, Any]:
    """Train as one of the ranks; return the result on rank 0, {} on the others.

    Args:
        plan: what to train.
        place: this rank.
        show: takes (images, note) after each step.
        stop: asks this rank, and so all of them, to stop after a step.

    Raises:
        RunStoppedError: a rank was asked to stop; a checkpoint is written.
    """
    with ExitStack() as stack:
        num_decoders = plan.config.num_decoders or torch.get_num_threads()
        pool = stack.enter_context(
            DecoderPool(plan.decode_spec, plan.preprocess_spec, num_decoders)
        )
        loaders = make_loaders(plan, pool, place)
        facts: dict[str, Any] = {}
        plan = settle_precision(plan, place, facts)
        state = make_state(plan, place)
        state.facts |= facts
        writer = stack.enter_context(resume(plan, state, place))
        resumed = state.total_steps > 0
        leaks = check_images(plan, loaders, place, resumed=resumed)
        if place.rank == 0:
            write_start(plan, resumed=resumed)
            if not resumed:
                write_inputs(plan, pool)
        was_finished = is_finished(state, plan.recipe)
        hooks: dict[str, Callable[[Any], Any]]
        hooks = {"after_step": _ignore, "after_epoch": _ignore, "is_due": _ignore}
        if place.rank == 0:
            every = plan.config.checkpoint_every
            trackers = [] if was_finished else list_trackers(plan, state)
            recorder = Recorder(plan.run_uri, state, writer, every, show, trackers)
            stack.enter_context(recorder)
            in_epoch = state.step * plan.recipe.global_batch_size
            show(state.epoch * len(plan.learnt("train")) + in_epoch, "")
            hooks = {
                "after_step": recorder.after_step,
                "after_epoch": recorder.after_epoch,
                "is_due": recorder.is_due,
            }
        if plan.config.head == "linear":
            fit_head(plan, state, {s: images_of(each) for s, each in loaders.items()}, place)
        with stop:  # after the above there is no epoch left
            fit(
                state,
                loaders["train"],
                loaders.get("val"),
                plan.recipe,
                place,
                compile_model=plan.config.compile,
                stop=stop,
                **hooks,
            )
        if place.rank > 0:
            return {}
        if not was_finished:
            recorder.after_training()
        if plan.fold:
            measure_fold(plan, state, loaders, place)
            writer.remove_all()
            return {"fold": plan.fold}
        bundle = make_bundle(plan, state, loaders, place, leaks)
        earlier = find_registered(plan, state) if was_finished else None
        model = earlier or register(plan.config.registry, plan.config.name, bundle)
        result = describe(plan, state, loaders, bundle, model)
        write_finished(plan, result)
        writer.remove_all()
    return result


def make_progress(plan: TrainPlan) -> Progress:
    """Return the progress line of a training."""
    num_samples = plan.recipe.epochs * len(plan.learnt("train"))
    return Progress("training", num_samples, plan.answered, from_first=True)


def list_trackers(plan: TrainPlan, state: TrainState) -> list[Callable[[], Tracker]]:
    """Return what makes the trackers that the flags ask for."""
    config = plan.config
    trackers: list[Callable[[], Tracker]] = []
    if config.tensorboard:
        trackers.append(partial(TensorBoardTracker, plan.run_uri, state.run_id))
    if config.mlflow_uri:
        experiment = config.mlflow_experiment or config.name
        run_name = f"{config.name} {plan.fingerprint}"
        trackers.append(
            partial(
                MlflowTracker, config.mlflow_uri, experiment, run_name, state.run_id, asdict(config)
            )
        )
    return trackers


def resume(plan: TrainPlan, state: TrainState, place: Place) -> CheckpointWriter:
    """Bring the state to where an earlier attempt ended; return the writer for what follows."""
    earlier = place.from_first(list_checkpoints(plan.run_uri) if place.rank == 0 else {})
    snapshot = read_latest(earlier)
    if snapshot is not None:
        state.restore(snapshot)
        log.info("continuing from epoch %d, step %d", state.epoch + 1, state.step)
    return CheckpointWriter(plan.run_uri, earlier, plan.config.keep_checkpoints)


def _ignore(_: object) -> bool:
    """Leave recording to rank 0."""
    return False
