"""What the card of a model says where its numbers are of units: studies, parts.

In: what `bundle.json` holds. Out: Markdown, and the calibration that the numbers are of. Invariant:
a number of units never passes for one of single images.
"""

from collections.abc import Mapping
from typing import Any

from imgcls.inert import in_markdown


def describe_units(metrics: Mapping[str, Any]) -> list[str]:
    """Return a paragraph on the splits that were measured unit by unit; none of other models."""
    measured = {split: values["of_units"] for split, values in metrics.items()
                if "of_units" in values}  # fmt: skip
    if not measured:
        return []
    of_units = next(iter(measured.values()))
    return [
        f"**Every number and threshold of {' and '.join(measured)} is of a unit by --unit "
        f"{in_markdown(of_units['key'])}: several images with one label, pooled by "
        f"{of_units['rule']}. Where it says image, a unit is meant.** A single image has no "
        "threshold, so its row has no decision; score with the same --unit to get one per unit."
    ]


def calibration_of(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the calibration that the card shows: that of images, or else that of units."""
    of_units: Mapping[str, Any] = facts.get("unit_calibration") or {}
    return facts.get("calibration") or of_units.get("calibration")
