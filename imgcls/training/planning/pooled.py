"""How the instances of a sample become one answer, in training as in scoring.

In: flags, classes. Out: the rule, and the background class. Invariant: whatever trains on several
instances of a sample names both; a training that does not names neither.
"""

import logging
from collections.abc import Mapping, Sequence

from imgcls.config.training import TrainConfig
from imgcls.data.class_names import ClassNames, enumerate_names
from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.metrics.operating_targets import operating_targets, positive_classes
from imgcls.metrics.pooling import Pooling, background_of
from imgcls.training.units import LearntUnit, as_units, group_units

log = logging.getLogger(__name__)


def _parts(config: TrainConfig) -> tuple[str, str, str]:
    """Return the flag that makes a sample of several instances, and what to call it and them."""
    if config.unit:
        return f"--unit {config.unit}", "unit", "images"
    if config.fit == "tiles":
        return "--fit tiles", "picture", "tiles"
    return "--frames pool", "picture", "frames"


def choose_pooling(config: TrainConfig, class_names: ClassNames) -> tuple[Pooling, int | None]:
    """Return the rule and the label of the background, None where each class is by itself.

    Raises:
        ConfigError: no class is known to be that of a sample that shows nothing.
    """
    flag, whole, parts = _parts(config)
    positive = positive_classes(config, class_names)
    background = background_of(class_names.names, positive, multi_label=config.multi_label)
    if background is None and not config.multi_label:
        raise ConfigError(
            f"{flag}: which of {enumerate_names(class_names.names)} is the class of a "
            f"{whole} that shows nothing? A hundred good {parts} are no vote against one finding. "
            "Call that class good, normal, ok, negative or background; or name all the others with "
            "--positive-class, such as 'crack' or 'crack|dent'; or train with --multi-label"
        )
    return "max" if config.pooling == "auto" else config.pooling, background


def learnt_samples(
    config: TrainConfig, class_names: ClassNames, samples: list[Sample]
) -> Sequence[Sample | LearntUnit]:
    """Return what gets an answer: images; with --unit, their units."""
    if not config.unit:
        return samples
    _, background = choose_pooling(config, class_names)
    return as_units(samples, background, multi_label=config.multi_label)


def tell_pooling(config: TrainConfig, class_names: ClassNames) -> None:
    """Say in the log by which rule a sample gets its answer."""
    rule, background = choose_pooling(config, class_names)
    if background is not None:
        _, whole, parts = _parts(config)
        log.info(
            "a %s is %r unless one of its %s says otherwise (pooling %s)",
            whole,
            class_names.names[background],
            parts,
            rule,
        )
    if config.positive_class and not operating_targets(config):
        log.info(
            "--positive-class %s has neither --target-recall nor --target-specificity: the model "
            "gets no threshold, an answer is the most probable class",
            config.positive_class,
        )


def tell_units(
    config: TrainConfig, class_names: ClassNames, splits: Mapping[str, list[Sample]]
) -> None:
    """Say in the log how many units there are, and name those that are left out."""
    if not config.unit:
        return
    _, background = choose_pooling(config, class_names)
    counts, unclear = list[str](), list[str]()
    for split, samples in splits.items():
        units, without = group_units(samples, background, multi_label=config.multi_label)
        counts.append(f"{len(units)} {split}")
        unclear += without
    log.info("units by --unit %s: %s", config.unit, ", ".join(counts))
    if unclear:
        log.warning(
            "%d units are left out: their images name several classes, such as that of %s",
            len(unclear), unclear[0],
        )  # fmt: skip


def check_pooled_flags(config: TrainConfig) -> None:
    """Refuse flags that have no meaning for samples of several instances.

    Raises:
        ConfigError: names the flag.
    """
    if not config.is_pooled:
        if config.pooling != "auto":
            raise ConfigError(
                f"--pooling {config.pooling}: only of --fit tiles, --frames pool and --unit"
            )
        return
    flag, _, parts = _parts(config)
    if config.unit and (config.fit == "tiles" or config.frames in ("all", "pool")):
        other = "--fit tiles" if config.fit == "tiles" else f"--frames {config.frames}"
        raise ConfigError(
            f"{flag} with {other}: an image of a unit is one look of the network in training. "
            f"Leave out {other}; or train without --unit, --group by the same key, and fit "
            "thresholds per unit afterwards: imgcls calibrate --unit"
        )
    if config.fit == "tiles" and not 0 <= config.overlap < min(config.input_px):
        raise ConfigError(
            f"--overlap {config.overlap}: must be 0 to {min(config.input_px) - 1}, less than a "
            "tile (--image-px)"
        )
    for name in ("mixup", "cutmix"):
        if getattr(config, name):
            raise ConfigError(f"--{name}: mixes whole pictures, and a sample of {flag} is {parts}")
    if config.compile:
        raise ConfigError(
            f"--compile: needs batches of one size, and {flag} gives any number of {parts}"
        )


def tell_boxes(config: TrainConfig, samples: list[Sample]) -> None:
    """Say in the log what the training knows of places."""
    num = sum(bool(sample.boxes) for sample in samples)
    if num and config.fit != "tiles":
        log.warning(
            "%d images have boxes (x,y,w,h): this training does not use them; --fit tiles does", num
        )
    elif num:
        log.info("%d of %d images say where (x,y,w,h)", num, len(samples))
