"""What a training will do, settled before anything is written.

In: a TrainConfig. Out: a TrainPlan: samples of each split, specs, recipe, the run's place; plain
values that travel to every rank. Invariant: whatever in flags, data or machine would stop the run
later stops it here, as a ConfigError; and two plans with the same fingerprint train the same
weights, so one may continue where the other ended.
"""

import logging
import math
import os
from dataclasses import asdict, fields, replace
from typing import Any

from torch import nn

from imgcls.config.choices import check_name
from imgcls.config.training import TrainConfig
from imgcls.data.class_names import enumerate_names
from imgcls.data.dataset import Dataset, Sample, describe_classes, read_dataset
from imgcls.data.label_manifest import Roles, is_manifest
from imgcls.data.splits.draw import describe_shares
from imgcls.data.tables.shape import TableShape
from imgcls.errors import ConfigError
from imgcls.image.fit.seen import measure_seen
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.device import pick_device
from imgcls.metrics.operating_targets import check_operating_points, operating_targets
from imgcls.model.architectures import check_input_size
from imgcls.model.pretrained import normalization_of
from imgcls.storage.uri import is_inside, split_uri
from imgcls.training.augment.geometric import build_recipe
from imgcls.training.data.sampler import Sampler
from imgcls.training.optim.initial_model import initial_model
from imgcls.training.optim.losses import balanced_pos_weights
from imgcls.training.planning.backbone import Backbone, adopt, check_head_flags, read_backbone
from imgcls.training.planning.begun_before import as_it_was, has_runs, was_begun
from imgcls.training.planning.channel_stats import look_at_images
from imgcls.training.planning.fingerprint import choose_fingerprint, read_versions
from imgcls.training.planning.fit import (
    build_preprocess_spec,
    check_seen,
    measuring_spec,
    with_own_size,
)
from imgcls.training.planning.folds import MIN_FOLDS
from imgcls.training.planning.greys import Greys, look_at_greys, tell_greys
from imgcls.training.planning.last_split import read_last_split
from imgcls.training.planning.pooled import (
    check_pooled_flags,
    choose_pooling,
    learnt_samples,
    tell_boxes,
    tell_pooling,
    tell_units,
)
from imgcls.training.record.checkpoint import CheckpointSchedule
from imgcls.training.record.trackers import check_tracking
from imgcls.training.train_plan import Recipe, TrainPlan, run_uri

log = logging.getLogger(__name__)


def make_plan(config: TrainConfig) -> TrainPlan:
    """Check the flags, read the list of samples, and measure their colours.

    Raises:
        ConfigError: a flag or the data cannot work; nothing was written.
    """
    if not config.backbone:  # which brings its own
        config = with_own_size(config)
    check_flags(config)
    backbone = read_backbone(config)
    if backbone is not None:
        config = backbone.adopted_by(config)
    if config.folds:
        log.info("--folds %d: no image is held out but by a fold in turn", config.folds)
        config = replace(config, val_fraction=0.0, test_fraction=0.0)
    dataset = read_dataset(
        config.data,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        known=lambda: None if config.folds else read_last_split(config),
        is_balanced=True,
        multi_label=config.multi_label,
        roles=_roles(config),
        options=config,
        may_lack_labels=config.allow_unlabelled,
        group_by_folder=config.group_by == "folder",
        keeps_units=bool(config.unit),
    )
    _refuse_ungrouped(config, dataset)
    splits = {split: dataset.of_split(split) for split in ("train", "val", "test")}
    if config.folds:
        splits = splits | {"train": splits["train"] + splits["val"], "val": []}
    log.info("%s", _describe(dataset, splits))
    _tell_shares(config, dataset)
    for line in describe_classes(dataset):
        log.info("  %s", line)
    tell_units(config, dataset.class_names, splits)
    held_out = splits["train" if config.folds else "val"]
    chosen_on = learnt_samples(config, dataset.class_names, held_out)
    check_operating_points(config, dataset.class_names, chosen_on, are_units=bool(config.unit))
    _warn_of_gaps(dataset)
    image_versions = read_versions(config.data, dataset.samples)
    if config.head == "linear":
        plan, greys = _settle(config, dataset, splits, image_versions, backbone)
        check_seen(config, plan.seen)
        tell_greys(greys)
        return plan
    num_classes, num_channels = len(dataset.class_names), build_decode_spec(config).num_channels
    model = initial_model(config, num_classes, num_channels, adopt(config, backbone, num_classes))
    num_train = len(learnt_samples(config, dataset.class_names, splits["train"]))
    num_held_out = num_train // config.folds + 1 if config.folds else 0
    _check_batches(config, model, num_train - num_held_out)
    before = as_it_was(config)
    if before != config and has_runs(config):
        plan, _ = _settle(before, dataset, splits, image_versions)
        if was_begun(plan):
            return replace(plan, config=config)
    plan, greys = _settle(config, dataset, splits, image_versions)
    check_seen(config, plan.seen)
    tell_greys(greys)
    return plan


