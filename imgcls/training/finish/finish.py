"""From the best weights to a registered model: measure, draw, bundle, register.

In: a plan, the state after training, loaders of val and test. Out: the ModelVersion and its
metrics. Invariant: the numbers in the bundle are those of the very weights in it, run by the code
that will score with them, on images no gradient has seen; the test split decided nothing.
"""

import logging
import platform
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from imgcls.config.training import TrainConfig
from imgcls.data.dataset import count_images
from imgcls.data.keys import Key
from imgcls.data.leaks import LeakCheck
from imgcls.data.splits.draw import SPLIT_MOVED, write_moved
from imgcls.data.trained_on import TRAINED_ON, write_trained_on
from imgcls.drift.reference import with_reference
from imgcls.errors import BundleError, ImgclsError, ObjectMissingError
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.predictor import Predictor, make_predictor
from imgcls.metrics.units import UnitCalibration
from imgcls.model.bundle import Bundle, read_facts
from imgcls.model.bundle_files import GOLDEN_FILES
from imgcls.model.golden_files import pack_files
from imgcls.model.registry import ModelVersion, list_versions
from imgcls.sources.located import request_for
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join
from imgcls.training.data.unit_loader import Loader, images_of
from imgcls.training.finish.conclude import ERRORS, draw_scores, draw_worst_errors, reach_verdict
from imgcls.training.finish.golden import choose_golden
from imgcls.training.finish.measure import MOST_TRUSTED, Measured, measure_splits
from imgcls.training.finish.out_of_fold import write_out_of_fold
from imgcls.training.finish.plots import draw_plots
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.record.input_sheet import INPUTS
from imgcls.training.record.run_record import changed_at_the_end
from imgcls.training.train_plan import OUT_OF_FOLD, TrainPlan

_VERSIONS_OF = ("imgcls", "torch", "torchvision", "pillow", "numpy", "scikit-learn")

log = logging.getLogger(__name__)


def make_bundle(
    plan: TrainPlan,
    state: TrainState,
    loaders: dict[str, Loader],
    place: Place,
    leaks: LeakCheck,
) -> Bundle:
    """Measure the best weights on val and test and put everything that predicts into a bundle.

    Args:
        plan: the training's plan.
        state: after training.
        loaders: by split; a split without samples has none.
        place: where to measure, and among how many it was trained.
        leaks: what the splits share.
    """
    bundle = unmeasured_bundle(plan, state)
    measured, facts = measure_bundle(bundle, plan, loaders, place)
    attachments = bundle.attachments | {TRAINED_ON: write_trained_on(plan.samples)}
    if plan.split_moved:
        attachments[SPLIT_MOVED] = write_moved(plan.split_moved)
    # Only now is every bad image of these splits known.
    facts = _describe_training(plan, state, loaders, place, leaks) | facts
    bundle = replace(bundle, training=facts, attachments=attachments)
    return _with_reference(with_numbers(bundle, plan, measured, loaders), plan, place)


def _with_reference(bundle: Bundle, plan: TrainPlan, place: Place) -> Bundle:
    """Return the bundle with what its pictures should look like: those that it was measured on."""
    samples = next((plan.splits[s] for s in ("val", "test") if plan.splits.get(s)), ())
    columns: dict[str, list[str | None]] = {"group": [sample.group or None for sample in samples]}
    if plan.config.slice_by:
        name = Key.parse(plan.config.slice_by, "--slice-by").column
        columns[name] = [sample.slice_name or None for sample in samples]
    on_cpu = place.device.type == "cpu" or "golden_miss" in bundle.training
    try:
        bundle, _ = with_reference(
            bundle,
            [request_for(index, sample) for index, sample in enumerate(samples)],
            made_by="imgcls train",
            num_cores=torch.get_num_threads(),
            device="cpu" if on_cpu else "cuda",
            columns=columns,
        )
    except ImgclsError as error:
        log.warning("the model gets no reference for its nights: %s. Try imgcls reference", error)
    return bundle


def measure_fold(
    plan: TrainPlan, state: TrainState, loaders: dict[str, Loader], place: Place
) -> None:
    """Measure the model of a fold on the images of the fold, and keep that."""
    bundle = unmeasured_bundle(plan, state)
    held_out = replace(plan, config=replace(plan.config, folds=0, positive_class="",
                                            target_recall=0.0, target_specificity=0.0))  # fmt: skip
    measured, _ = measure_bundle(bundle, held_out, loaders, place)
    write_out_of_fold(plan, measured.predicted["test"], measured.metrics["test"])


