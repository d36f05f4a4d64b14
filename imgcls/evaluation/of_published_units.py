"""Published rows of units against labels.

In: the runs that wrote units, labelled images and their published rows. Out: metrics and counts, as
of a model that is measured unit by unit. Invariant: a unit shows what some labelled image of it
shows; what was published of it counts, whether its images are labelled one by one or all alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from imgcls.data.class_names import ClassNames
from imgcls.errors import ConfigError
from imgcls.inference.decision_rule import unit_rule_of
from imgcls.metrics.outcomes import Outcomes
from imgcls.metrics.threshold_report import DecisionTable
from imgcls.metrics.units import labels_of_unit
from imgcls.model.bundle import BundleFacts
from imgcls.runs.latest import read_latest_units
from imgcls.runs.published import Manifest
from imgcls.schema import UnitStatus

_NUM_NAMED: Final = 10


@dataclass(frozen=True)
class LabelledImage:
    """A labelled image that was scored; `unit` is that of its row, "" for none."""

    uri: str
    unit: str
    labels: tuple[int, ...]
    group: str
    slice_name: str


def units_key(asked: str, manifests: Sequence[Manifest]) -> str:
    """Return the key by which these runs have units, "" for none.

    Raises:
        ConfigError: they have none by the key that was asked for, or units by several keys.
    """
    keys = sorted({manifest.unit for manifest in manifests if manifest.groups})
    if asked and asked not in keys:
        has = f"units by {' and '.join(keys)}" if keys else "no units: score with --unit"
        raise ConfigError(f"--unit {asked}: these predictions have {has}")
    if len(keys) > 1 and not asked:
        raise ConfigError(
            f"these predictions have units by {' and '.join(keys)}: name one with --unit"
        )
    return asked or (keys[0] if keys else "")


def measure_published_units(
    output: str,
    manifests: Sequence[Manifest],
    key: str,
    images: Iterable[LabelledImage],
    class_names: ClassNames,
    facts_by_digest: Mapping[str, BundleFacts],
    *,
    multi_label: bool,
) -> dict[str, Any]:
    """Return what was published of the units that have a label; {} where there is none.

    Args:
        output: Where the runs are.
        manifests: The runs.
        key: Of their units.
        images: Labelled, usable images.
        class_names: The K classes.
        facts_by_digest: What their models say of themselves, as far as they are there.
        multi_label: A unit may have any number of labels.
    """
    by_unit, num_without = dict[str, list[LabelledImage]](), 0
    for image in images:
        num_without += not image.unit
        if image.unit:
            by_unit.setdefault(image.unit, []).append(image)
    runs = {manifest.run_id for manifest in manifests if manifest.unit == key}
    rows = {row["unit"]: row for row in read_latest_units(output, runs).to_pylist() if row["unit"]}
    outcomes, decisions = Outcomes(multi_label), DecisionTable()
    unclear, rules, counts = list[str](), set[str](), dict.fromkeys(UnitStatus, 0)
    for unit in sorted(by_unit.keys() & rows.keys()):
        row, members = rows[unit], by_unit[unit]
        facts = facts_by_digest.get(row["model_digest"])
        shown = labels_of_unit(
            [image.labels for image in members],
            unit_rule_of(facts, row["rule"]).background if facts is not None else None,
            multi_label=multi_label,
        )
        if not shown and not multi_label:
            unclear.append(members[0].uri)
            continue
        rules.add(row["rule"])
        counts[UnitStatus(row["status"])] += 1
        if row["class_name"] is None:
            outcomes.add_failure(members[0].uri, row["status"], row["statuses"])
            continue
        said = row["labels"] if multi_label else [row["class_name"]]
        predicted = tuple(sorted(map(class_names.label_of, said)))
        group = next((image.group for image in members if image.group), unit)
        outcomes.add_ok(shown, predicted, group, members[0].slice_name)
        decisions.add(row, frozenset(class_names.names[label] for label in shown), group)
    if not outcomes.labels:
        return {}
    fitted = {
        digest: facts.unit_calibration.calibration
        for digest, facts in facts_by_digest.items()
        if facts.unit_calibration is not None
    }
    return {
        "key": key,
        "rule": " and ".join(sorted(rules)),
        "num_units": outcomes.statuses.total(),
        "num_failed": outcomes.statuses.total() - len(outcomes.labels),
        "num_incomplete": counts[UnitStatus.INCOMPLETE],
        "num_unclear": len(unclear),
        "unclear": unclear[:_NUM_NAMED],
        "num_images_without_unit": num_without,
        **outcomes.result(class_names, None),
        "decisions": decisions.result(fitted),
    }
