"""A unit: several images, one answer - the pictures of a study, of a part before four cameras.

In: probabilities and labels of images, the unit of each. Out: those of the units, and the
`UnitCalibration` that lives in the bundle. Invariant: thresholds of units were fitted on what the
same rule made of the images of one unit; another rule, or a single image, is never decided by them.

Shape legend: B image, K class, S unit.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, cast

from imgcls.errors import BundleError, ConfigError
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.pooling import POOLINGS, Pooling, background_of

DEFAULT_RULE: Final[Pooling] = "max"
_FIELDS: Final = frozenset({"rule", "key", "background_class", "num_units", "calibration"})


@dataclass(frozen=True)
class UnitCalibration:
    """How the images of a unit are pooled, and what decides on the result."""

    rule: Pooling
    key: str
    """The key expression that told the units of the labelled data apart."""
    background_class: str
    """What pooling takes for "nothing here"; "" for none."""
    num_units: int
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {**vars(self), "calibration": self.calibration.to_dict()}

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Self | None:
        """Build it from `to_dict`'s values; None of none.

        Raises:
            BundleError: unknown, missing or impossible values.
        """
        if values is None:
            return None
        if values.keys() != _FIELDS or values["rule"] not in POOLINGS:
            raise BundleError(
                f"unit_calibration: unknown or missing values {sorted(values.keys() ^ _FIELDS)}, "
                f"or an unknown rule {values.get('rule')!r}"
            )
        return cls(**{**values, "calibration": Calibration.from_dict(values["calibration"])})


@dataclass(frozen=True)
class UnitRule:
    """How units are answered: by a rule, and where the model has them, by its thresholds."""

    rule: Pooling
    background: int | None
    multi_label: bool
    calibration: Calibration | None


def unit_rule(
    asked: str,
    fitted: UnitCalibration | None,
    class_names: Sequence[str],
    *,
    positive_classes: Collection[str],
    background_class: str,
    multi_label: bool,
) -> UnitRule:
    """Return the rule for the units of a model.

    Args:
        asked: A rule, "auto" for that of the model's thresholds, else DEFAULT_RULE.
        fitted: What the model has for units; None where it is to be fitted.
        class_names: The K classes.
        positive_classes: What must be found, so that none of it is the background.
        background_class: What the model itself pools tiles or frames with; "" for none.
        multi_label: Each class has a probability of its own.

    Raises:
        ConfigError: the thresholds of the model are for another rule.
    """
    if fitted is not None:
        if asked not in ("auto", fitted.rule):
            raise ConfigError(
                f"--unit-rule {asked}: the thresholds per unit of this model were fitted for "
                f"{fitted.rule}. Leave the flag away, or fit them again: imgcls calibrate --unit "
                f"{fitted.key} --unit-rule {asked}"
            )
        name, rule = fitted.background_class, fitted.rule
        background = list(class_names).index(name) if name else None
        return UnitRule(rule, background, multi_label, fitted.calibration)
    if background_class:
        background = list(class_names).index(background_class)
    else:
        background = background_of(class_names, positive_classes, multi_label=multi_label)
    rule = DEFAULT_RULE if asked == "auto" else cast(Pooling, asked)
    return UnitRule(rule, background, multi_label, None)


def positive_of(calibration: Calibration | None) -> list[str]:
    """Return the class that a model's first threshold is for, none without one."""
    points = calibration.operating_points if calibration is not None else ()
    return [point.positive_class for point in points[:1]]


def members_by_unit(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the images of each unit, units in order of their first image; "" is no unit."""
    found = defaultdict[str, list[int]](list)
    for index, name in enumerate(names):
        if name:
            found[name].append(index)
    return dict(found)


def labels_of_unit(
    labels: Sequence[tuple[int, ...]], background: int | None, *, multi_label: bool
) -> tuple[int, ...]:
    """Return the labels of a unit from those of its images: whatever some image shows.

    Of classes that exclude each other the background gives way to another one. Empty where the
    images name several others: then the unit has no one label.
    """
    found = set[int]().union(*labels)
    if multi_label:
        return tuple(sorted(found))
    if len(found) > 1:
        found.discard(-1 if background is None else background)
    return tuple(found) if len(found) == 1 else ()