def unmeasured_bundle(plan: TrainPlan, state: TrainState) -> Bundle:
    """Return all that predicts, without a number."""
    golden = choose_golden(plan, state)
    return Bundle(
        arch=plan.config.arch,
        class_names=plan.class_names,
        decode_spec=plan.decode_spec,
        preprocess_spec=plan.preprocess_spec,
        state_dict=state.best,
        metrics={},
        split_digest=plan.split_digest,
        training={},
        golden_x_BCHW=golden.x_BCHW,
        golden_probs_BK=golden.probs_BK,
        multi_label=plan.config.multi_label,
        pooling="" if plan.config.unit else plan.recipe.pooling,  # an image is scored by itself
        background_class=_background_class(plan),
        attachments={GOLDEN_FILES: pack_files(golden.files)} | plan.adopted.files,
        origin=plan.adopted.origin,
        arch_options=plan.adopted.arch_options,
    )


def measure_bundle(
    bundle: Bundle, plan: TrainPlan, loaders: dict[str, Loader], place: Place
) -> tuple[Measured, dict[str, Any]]:
    """Measure a bundle on val and test; return that, and the facts of how it was measured."""
    start_s = time.monotonic()
    measured_on = [images_of(loaders[split]) for split in ("val", "test") if split in loaders]
    num_measured = sum(len(loader.samples) for loader in measured_on)
    predictor, miss = _make_predictor(bundle, place, num_measured)
    with predictor:
        measured = measure_splits(predictor, loaders, plan)
    measure_s = round(time.monotonic() - start_s, 3)
    names = " and ".join(measured.metrics) or "nothing"
    log.info("measured %s in %.1f s by the backend %s", names, measure_s, predictor.name)
    facts: dict[str, Any] = {
        "measure_s": measure_s,
        "measured_by": {"backend": predictor.name, "precision": predictor.precision},
    }
    if measured.missing:
        facts["no_operating_point"] = measured.missing
    if miss:
        facts["golden_miss"] = miss
    return measured, facts


def with_numbers(
    bundle: Bundle, plan: TrainPlan, measured: Measured, loaders: dict[str, Loader]
) -> Bundle:
    """Return the bundle with what was measured: numbers, calibration, verdict and pictures."""
    verdict = reach_verdict(plan, measured)
    history, best_epoch = bundle.training["history"], bundle.training["best_epoch"]
    attachments = draw_plots(history, best_epoch, measured.metrics)
    attachments |= draw_scores(plan, measured, verdict)
    _keep_errors(plan, measured, loaders)
    if plan.config.pictures_in_bundle:
        attachments |= _pictures_of_data(plan)
    kept = {n: data for n, data in bundle.attachments.items() if not n.endswith(".png")}
    calibration = measured.calibration
    of_units = None
    if plan.config.unit and calibration is not None:
        # Of a single image nothing was labelled: nothing decides on one.
        assert plan.recipe.pooling, "units are pooled"
        of_units = UnitCalibration(
            plan.recipe.pooling,
            plan.config.unit,
            bundle.background_class,
            calibration.num_images,
            calibration,
        )
        calibration = None
    return replace(
        bundle,
        metrics=measured.metrics,
        calibration=calibration.to_dict() if calibration is not None else None,
        unit_calibration=of_units.to_dict() if of_units is not None else None,
        attachments=kept | attachments,
        verdict=verdict.to_dict(),
    )


def _keep_errors(plan: TrainPlan, measured: Measured, loaders: dict[str, Loader]) -> None:
    """Write the sheet of the worst errors, which shows images of DATA, into the run's folder."""
    loader = loaders.get("train" if measured.split == OUT_OF_FOLD else measured.split)
    if loader is None:
        return
    sheet = draw_worst_errors(plan, measured, loader)
    if sheet:
        put(join(plan.run_uri, ERRORS), sheet)
        log.info("the worst errors, as the network saw them: %s", join(plan.run_uri, ERRORS))


def _pictures_of_data(plan: TrainPlan) -> dict[str, bytes]:
    """Return the pictures in the run's folder that show images of DATA, as far as there are any."""
    found = {}
    for name in (INPUTS, ERRORS):
        with suppress(ObjectMissingError):
            found[name] = read(join(plan.run_uri, name))
    return found


def _make_predictor(bundle: Bundle, place: Place, num_images: int) -> tuple[Predictor, str]:
    """Return what measures, and why that is not the device that trained, "" if it is.

    It is what a run of `score` over so many images would have here. A GPU on which the weights do
    not give the golden answers costs no model: those answers are the CPU's, so the CPU measures.
    """
    demand_on = partial(
        demand_of_run,
        precision="auto",
        batch_size=0,
        num_images=num_images,
        num_cores=torch.get_num_threads(),
    )
    try:
        return make_predictor(bundle, demand_on(device=place.device)), ""
    except BundleError as error:
        if place.device.type == "cpu":
            raise
        miss = f"{place.device}: {error}"
    log.warning(
        "the model is kept, measured on the CPU and marked (golden_miss), for where it was trained "
        "it does not give its golden answers. %s. `imgcls score` will refuse it there: score with "
        "--device cpu or on another GPU, and have this one looked at",
        miss,
    )
    return make_predictor(bundle, demand_on(device="cpu")), miss