def _settle(
    config: TrainConfig,
    dataset: Dataset,
    splits: dict[str, list[Sample]],
    image_versions: str,
    backbone: Backbone | None = None,
) -> tuple[TrainPlan, Greys]:
    """Look at a sample of the training images, and put everything together."""
    images = splits["train"]
    asked = build_decode_spec(config) if backbone is None else backbone.decode_spec
    how = {"seed": config.seed, "num_decoders": config.num_decoders}
    greys = look_at_greys(images, asked, measuring_spec(config, asked.num_channels), **how)
    decode_spec = greys.decode_spec if backbone is None else asked
    look = look_at_images(
        images, decode_spec, measuring_spec(config, decode_spec.num_channels), **how
    )
    known = config.weights and normalization_of(
        config.arch, config.weights, decode_spec.num_channels
    )
    mean, std = known or (look.mean, look.std)
    preprocess_spec = build_preprocess_spec(config, mean, std)
    if backbone is not None:
        preprocess_spec = backbone.preprocess_spec
    recipe = build_train_recipe(config, preprocess_spec)
    if config.is_pooled:
        pooling, background = choose_pooling(config, dataset.class_names)
        recipe = replace(recipe, pooling=pooling, background=background)
        tell_pooling(config, dataset.class_names)
    tell_boxes(config, splits["train"])
    if config.multi_label and config.balance == "weights":
        learnt = learnt_samples(config, dataset.class_names, splits["train"])
        weights = balanced_pos_weights([s.labels for s in learnt], len(dataset.class_names))
        recipe = replace(recipe, pos_weight=tuple(weights))
    plan = TrainPlan(
        config=config,
        recipe=recipe,
        decode_spec=decode_spec,
        preprocess_spec=preprocess_spec,
        class_names=dataset.class_names,
        splits=splits,
        split_digest=dataset.split_digest,
        fingerprint=choose_fingerprint(
            decisive_values(config, recipe, decode_spec, dataset),
            image_versions,
            lambda fingerprint: run_uri(config, fingerprint),
            typed_weights=os.path.relpath(config.weights) if config.weights[:1] == "/" else "",
        ),
        split_moved=dataset.moved,
        image_versions=image_versions,
        seen=measure_seen(look.sizes, preprocess_spec),
        greys=greys.to_dict(),
        adopted=adopt(config, backbone, len(dataset.class_names)),
    )
    return plan, greys


def build_decode_spec(config: TrainConfig) -> DecodeSpec:
    """Return the decode spec that the flags ask for; it travels in the bundle.

    Raises:
        ConfigError: a value or a combination that cannot be.
    """
    return DecodeSpec(
        color=config.color,
        gray_range="window" if config.gray_window else config.gray_range,
        gray_bits=config.gray_bits,
        depth=config.depth,
        gray_window=gray_window(config),
        frames=config.frames,
        dicom_window=config.dicom_window,
        max_pixels=config.max_pixels,
    )


def gray_window(config: TrainConfig) -> tuple[float, float]:
    """Return the parsed --gray-window.

    Raises:
        ConfigError: it is not LOW:HIGH.
    """
    if not config.gray_window:
        return DecodeSpec.gray_window
    low, _, high = config.gray_window.partition(":")
    try:
        found = float(low), float(high)
    except ValueError:
        found = math.nan, math.nan
    if not -math.inf < found[0] < found[1] < math.inf:
        raise ConfigError(
            f"--gray-window {config.gray_window}: must be LOW:HIGH, two numbers, the lower one "
            "first, such as -200:1200"
        )
    return found


