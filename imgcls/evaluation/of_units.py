"""Labelled units - studies, parts - out of labelled images: their probabilities and their labels.

In: what a model said of images, the samples, a rule. Out: pooled probabilities, labels and groups,
unit by unit. Invariant: pooled as a night pools; a unit of which an image failed is measured by the
others, and counted as incomplete; one whose images name several classes has no label, and is named.

Shape legend: B image with a prediction, S unit, K class.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.evaluation.predict_samples import Predicted
from imgcls.inference.decision_rule import DecisionRule
from imgcls.metrics.bootstrap import number_units
from imgcls.metrics.calibration import Calibration, fit_calibration
from imgcls.metrics.measures import sets_of
from imgcls.metrics.operating_point import Target, why_unsupported
from imgcls.metrics.outcomes import Outcomes
from imgcls.metrics.pooling import pool_samples
from imgcls.metrics.top_classes import Floats
from imgcls.metrics.units import (
    UnitCalibration,
    UnitRule,
    labels_of_unit,
    members_by_unit,
    positive_of,
    unit_rule,
)
from imgcls.model.bundle import Bundle
from imgcls.schema import NOT_FAILED

_NUM_NAMED = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledUnits:
    """Units with a label and an image that has a prediction, in one order."""

    probs_SK: Floats
    labels: list[tuple[int, ...]]
    groups: list[str]
    """The patient or lot of each; of images of several groups, the first; else the unit itself."""
    slices: list[str]
    num_failed: int
    """Units none of whose images has a prediction."""
    num_incomplete: int
    """Units of which an image, or a frame of one, failed, and others did not."""
    unclear: list[str]
    """An image of each unit whose images name several classes."""
    num_without_unit: int
    """Images of no unit."""


def collect_units(predicted: Predicted, samples: Sequence[Sample], rule: UnitRule) -> LabelledUnits:
    """Pool the images of each unit.

    Raises:
        ConfigError: not one unit has a label and a prediction.
    """
    found = predicted.found
    rows_of = defaultdict[int, list[int]](list)  # of each image: one, or one for each frame
    for row, index in enumerate(found.index_B.tolist()):
        rows_of[index].append(row)
    failed = {each.index for each in found.failures if each.status not in NOT_FAILED}
    members = members_by_unit([sample.unit for sample in samples])
    rows, unit_of, labels, groups, slices = [list[Any]() for _ in range(5)]
    unclear, num_failed, num_incomplete = list[str](), 0, 0
    for images in members.values():
        shown = labels_of_unit(
            [samples[i].labels for i in images], rule.background, multi_label=rule.multi_label
        )
        if not shown and not rule.multi_label:
            unclear.append(samples[images[0]].uri)
            continue
        answered = [row for i in images for row in rows_of.get(i, ())]
        num_failed += not answered
        if not answered:
            continue
        num_incomplete += not failed.isdisjoint(images)
        rows += answered
        unit_of += [len(labels)] * len(answered)
        labels.append(shown)
        first = samples[images[0]]
        groups.append(next((samples[i].group for i in images if samples[i].group), first.unit))
        slices.append(first.slice_name)
    if not labels:
        raise ConfigError(f"--unit: of {len(samples)} images none is of a unit with a label")
    probs_SK = pool_samples(
        found.probs_BK[rows],
        np.array(unit_of),
        rule.rule,
        multi_label=rule.multi_label,
        background=rule.background,
    )
    num_without = sum(not sample.unit for sample in samples)
    if unclear:
        _log.warning(
            "%d units are left out: their images name several classes, such as that of %s",
            len(unclear), unclear[0],
        )  # fmt: skip
    return LabelledUnits(
        probs_SK, labels, groups, slices, num_failed, num_incomplete, unclear, num_without
    )


def rule_to_fit(asked: str, bundle: Bundle, positive: Collection[str]) -> UnitRule:
    """Return the rule that thresholds are fitted for: the one asked for, whatever the model had."""
    return _rule(asked, bundle, None, positive)


def rule_of(asked: str, bundle: Bundle) -> UnitRule:
    """Return the rule by which a model's units are decided."""
    fitted = UnitCalibration.of(bundle.unit_calibration)
    return _rule(asked, bundle, fitted, positive_of(bundle.fitted()))


def _rule(
    asked: str, bundle: Bundle, fitted: UnitCalibration | None, positive: Collection[str]
) -> UnitRule:
    return unit_rule(
        asked,
        fitted,
        bundle.class_names.names,
        positive_classes=positive,
        background_class=bundle.background_class,
        multi_label=bundle.multi_label,
    )


def fit_units(
    units: LabelledUnits,
    rule: UnitRule,
    key: str,
    bundle: Bundle,
    targets: Sequence[tuple[str, Target, float]],
) -> UnitCalibration:
    """Fit temperature and thresholds on pooled probabilities.

    Raises:
        ConfigError: so few units could not show that a target is reached.
    """
    names = bundle.class_names
    for name, target, value in targets:
        label = names.label_of(name)
        num_positive = sum(label in labels for labels in units.labels)
        num = num_positive if target == "recall" else len(units.labels) - num_positive
        if why := why_unsupported(target, value, num):
            raise ConfigError(f"--unit: no operating point for {name!r} per unit: {why}")
    calibration = fit_calibration(
        units.probs_SK,
        sets_of(units.labels, len(names)),
        names,
        multi_label=rule.multi_label,
        unit_B=units.groups,
        targets=targets,
    )
    background = "" if rule.background is None else names.names[rule.background]
    return UnitCalibration(rule.rule, key, background, len(units.labels), calibration)


def measure_units(
    units: LabelledUnits, rule: UnitRule, calibration: Calibration | None, bundle: Bundle
) -> dict[str, Any]:
    """Return what the model achieves per unit: metrics and counts as of images."""
    names = bundle.class_names
    outcomes = Outcomes(rule.multi_label)
    decide = DecisionRule(names.names, calibration, rule.multi_label)
    answers = decide.labels(units.probs_SK)
    for labels, answer, group, name in zip(
        units.labels, answers, units.groups, units.slices, strict=True
    ):
        outcomes.add_ok(labels, answer, group, name)
    result = outcomes.result(names, units.probs_SK)
    # What is not right for having no answer counts as wrong, as of images.
    num_right = sum(map(tuple.__eq__, outcomes.labels, outcomes.predicted))
    result["accuracy_all"] = num_right / (len(units.labels) + units.num_failed)
    calibrated = {}
    if calibration is not None:
        calibrated = outcomes.calibrated(calibration, names, units.probs_SK)
    return {
        "rule": rule.rule,
        "num_units": len(units.labels) + units.num_failed,
        "num_groups": int(number_units(len(units.groups), units.groups).max()) + 1,
        "num_failed": units.num_failed,
        "num_incomplete": units.num_incomplete,
        "num_unclear": len(units.unclear),
        "unclear": units.unclear[:_NUM_NAMED],
        "num_images_without_unit": units.num_without_unit,
        **result,
        "calibrated": calibrated,
    }
