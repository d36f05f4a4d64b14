"""The operating points that the flags ask for, checked before anything is trained.

In: --positive-class, --target-recall, --target-specificity, the data set. Out: the targets that
calibration fits. Invariant: a target that could not be fitted after the training stops it before,
as far as that can be known; what comes to light after it costs no model.
"""

from collections.abc import Collection

from imgcls.config.training import TrainConfig
from imgcls.data.class_names import ClassNames
from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.metrics.operating_point import Target, why_unsupported


def operating_targets(config: TrainConfig) -> list[tuple[str, Target, float]]:
    """Return (positive class, what to reach, its value) per operating point.

    Raises:
        ConfigError: a value out of range, a target without a class, or a class without a target.
    """
    targets: list[tuple[str, Target, float]] = []
    if config.target_recall:
        targets.append((config.positive_class, "recall", config.target_recall))
    if config.target_specificity:
        targets.append((config.positive_class, "specificity", config.target_specificity))
    for _, target, value in targets:
        if not 0 < value <= 1:
            raise ConfigError(f"--target-{target} {value}: must be more than 0, at most 1")
    if targets and not config.positive_class:
        raise ConfigError(
            f"--target-{targets[0][1]} {targets[0][2]} needs --positive-class NAME: the class "
            "whose images must be found"
        )
    if config.positive_class and not targets:
        raise ConfigError(
            f"--positive-class {config.positive_class!r} needs --target-recall or "
            "--target-specificity, such as 0.95"
        )
    return targets


def check_operating_points(
    config: TrainConfig, class_names: ClassNames, val: list[Sample], bad: Collection[str] = ()
) -> None:
    """Refuse operating points that this data set cannot give.

    Args:
        config: the flags.
        class_names: of the data set.
        val: the validation split.
        bad: the URIs of those that give no pixels, as far as they are known.

    Raises:
        ConfigError: as `operating_targets`; an unknown class; or a validation split that has too
            few images of the class or of others, with pixels, for what is asked for.
    """
    if not operating_targets(config):
        return
    try:
        class_names.label_of(config.positive_class)
    except ConfigError as error:
        raise ConfigError(f"--positive-class: {error}") from error
    readable = [sample for sample in val if sample.uri not in bad]
    if why := why_no_points(config, class_names, readable):
        num_bad = len(val) - len(readable)
        left_out = f" ({num_bad} more give no pixels)" if num_bad else ""
        raise ConfigError(
            f"{why}{left_out}. Thresholds are chosen on validation images: give more images, a "
            "larger --val-fraction, or another target"
        )


def why_no_points(config: TrainConfig, class_names: ClassNames, samples: Collection[Sample]) -> str:
    """Return why these images cannot give the operating points that are asked for, "" if they can.

    They need images of the class and others, and so many that even a model without an error would
    show that the target is reached, see `why_unsupported`.
    """
    name = config.positive_class
    label = class_names.label_of(name)
    num_positive = sum(label in sample.labels for sample in samples)
    num_others = len(samples) - num_positive
    if not (num_positive and num_others):
        return (
            f"no operating point for --positive-class {name!r}: a threshold needs images of it "
            f"and of others, and of {len(samples)} there, {num_positive} show it"
        )
    for _, target, value in operating_targets(config):
        num_images = num_positive if target == "recall" else num_others
        if why := why_unsupported(target, value, num_images):
            return f"no operating point for --positive-class {name!r}: {why}"
    return ""