def check_flags(config: TrainConfig) -> None:
    """Refuse flags that cannot work, whatever the data.

    Raises:
        ConfigError: names the flag, its value and what it may be.
    """
    check_name(config.name, "--name")
    split_uri(config.registry)
    if config.work_dir:
        split_uri(config.work_dir)
    _refuse_inside_data(config)
    check_input_size(config.arch, config.input_px)
    check_pooled_flags(config)
    for flag in ("epochs", "batch_size", "accumulate", "keep_checkpoints", "max_pixels"):
        _refuse_unless(getattr(config, flag) >= 1, config, flag, "at least 1")
    is_fold_count = config.folds == 0 or config.folds >= MIN_FOLDS
    _refuse_unless(is_fold_count, config, "folds", "0, or 2 or more")
    _refuse_unless(config.depth in (8, 16), config, "depth", "8 or 16")
    _refuse_unless(
        config.augment_from == "input" or not config.is_pooled,
        config,
        "augment_from",
        "input with tiles, which are cut out of the source already, pooled frames and --unit",
    )
    if config.depth != DecodeSpec.depth:
        is_plain = config.policy == "none"
        _refuse_unless(is_plain, config, "policy", "none with --depth 16: they change 8 bits")
        is_full = config.precision in ("fp32", "auto")
        what = "fp32 with --depth 16: bf16 keeps 8 bits, fp16 11"
        _refuse_unless(is_full, config, "precision", what)
    for flag in ("num_decoders", "max_failures", "freeze_stages", "patience_epochs"):
        _refuse_unless(getattr(config, flag) >= 0, config, flag, "0 or more")
    _refuse_unless(0 < config.lr < math.inf, config, "lr", "more than 0")
    for flag in ("weight_decay", "max_grad_norm", "mixup", "cutmix"):
        _refuse_unless(0 <= getattr(config, flag) < math.inf, config, flag, "0 or more")
    for flag in ("warmup_fraction", "max_bad_fraction", "min_seen_fraction"):
        _refuse_unless(0 <= getattr(config, flag) <= 1, config, flag, "0 to 1")
    for flag in ("label_smoothing", "ema_decay"):
        _refuse_unless(0 <= getattr(config, flag) < 1, config, flag, "at least 0 and below 1")
    _refuse_unless(0 < config.layer_decay <= 1, config, "layer_decay", "more than 0, at most 1")
    CheckpointSchedule(config.checkpoint_every)
    check_tracking(config.mlflow_uri)
    operating_targets(config)
    check_head_flags(config)
    _roles(config)
    TableShape.of(config)
    build_decode_spec(config)
    if config.workers.most == 0:
        pick_device(config.device)


def _roles(config: TrainConfig) -> Roles:
    return Roles.parse(
        group=config.group, slice_by=config.slice_by, label=config.label, unit=config.unit
    )


def _refuse_ungrouped(config: TrainConfig, dataset: Dataset) -> None:
    without = [sample.uri for sample in dataset.samples if not sample.group]
    if config.group_by == "folder" and without:
        raise ConfigError(
            f"--group-by folder: {len(without)} images of {config.data} lie right in the folder of "
            f"their class, such as {without[0]}: put each into the folder of its patient or part"
        )


def _refuse_inside_data(config: TrainConfig) -> None:
    """Refuse to write into the folder tree, where the next training would find classes."""
    if is_manifest(config.data):
        return
    for flag in ("registry", "work_dir"):
        place = getattr(config, flag)
        if place and is_inside(place, config.data):
            raise ConfigError(
                f"--{flag.replace('_', '-')} {place} lies inside --data {config.data}: it would "
                "become a class of the next training. Choose a place beside the data"
            )


