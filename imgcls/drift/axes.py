"""What of pictures is watched: axes, from which difference on one matters, and words for it.

In: two samples. Out: differences by axis. Invariant: an axis is named, bounded and put into words
here and nowhere else. The words are for those who take the pictures.

Legend: B image, S sketch, P direction.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from imgcls.drift.familiar import Familiar
from imgcls.drift.observed import CARRIED, FOLDER, Observed
from imgcls.drift.statistics import (
    Difference,
    Numbers,
    Texts,
    compare_categories,
    compare_numbers,
)
from imgcls.schema import Status

Kind = Literal["number", "mix", "defect"]

# Smaller differences are those between any two nights of one ward or one line; however many images
# prove them, nobody is to be called for them. Of a distribution: the largest distance of two.
MIN_DISTANCE: Final = 0.15
# Of a mix: the share of images that is elsewhere, or a class that became so many times as frequent,
# by so much.
MIN_MOVED: Final = 0.10
MIN_TIMES: Final = 3.0
MIN_RARE: Final = 0.02
# Of something that should not be there at all.
MIN_DEFECT: Final = 0.02
_FLAT: Final = 2.0  # grey levels of standard deviation: an empty frame, a closed shutter


@dataclass(frozen=True, slots=True)
class Axis:
    """Something that is watched."""

    name: str
    kind: Kind
    more: str = ""
    """In words, of a rise."""
    less: str = ""
    unit: str = ""
    """Of a number; "times" tells the ratio instead."""
    by_group: bool = True
    """Whether each scanner, camera or folder is watched by itself too."""


AXES: Final = (
    Axis("brightness", "number", "brighter", "darker", "grey levels"),
    Axis("contrast", "number", "more contrast", "less contrast", "grey levels"),
    Axis("sharpness", "number", "sharper", "less sharp", "times"),
    Axis("levels", "number", "more grey levels", "fewer grey levels", "levels"),
    Axis("size", "number", "larger", "smaller", "times"),
    Axis("shape", "number", "wider", "narrower", "times"),
    Axis("bits", "mix", by_group=False),
    Axis("format", "mix", by_group=False),
    Axis("modality", "mix", by_group=False),
    Axis("unreadable", "defect", "cannot be read"),
    Axis("empty", "defect", "show nothing: one grey all over"),
    Axis("repeated", "defect", "are the same picture as another one", by_group=False),
    Axis("unfamiliar", "defect", "are unlike anything that the model knows"),
    Axis("embedding", "number", by_group=False),
    Axis("class", "mix"),
    Axis("decision", "mix"),
    Axis("confidence", "number", "the model is surer", "the model is less sure"),
)
AXIS_BY_NAME: Final = {axis.name: axis for axis in AXES}


def compare(
    now: Observed,
    before: Observed,
    *,
    by_group: bool,
    is_reference: bool = True,
    only: str = "",
) -> Iterator[tuple[Axis, Difference]]:
    """Yield how a sample differs from another one, axis by axis, as far as both have it.

    Args:
        now: the night, or one group of it.
        before: what it is compared with.
        by_group: only what is watched of a group by itself.
        is_reference: `before` is what the model was made with.
        only: one axis; "" for all.
    """
    axes = [axis for axis in AXES if axis.by_group or not by_group]
    if not by_group:
        names = set(now.carried) & set(before.carried) - {FOLDER}
        axes += [Axis(name, "mix") for name in sorted(names)]
    needs_familiar = only in ("", "embedding", "unfamiliar")
    familiar = Familiar.of(before.sketches()) if needs_familiar else None
    for axis in axes:
        if only in ("", axis.name) and (axis.name != "unfamiliar" or is_reference):
            found = _compare_on(axis, now, before, familiar)
            if found is not None:
                yield axis, found


def _compare_on(
    axis: Axis, now: Observed, before: Observed, familiar: Familiar | None
) -> Difference | None:
    if axis.name == "embedding":
        return _compare_embeddings(now, before, familiar)
    if axis.kind == "number":
        read = _NUMBERS[axis.name]
        return compare_numbers(read(now), now.units(), read(before), before.units())
    now_B, before_B = (texts_of(axis.name, one, familiar) for one in (now, before))
    if axis.name == "unfamiliar":
        # Those that decided where known images lie are nearer to there than any other.
        before_B[np.flatnonzero(_has_sketch(before))[::2]] = None
    return compare_categories(now_B, now.units(), before_B, before.units())


def matters(axis: Axis, found: Difference) -> bool:
    """Tell whether a difference is large enough to call somebody."""
    if axis.kind == "number":
        return found.effect >= MIN_DISTANCE
    if axis.kind == "defect":
        return found.category == "yes" and found.now - found.before >= MIN_DEFECT
    is_new = found.now >= MIN_TIMES * found.before and found.now - found.before >= MIN_RARE
    return found.effect >= MIN_MOVED or is_new


def texts_of(name: str, one: Observed, familiar: Familiar | None = None) -> Texts:
    """Return the category of each image on an axis, None where it has none."""
    if name.startswith(CARRIED):
        return one.texts(name)
    if name == "class":
        return one.texts("class_name")
    if name in ("bits", "format", "modality", "decision"):
        return one.texts(name)
    if name == "unreadable":
        return np.array(["no" if s == Status.OK else "yes" for s in one.texts("status")], object)
    if name == "empty":
        contrast_B = one.numbers("contrast")
        return _yes_or_no(contrast_B < _FLAT, np.isfinite(contrast_B))
    if name == "repeated":
        column = one.table["is_repeated"].to_numpy(zero_copy_only=False)
        return np.array([None if v is None else "yes" if v else "no" for v in column], object)
    assert name == "unfamiliar", name
    threshold = familiar.threshold if familiar is not None else None
    distance_B = distances_of(one, familiar)
    if threshold is None:
        return np.full(len(distance_B), None, object)
    return _yes_or_no(distance_B > threshold, np.isfinite(distance_B))


def distances_of(one: Observed, familiar: Familiar | None) -> Numbers:
    """Return how far each image is from the known ones, NaN where nobody can tell."""
    if familiar is None:
        return np.full(len(one.table), np.nan)
    return familiar.distances(one.sketches())


def numbers_of(name: str, one: Observed, familiar: Familiar | None = None) -> Numbers:
    """Return the value of each image on an axis of numbers."""
    if name == "embedding":
        return distances_of(one, familiar)
    return _NUMBERS[name](one)


def _has_sketch(one: Observed) -> npt.NDArray[np.bool_]:
    return np.atleast_1d(np.isfinite(one.sketches()).all(axis=1))


def _yes_or_no(is_so_B: npt.NDArray[np.bool_], is_known_B: npt.NDArray[np.bool_]) -> Texts:
    found = np.where(is_so_B, "yes", "no").astype(object)
    found[~is_known_B] = None
    return found


def _size(one: Observed) -> Numbers:
    found: Numbers = np.sqrt(one.numbers("width_px") * one.numbers("height_px"))
    return found


def _shape(one: Observed) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = one.numbers("width_px") / one.numbers("height_px")
    return found


def _column(name: str) -> Callable[[Observed], Numbers]:
    return lambda one: one.numbers(name)


_PLAIN: Final = ("brightness", "contrast", "sharpness", "levels", "confidence")
_NUMBERS: Final[dict[str, Callable[[Observed], Numbers]]] = {
    **{name: _column(name) for name in _PLAIN},
    "size": _size,
    "shape": _shape,
}


def _compare_embeddings(
    now: Observed,
    before: Observed,
    familiar: Familiar | None,
) -> Difference | None:
    """Compare where images lie in the directions in which known ones differ, and how far away.

    The least likely of several tests, times how many they are (Bonferroni).
    """
    if familiar is None:
        return None
    sketch_now, sketch_before = now.sketches(), before.sketches()
    measured_B = np.flatnonzero(_has_sketch(before))[1::2]
    along_now, along_before = familiar.along(sketch_now), familiar.along(sketch_before)
    units_now, units_measured = now.units(), before.units()[measured_B]
    found = [
        compare_numbers(along_now[:, p], units_now, along_before[measured_B, p], units_measured)
        for p in range(along_now.shape[1])
    ]
    # The half that decided where known images lie is nearer to there than any other image.
    found.append(
        compare_numbers(
            familiar.distances(sketch_now), units_now, familiar.distance_B, units_measured
        )
    )
    there = [one for one in found if one is not None]
    if not there:
        return None
    least = min(there, key=lambda one: (one.p, -one.effect))
    return Difference(min(1.0, least.p * len(there)), least.effect)
