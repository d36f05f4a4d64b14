"""How the instances of a sample become one answer, in training as in scoring.

In: flags, classes. Out: the rule, and the background class. Invariant: whatever trains on several
instances of a sample names both; a training that does not names neither.
"""

import logging

from imgcls.config.training import TrainConfig
from imgcls.data.class_names import ClassNames, enumerate_names
from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.metrics.pooling import Pooling, background_of

log = logging.getLogger(__name__)


def is_pooled(config: TrainConfig) -> bool:
    """Say whether a sample has several instances."""
    return config.fit == "tiles" or config.frames == "pool"


def _parts(config: TrainConfig) -> tuple[str, str]:
    """Return the flag that makes a sample of several instances, and what those are."""
    return ("--fit tiles", "tiles") if config.fit == "tiles" else ("--frames pool", "frames")


def choose_pooling(config: TrainConfig, class_names: ClassNames) -> tuple[Pooling, int | None]:
    """Return the rule and the label of the background, None where each class is by itself.

    Raises:
        ConfigError: no class is known to be that of a sample that shows nothing.
    """
    flag, parts = _parts(config)
    positive = [config.positive_class] if config.positive_class else []
    background = background_of(class_names.names, positive, multi_label=config.multi_label)
    if background is None and not config.multi_label:
        raise ConfigError(
            f"{flag}: which of {enumerate_names(class_names.names)} is the class of a "
            f"picture that shows nothing? A hundred good {parts} are no vote against one finding. "
            "Call that class good, normal, ok, negative or background; or, of two classes, name "
            "the other one with --positive-class; or train with --multi-label"
        )
    rule: Pooling = "max" if config.pooling == "auto" else config.pooling
    if background is not None:
        log.info(
            "a picture is %r unless one of its %s says otherwise (pooling %s)",
            class_names.names[background],
            parts,
            rule,
        )
    return rule, background


def check_pooled_flags(config: TrainConfig) -> None:
    """Refuse flags that have no meaning for samples of several instances.

    Raises:
        ConfigError: names the flag.
    """
    if not is_pooled(config):
        if config.pooling != "auto":
            raise ConfigError(f"--pooling {config.pooling}: only of --fit tiles and --frames pool")
        return
    flag, parts = _parts(config)
    if config.fit == "tiles" and not 0 <= config.overlap < min(config.input_px):
        raise ConfigError(
            f"--overlap {config.overlap}: must be 0 to {min(config.input_px) - 1}, less than a "
            "tile (--image-px)"
        )
    for name in ("mixup", "cutmix"):
        if getattr(config, name):
            raise ConfigError(f"--{name}: mixes whole pictures, and {flag} has parts of them")
    if config.compile:
        raise ConfigError(
            f"--compile: needs batches of one size, and pictures have any number of {parts}"
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