def find_registered(plan: TrainPlan, state: TrainState) -> ModelVersion | None:
    """Return the version that an earlier attempt at this run registered before it was killed.

    One with other thresholds or slices than are asked for now is not what this attempt gives.
    """
    for model in reversed(list_versions(plan.config.registry, plan.config.name)):
        facts = read_facts(model.uri).training
        is_same_run = facts.get("run_id") == state.run_id
        if is_same_run and not changed_at_the_end(plan, facts["config"]):
            return model
    return None


def describe_model(bundle: Bundle, model: ModelVersion) -> dict[str, Any]:
    """Return what a registered bundle is and what it achieves, the verdict first."""
    accuracy = {split: metrics["accuracy"] for split, metrics in bundle.metrics.items()}
    test = bundle.metrics.get("test", {})
    return {
        "verdict": bundle.verdict,
        "model": model.reference,
        "uri": model.uri,
        "version": model.version,
        "digest": model.digest,
        "accuracy": next((accuracy[s] for s in MOST_TRUSTED if s in accuracy), None),
        "test_accuracy": accuracy.get("test"),
        "test_accuracy_interval": test.get("intervals", {}).get("accuracy"),
        "val_accuracy": accuracy.get("val"),
    }


def describe(
    plan: TrainPlan,
    state: TrainState,
    loaders: dict[str, Loader],
    bundle: Bundle,
    model: ModelVersion,
) -> dict[str, Any]:
    """Return the result of a training as plain values."""
    num_images = len(state.history) * len(images_of(loaders["train"]).samples)
    return {
        **describe_model(bundle, model),
        "run": plan.run_uri,
        **{f"num_{split}": len(samples) for split, samples in plan.splits.items()},
        "num_bad": sum(len(loader.bad) for loader in loaders.values()),
        "num_classes": len(plan.class_names),
        "seen": plan.seen.to_dict(),
        "greys": bundle.training.get("greys", {}),
        "leaks": bundle.training["leaks"],
        "leak_check_complete": bundle.training["leak_check"]["complete"],
        "val_loss": state.best_metrics.get("val_loss"),
        "golden_miss": bundle.training.get("golden_miss", ""),
        "measured_by": bundle.training.get("measured_by"),
        "epochs": len(state.history),
        "best_epoch": state.best_metrics["epoch"],
        "stopped_early": len(state.history) < plan.recipe.epochs,
        "images_per_s": round(num_images / max(state.train_s, 1e-9), 1),
        "train_s": round(state.train_s, 3),
    }


def _background_class(plan: TrainPlan) -> str:
    label = plan.recipe.background
    return "" if label is None else plan.class_names.names[label]


def _describe_training(
    plan: TrainPlan,
    state: TrainState,
    loaders: dict[str, Loader],
    place: Place,
    leaks: LeakCheck,
) -> dict[str, Any]:
    return {
        "config": without_places(plan.config),
        "run": plan.fingerprint,
        "run_id": state.run_id,
        "seed": plan.config.seed,
        "versions": {name: version(name) for name in _VERSIONS_OF},
        "python": platform.python_version(),
        "hardware": _hardware(place),
        "num_images": {split: len(samples) for split, samples in plan.splits.items()},
        "sees": plan.seen.describe(),
        "seen": plan.seen.to_dict(),
        "num_groups": len({sample.group for sample in plan.samples} - {""}),
        "counts": count_images(plan.samples, plan.class_names),
        "greys": plan.greys,
        "leaks": leaks.counts,
        "leak_check": leaks.to_dict(),
        "bad_images": {
            split: {uri: image.reason for uri, image in loader.bad.items()}
            for split, loader in loaders.items()
            if loader.bad
        },
        "best_epoch": state.best_metrics.get("epoch", 0),
        "history": state.history,
        "train_s": round(state.train_s, 3),
        **state.facts,
    }


def without_places(config: TrainConfig) -> dict[str, Any]:
    """Return the flags, less those that say where things lie: a bundle may travel."""
    values = asdict(config)
    for name in ("data", "registry", "work_dir", "mlflow_uri"):
        del values[name]
    return values


def _hardware(place: Place) -> str:
    workers = f"{place.world_size} x " if place.world_size > 1 else ""
    if place.device.type == "cuda":
        return f"{workers}{torch.cuda.get_device_name(place.device)}"
    num_threads = torch.get_num_threads()
    return f"{workers}{_cpu_name()}, {num_threads} thread{'s' if num_threads > 1 else ''}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, f"{platform.machine()} CPU")