def build_train_recipe(config: TrainConfig, preprocess_spec: PreprocessSpec) -> Recipe:
    """Return the values of a config that decide the weights."""
    not_as_given = {"augment", "pooling"}
    same_name = {field.name for field in fields(Recipe)} & set(asdict(config)) - not_as_given
    values = {name: getattr(config, name) for name in same_name}
    if config.head == "linear":
        values["epochs"] = 0
    return Recipe(
        preprocess=preprocess_spec,
        augment=build_recipe(
            config.augment, config.flip, from_source=config.augment_from == "source"
        ),
        global_batch_size=global_batch_size(config),
        **values,
    )


def global_batch_size(config: TrainConfig) -> int:
    """Return the images of one optimizer step; fewer workers than asked for do not change it."""
    return config.batch_size * max(1, config.workers.most) * config.accumulate


def _check_batches(config: TrainConfig, model: nn.Module, num_train: int) -> None:
    num_ranks = max(1, config.workers.most)
    wanted = global_batch_size(config)
    if num_train < wanted:
        raise ConfigError(
            f"--batch-size {config.batch_size} times {num_ranks} workers times --accumulate "
            f"{config.accumulate} needs {wanted} training images, there are {num_train}; lower it"
        )
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    smallest = Sampler(num_train, wanted, 0).min_step_size // (num_ranks * config.accumulate)
    if has_batch_norm and smallest < 2:
        raise ConfigError(
            f"{config.arch} normalises over the batch and would see one image only in some steps: "
            f"give --batch-size 2 or more ({num_train} training images, {num_ranks} workers)"
        )


def decisive_values(
    config: TrainConfig, recipe: Recipe, decode_spec: DecodeSpec, dataset: Dataset
) -> dict[str, Any]:
    """Return what decides the weights; where and how fast it runs is left out."""
    values = asdict(recipe) | {"preprocess": recipe.preprocess.to_dict()}
    del values["batch_size"]
    if not recipe.augment.from_source:  # likewise
        del values["augment"]["from_source"]
    if not recipe.pooling:  # as versions counted it that knew of none
        del values["pooling"], values["background"]
    if config.head == "linear":  # not in the fingerprints of before there was such a thing
        values["head"] = config.head
    boxes = {s.key: [(*b.place, b.labels) for b in s.boxes] for s in dataset.samples if s.boxes}
    return values | {
        "arch": config.arch,
        "weights": config.weights,
        # A training continues with the decoders there are; the bundle says which those were.
        "decode": decode_spec.to_dict() | {"decoder_version": 1},
        "class_names": dataset.class_names.names,
        "split_digest": dataset.split_digest,
        **({"boxes": boxes} if boxes else {}),
        **({"units": {s.key: s.unit for s in dataset.samples}} if config.unit else {}),
        "sample_weights": {s.key: s.weight for s in dataset.samples if s.weight != 1.0},
    }


def _describe(dataset: Dataset, splits: dict[str, list[Sample]]) -> str:
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in splits.items())
    return f"{len(dataset.samples)} images of {len(dataset.class_names)} classes: {counts}"


def _tell_shares(config: TrainConfig, dataset: Dataset) -> None:
    """Say which shares a drawn split reached, and why they may be others than asked for."""
    if dataset.names_splits:
        return
    asked = {"val": config.val_fraction, "test": config.test_fraction}
    asked["train"] = 1 - sum(asked.values())
    words, misses = describe_shares((sample.split for sample in dataset.samples), asked)
    if misses:
        log.warning(
            "%s. Whole groups cannot be cut, and those of an earlier version keep their side: add "
            "groups, or give another --seed for a split that forgets the earlier ones",
            words,
        )
    else:
        log.info("%s", words)


def _warn_of_gaps(dataset: Dataset) -> None:
    """Name the classes that a split given by DATA cannot measure."""
    for split, counts in dataset.counts().items():
        missing = [name for name, count in counts.items() if count == 0]
        if split != "train" and 0 < len(missing) < len(counts):
            log.warning("%s has no image of %s", split, enumerate_names(missing))


def _refuse_unless(is_right: bool, config: TrainConfig, field: str, wanted: str) -> None:
    if not is_right:
        flag = "--" + field.replace("_", "-")
        raise ConfigError(f"{flag} {getattr(config, field)}: must be {wanted}")
