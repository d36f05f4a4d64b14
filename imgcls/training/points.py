"""The operating points that the flags ask for, checked before anything is trained.

In: --positive-class, --target-recall, --target-specificity, the data set. Out: the targets that
calibration fits. Invariant: a target that could not be fitted after the training stops it before.
"""

from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.model.calibration import Target
from imgcls.model.dataset import Sample
from imgcls.model.labels import ClassNames


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


def check_operating_points(config: TrainConfig, class_names: ClassNames, val: list[Sample]) -> None:
    """Refuse operating points that this data set cannot give.

    Raises:
        ConfigError: as `operating_targets`; an unknown class; or a validation split that has not
            both images of the class and others.
    """
    if not operating_targets(config):
        return
    name = config.positive_class
    try:
        label = class_names.label_of(name)
    except ConfigError as error:
        raise ConfigError(f"--positive-class: {error}") from error
    num_positive = sum(label in sample.labels for sample in val)
    if not 0 < num_positive < len(val):
        raise ConfigError(
            f"--positive-class {name!r}: thresholds are chosen on validation images of it and of "
            f"others; of {len(val)} there, {num_positive} show it. Give more, or --val-fraction"
        )
