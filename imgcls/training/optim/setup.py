"""From a plan to the parts that one rank trains with.

In: a TrainPlan and this rank's place. Out: a loader per split, and the state before the first step.
Invariant: every rank builds the same weights.
"""

import logging
from collections.abc import Mapping
from uuid import uuid4

import numpy as np
import torch
from torch import nn

from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.sources.located import access_to
from imgcls.sources.unpacked import Unpacked
from imgcls.training.data.assemble import Assembler
from imgcls.training.data.image_cache import (
    RAM_FRACTION,
    ImageCache,
    choose_kind,
    forget,
    free_memory_bytes,
    num_bytes,
    private_buffer,
    shared_buffer,
)
from imgcls.training.data.loader import SplitLoader
from imgcls.training.data.sampler import Sampler
from imgcls.training.data.unit_loader import Loader, UnitLoader
from imgcls.training.instances.cache import InstanceCache
from imgcls.training.instances.labels import InstanceTargets
from imgcls.training.optim.ema import copy_for_average
from imgcls.training.optim.initial_model import initial_model
from imgcls.training.optim.losses import balanced_class_weights
from imgcls.training.optim.optimizer import build_optimizer
from imgcls.training.optim.train_state import TrainState
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import TrainPlan
from imgcls.training.units import as_units

# Below it batch statistics cost accuracy: Wu and He, Group normalization (ECCV 2018), figure 1.
FEW_ROWS = 16

log = logging.getLogger(__name__)


def make_loaders(plan: TrainPlan, pool: DecoderPool, place: Place) -> dict[str, Loader]:
    """Return a loader for each split that has samples, each with its cache."""
    of_units = bool(plan.config.unit)
    known = InstanceTargets(
        len(plan.class_names), plan.recipe.background, multi_label=plan.recipe.multi_label
    )
    targets = known if plan.recipe.pooling and not of_units else None
    any_frame = plan.decode_spec.frames == "all" and targets is None
    caches: Mapping[str, ImageCache | InstanceCache] = (
        make_instance_caches(plan, place)
        if any_frame or targets is not None
        else make_caches(plan, place)
    )
    access = access_to(plan.samples, Unpacked(plan.samples).get)
    num_classes, pin_memory = len(plan.class_names), place.device.type == "cuda"
    loaders = dict[str, Loader]()
    for split, samples in plan.splits.items():
        if not samples:
            continue
        weight_N = weigh_samples(plan) if split == "train" else None
        images = SplitLoader(
            split,
            samples,
            num_classes=num_classes,
            shape_CHW=plan.shape_CHW,
            pool=pool,
            cache=caches.get(split),
            max_bad_fraction=plan.config.max_bad_fraction,
            weight_N=None if of_units else weight_N,
            pin_memory=pin_memory and not of_units,
            access=access,
            targets=targets,
            any_frame=any_frame,
        )
        loaders[split] = images
        if of_units:
            recipe = plan.recipe
            units = as_units(samples, recipe.background, multi_label=recipe.multi_label)
            assembler = Assembler(
                units,
                num_classes=num_classes,
                shape_CHW=plan.shape_CHW,
                weight_N=weight_N,
                pin_memory=pin_memory,
                pixel_type=pool.pixel_type,
            )
            loaders[split] = UnitLoader(images, units, known, assembler)
    return loaders


def make_caches(plan: TrainPlan, place: Place) -> dict[str, ImageCache]:
    """Return a cache per split, shared by the ranks of this machine; none where none is wanted."""
    pixels = plan.shape_CHW, plan.decode_spec.pixel_type
    splits = _cached_splits(plan)
    sizes = {split: num_bytes(len(s), *pixels) for split, s in splits.items()}
    # All ranks must agree, and machines may have unlike memory: the first one decides.
    kind = place.from_first(choose_kind(plan.config.cache, sum(sizes.values())))
    if kind == "none":
        return {}
    if place.world_size == 1:
        buffers = {split: private_buffer(kind, size) for split, size in sizes.items()}
    else:
        token = place.from_first(uuid4().hex)
        names = {split: f"imgcls-cache-{token}-{split}" for split in sizes}
        buffers = {split: shared_buffer(kind, sizes[split], names[split]) for split in sizes}
        place.meet()  # every rank has mapped the files
        for name in names.values():
            forget(kind, name)
    return {
        split: ImageCache(buffers[split], len(samples), *pixels)
        for split, samples in splits.items()
    }


def make_instance_caches(plan: TrainPlan, place: Place) -> Mapping[str, InstanceCache]:
    """Return a cache per split, of this rank; none where none is wanted.

    How many instances an image has shows when it is read: `auto` keeps as much as it may.
    """
    wanted = plan.config.cache
    if wanted == "none":
        return {}
    splits = _cached_splits(plan)
    num_images = max(1, sum(map(len, splits.values())))
    limit_bytes = int(RAM_FRACTION * free_memory_bytes() / place.world_size)
    return {
        split: InstanceCache(
            len(samples),
            on_disk=wanted == "disk",
            max_bytes=limit_bytes * len(samples) // num_images if wanted == "auto" else 0,
        )
        for split, samples in splits.items()
    }


def _cached_splits(plan: TrainPlan) -> dict[str, list[Sample]]:
    """Return the splits of which each epoch sees the same pixels."""
    looks_anew = plan.recipe.augment.from_source
    return {split: s for split, s in plan.splits.items() if split != "train" or not looks_anew}


def weigh_samples(plan: TrainPlan) -> np.ndarray:
    """Return float32 [N]: the weights that DATA gives, times those of the classes."""
    samples = plan.learnt("train")
    weight_N = np.array([sample.weight for sample in samples], np.float32)
    # Of several labels the classes are weighed in the loss, see Recipe.pos_weight.
    if plan.recipe.balance == "weights" and not plan.recipe.multi_label:
        label_N = np.array([sample.labels[0] for sample in samples])
        weight_N *= balanced_class_weights(label_N, len(plan.class_names))[label_N]
    return weight_N


def make_state(plan: TrainPlan, place: Place) -> TrainState:
    """Build the model, the same on every rank, its moving average and its optimizer."""
    config, recipe = plan.config, plan.recipe
    model = initial_model(
        config, len(plan.class_names), plan.decode_spec.num_channels, plan.adopted
    )
    if synchronises_batch_norm(plan, place):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # torch
    model = model.to(place.device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
    )
    ema = copy_for_average(model) if recipe.ema_decay > 0 else None
    return TrainState(model, optimizer, ema)


def synchronises_batch_norm(plan: TrainPlan, place: Place) -> bool:
    """Say whether batch statistics are those of all ranks' passes; the same on every rank.

    Raises:
        ConfigError: that is asked for on CPUs, where torch cannot.
    """
    wanted, recipe = plan.config.sync_bn, plan.recipe
    if place.world_size == 1 or wanted == "off":
        return False
    if place.device.type != "cuda":
        if wanted == "on":
            raise ConfigError(
                "--sync-bn on: torch synchronises batch statistics between GPUs alone, and these "
                "workers have CPUs; take auto or off"
            )
        return False
    sampler = Sampler(len(plan.learnt("train")), recipe.global_batch_size, recipe.seed)
    num_rows = sampler.max_pass_rows(place.world_size, recipe.batch_size)
    is_on = wanted == "on" or num_rows < FEW_ROWS
    if place.rank == 0:
        seen = "those of all workers" if is_on else "its own"
        log.info(
            "--sync-bn %s: a worker passes %d images at a time, its batch statistics are %s",
            wanted,
            num_rows,
            seen,
        )
    return is_on
