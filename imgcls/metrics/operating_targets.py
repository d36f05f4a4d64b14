"""The operating points that the flags ask for, checked before anything is trained or fitted.

In: --positive-class, --target-recall, --target-specificity, the data set. Out: the targets that
calibration fits. Invariant: a target that could not be fitted after the training stops it before,
as far as that can be known; what comes to light after it costs no model.
"""

from collections.abc import Collection
from typing import Protocol

from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError
from imgcls.metrics.operating_point import Target, why_unsupported


class Answered(Protocol):
    """An image, or a unit of several, that is to get an answer."""

    @property
    def uri(self) -> str:
        """What it is called."""

    @property
    def labels(self) -> tuple[int, ...]:
        """What it shows."""


class TargetFlags(Protocol):
    """The flags of `train` and `calibrate` that ask for operating points."""

    @property
    def positive_class(self) -> str:
        """The classes to find, joined by "|"."""

    @property
    def is_pooled(self) -> bool:
        """Whether an answer is pooled: then a class to find also says which the background is."""

    @property
    def target_recall(self) -> float:
        """0 for none."""

    @property
    def target_specificity(self) -> float:
        """0 for none."""


def operating_targets(
    flags: TargetFlags, class_names: ClassNames | None = None
) -> list[tuple[str, Target, float]]:
    """Return (positive class, what to reach, its value) per operating point, class after class.

    Args:
        flags: Of the command.
        class_names: Of the data, as far as they are known: a class may have a "|" in its name.

    Raises:
        ConfigError: a value out of range, a target without a class, a class without a target, or
            one that the data does not have.
    """
    asked: list[tuple[Target, float]] = []
    if flags.target_recall:
        asked.append(("recall", flags.target_recall))
    if flags.target_specificity:
        asked.append(("specificity", flags.target_specificity))
    for target, value in asked:
        if not 0 < value <= 1:
            raise ConfigError(f"--target-{target} {value}: must be more than 0, at most 1")
    if asked and not flags.positive_class:
        raise ConfigError(
            f"--target-{asked[0][0]} {asked[0][1]} needs --positive-class NAME: the class "
            "whose images must be found"
        )
    if flags.positive_class and not asked and not flags.is_pooled:
        raise ConfigError(
            f"--positive-class {flags.positive_class!r} needs --target-recall or "
            "--target-specificity, such as 0.95"
        )
    names = positive_classes(flags, class_names)
    return [(name, target, value) for name in names for target, value in asked]


def positive_classes(flags: TargetFlags, class_names: ClassNames | None = None) -> list[str]:
    """Return the classes to find, as --positive-class names them; none without it.

    Raises:
        ConfigError: one that the data does not have.
    """
    names = flags.positive_class.split("|") if flags.positive_class else []
    if class_names is None:
        return names
    if flags.positive_class in class_names.names:
        return [flags.positive_class]
    for name in names:
        try:
            class_names.label_of(name)
        except ConfigError as error:
            raise ConfigError(f"--positive-class: {error}") from error
    return names


def check_operating_points(
    flags: TargetFlags,
    class_names: ClassNames,
    val: Collection[Answered],
    bad: Collection[str] = (),
    *,
    are_units: bool = False,
) -> None:
    """Refuse operating points that this data set cannot give.

    Args:
        flags: Of the command.
        class_names: Of the data set.
        val: The images that thresholds are chosen on.
        bad: The URIs of those that give no pixels, as far as they are known.
        are_units: They are units of several images.

    Raises:
        ConfigError: as `operating_targets`; an unknown class; or too few images of the class or of
            others, with pixels, for what is asked for.
    """
    readable = [sample for sample in val if sample.uri not in bad]
    if why := why_no_points(flags, class_names, readable):
        num_bad = len(val) - len(readable)
        left_out = f" ({num_bad} more give no pixels)" if num_bad else ""
        units = "; with --unit these are units, not single images" if are_units else ""
        raise ConfigError(
            f"{why}{left_out}{units}. Thresholds are chosen on validation images: give more "
            "images, a larger --val-fraction, or another target"
        )


def why_no_points(
    flags: TargetFlags, class_names: ClassNames, samples: Collection[Answered]
) -> str:
    """Return why these images cannot give the operating points that are asked for, "" if they can.

    They need images of the class and others, and so many that even a model without an error would
    show that the target is reached, see `why_unsupported`.
    """
    for name, target, value in operating_targets(flags, class_names):
        label = class_names.label_of(name)
        num_positive = sum(label in sample.labels for sample in samples)
        num_others = len(samples) - num_positive
        if not (num_positive and num_others):
            return (
                f"no operating point for --positive-class {name!r}: a threshold needs images of it "
                f"and of others, and of {len(samples)} there, {num_positive} show it"
            )
        num_images = num_positive if target == "recall" else num_others
        if why := why_unsupported(target, value, num_images):
            return f"no operating point for --positive-class {name!r}: {why}"
    return ""
