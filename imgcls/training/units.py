"""Studies and parts as samples of a training: the images of one are its instances.

In: labelled images, each with the name of its unit. Out: `LearntUnit`s. Invariants: each image is
of one unit, an image without one by itself; a unit has the labels that some image of it shows, as
in `metrics/units.py`; one whose images name several classes is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imgcls.data.dataset import Sample
from imgcls.metrics.units import labels_of_unit, members_by_unit
from imgcls.sources.members import Member


@dataclass(frozen=True, slots=True)
class LearntUnit:
    """What a loader needs of a sample; `uri` is that of its first image and names it."""

    uri: str
    labels: tuple[int, ...]
    group: str
    """That of its images, or else the unit itself."""
    slice_name: str
    weight: float
    """The mean of those of its images."""
    images: tuple[int, ...]
    """Their places among the images that it was made from."""
    boxes: tuple[()] = ()
    member: Member | None = None


def as_units(
    samples: Sequence[Sample], background: int | None, *, multi_label: bool
) -> list[LearntUnit]:
    """Return the units of images, in the order of their first ones; see `group_units`."""
    return group_units(samples, background, multi_label=multi_label)[0]


def group_units(
    samples: Sequence[Sample], background: int | None, *, multi_label: bool
) -> tuple[list[LearntUnit], list[str]]:
    """Return the units of images, and an image of each unit that has no one label.

    Args:
        samples: The images of a split.
        background: Label of the background, which gives way to another one.
        multi_label: A unit may have any number of labels.
    """
    # No name holds a NUL: an image of no unit is its own.
    names = [sample.unit or f"\0{number}" for number, sample in enumerate(samples)]
    found, unclear = list[LearntUnit](), list[str]()
    for images in members_by_unit(names).values():
        of_unit = [samples[image] for image in images]
        labels = labels_of_unit(
            [sample.labels for sample in of_unit], background, multi_label=multi_label
        )
        first = of_unit[0]
        if not labels and not multi_label:
            unclear.append(first.uri)
            continue
        weight = sum(sample.weight for sample in of_unit) / len(of_unit)
        group = first.group or first.unit
        found.append(LearntUnit(first.uri, labels, group, first.slice_name, weight, tuple(images)))
    return found, unclear
