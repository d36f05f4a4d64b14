"""The training flow, top to bottom: data -> loader -> loop -> checkpoint -> bundle -> registry.

In: a TrainConfig. Out: the result as plain values. Invariants: this file alone knows all stages,
and workers.py alone knows Ray: `--num-workers 0` never imports it. A training that was killed goes
on from its last checkpoint when the same command is given again.

    train -> make_plan -> train_rank                      in this process
                       -> run_on_workers -> train_rank    in each Ray Train worker
"""

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from imgcls.config.training import TrainConfig
from imgcls.image.pool import DecoderPool
from imgcls.logs import Progress
from imgcls.model.predict import pick_device
from imgcls.model.registry import register
from imgcls.storage.objects import put
from imgcls.storage.uri import join
from imgcls.training.checkpoint import CheckpointWriter, list_checkpoints, read_latest
from imgcls.training.finish import describe, find_registered, make_bundle
from imgcls.training.loop import fit, is_finished
from imgcls.training.place import Place
from imgcls.training.plan import TrainPlan, make_plan
from imgcls.training.prepare import make_loaders, make_state
from imgcls.training.recorder import Recorder, Show
from imgcls.training.state import TrainState

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a classifier and register it as the next version of its name.

    Returns:
        JSON-able: model (REGISTRY/NAME@v<N>), uri, version, digest, num_train, num_val, num_test,
        num_bad, accuracy (on test, or on val where there is no test), test_accuracy, val_accuracy,
        val_loss, epochs, best_epoch, stopped_early, images_per_s, train_s, total_s.

    Raises:
        ConfigError: a flag, the data or the loss is wrong; no version was registered.
        BudgetExceededError: too many images give no pixels.
        RunStoppedError: workers died too often; the same command goes on.
    """
    start_s = time.monotonic()
    plan = make_plan(config)
    # The first thing written: a registry that may not be written to is found now, not after the
    # training.
    put(join(plan.run_uri, "run.json"), json.dumps(asdict(config), indent=1).encode())
    if config.num_workers == 0:
        result = train_rank(plan, Place(pick_device(config.device)))
    else:
        from imgcls.training.workers import run_on_workers

        result = run_on_workers(
            train_rank,
            plan,
            name=f"imgcls-{plan.fingerprint}",
            num_workers=config.num_workers,
            min_workers=config.min_workers,
            device=config.device,
            max_failures=config.max_failures,
            progress=make_progress(plan),
        )
    return result | {"total_s": round(time.monotonic() - start_s, 3)}


def train_rank(plan: TrainPlan, place: Place, show: Show | None = None) -> dict[str, Any]:
    """Train as one of the ranks; return the result on rank 0, {} on the others.

    Args:
        plan: what to train.
        place: this rank.
        show: takes (images, note) after each step; a progress line on stderr by default.
    """
    with ExitStack() as stack:
        num_decoders = plan.config.num_decoders or torch.get_num_threads()
        pool = stack.enter_context(
            DecoderPool(plan.decode_spec, plan.preprocess_spec, num_decoders)
        )
        loaders = make_loaders(plan, pool, place)
        state = make_state(plan, place)
        writer = stack.enter_context(resume(plan, state, place))
        was_finished = is_finished(state, plan.recipe)
        hooks: dict[str, Callable[[Any], None]] = {"after_step": _ignore, "after_epoch": _ignore}
        if place.rank == 0:
            show = show or stack.enter_context(make_progress(plan)).advance
            every = plan.config.checkpoint_every
            recorder = Recorder(plan.run_uri, state, writer, every, show)
            stack.enter_context(recorder)
            hooks = {"after_step": recorder.after_step, "after_epoch": recorder.after_epoch}
        fit(
            state,
            loaders["train"],
            loaders.get("val"),
            plan.recipe,
            place,
            compile_model=plan.config.compile,
            **hooks,
        )
        if place.rank > 0:
            return {}
        if not was_finished:
            recorder.after_training()
        bundle = make_bundle(plan, state, loaders, place.device)
        earlier = find_registered(plan, state) if was_finished else None
        model = earlier or register(plan.config.registry, plan.config.name, bundle)
        writer.remove_all()
    return describe(plan, state, loaders, bundle, model)


def make_progress(plan: TrainPlan) -> Progress:
    """Return the progress line of a training, in images."""
    return Progress("training", plan.recipe.epochs * len(plan.splits["train"]), "images")


def resume(plan: TrainPlan, state: TrainState, place: Place) -> CheckpointWriter:
    """Bring the state to where an earlier attempt ended; return the writer for what follows."""
    earlier = place.from_first(list_checkpoints(plan.run_uri) if place.rank == 0 else {})
    snapshot = read_latest(earlier)
    if snapshot is not None:
        state.restore(snapshot)
        log.info("going on from epoch %d, step %d", state.epoch + 1, state.step)
    return CheckpointWriter(plan.run_uri, earlier)


def _ignore(_: object) -> None:
    """Leave recording to rank 0."""
