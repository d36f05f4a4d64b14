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
# What all of a few pictures have in common: so far apart the two distributions are then.
_CLEAR: Final = 0.6
_LOOKS: Final = ("brightness", "contrast", "sharpness", "levels", "size", "shape")
# How far from the known images, how many times as far as what is unfamiliar, and where along the
# directions in which known images differ most: [B,P].
_DISTANCE, _TIMES, _ALONG = "distance", "times", "along"
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


def beside_known(night: Observed, known: Observed) -> tuple[Observed, Observed]:
    """Tell of a night, and of what it is compared with, where its pictures lie among the known.

    Done once, for all images: a picture of one camera is unfamiliar if the model knows none like it
    of any. Of too few known images neither gets the numbers.
    """
    familiar = Familiar.of(known.sketches())
    if familiar is None:
        return night, known
    # Those that decided where known images lie are nearer to there than any other.
    is_fitted_B = np.zeros(len(known.table), bool)
    is_fitted_B[np.flatnonzero(_has_sketch(known))[::2]] = True
    return _placed(night, familiar), _placed(known, familiar, is_fitted_B)


def _placed(
    one: Observed, familiar: Familiar, leave_out_B: npt.NDArray[np.bool_] | None = None
) -> Observed:
    sketch_BS = one.sketches().copy()
    if leave_out_B is not None:
        sketch_BS[leave_out_B] = np.nan
    distance_B = familiar.distances(sketch_BS)
    times_B = distance_B / (np.nan if familiar.threshold is None else familiar.threshold)
    return one.with_numbers(
        **{_DISTANCE: distance_B, _TIMES: times_B, _ALONG: familiar.along(sketch_BS)}
    )


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
        now: the night, or one group of it, from `beside_known`.
        before: what it is compared with, from there too.
        by_group: only what is watched of a group by itself.
        is_reference: `before` is what the model was made with.
        only: one axis; "" for all.
    """
    axes = [axis for axis in AXES if axis.by_group or not by_group]
    if not by_group:
        names = set(now.carried) & set(before.carried) - {FOLDER}
        axes += [Axis(name, "mix") for name in sorted(names)]
    for axis in axes:
        if only in ("", axis.name) and (axis.name != "unfamiliar" or is_reference):
            found = _compare_on(axis, now, before)
            if found is not None:
                yield axis, found


def _compare_on(axis: Axis, now: Observed, before: Observed) -> Difference | None:
    if axis.name == "embedding":
        return _compare_embeddings(now, before)
    if axis.kind == "number":
        now_B, before_B = (numbers_of(axis.name, one) for one in (now, before))
        return compare_numbers(now_B, now.units(), before_B, before.units())
    texts_now_B, texts_before_B = (texts_of(axis.name, one) for one in (now, before))
    return compare_categories(texts_now_B, now.units(), texts_before_B, before.units())


def most_different(now: Observed, before: Observed) -> tuple[Axis, Difference] | None:
    """Return in which look the unfamiliar pictures of a night differ most from others, if clearly.

    Args:
        now: the night, from `beside_known`.
        before: what it is compared with.
    """
    unfamiliar = now.where(now.numbers(_TIMES) > 1)
    found = [
        (axis, difference)
        for axis in AXES
        if axis.name in _LOOKS
        and (difference := _compare_on(axis, unfamiliar, before)) is not None
        and difference.effect >= _CLEAR
    ]
    return max(found, key=lambda one: one[1].effect, default=None)


def matters(axis: Axis, found: Difference) -> bool:
    """Tell whether a difference is large enough to call somebody."""
    if axis.kind == "number":
        return found.effect >= MIN_DISTANCE
    if axis.kind == "defect":
        return found.category == "yes" and found.now - found.before >= MIN_DEFECT
    is_new = found.now >= MIN_TIMES * found.before and found.now - found.before >= MIN_RARE
    return found.effect >= MIN_MOVED or is_new


def texts_of(name: str, one: Observed) -> Texts:
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
    times_B = one.numbers(_TIMES)
    return _yes_or_no(times_B > 1, np.isfinite(times_B))


def numbers_of(name: str, one: Observed) -> Numbers:
    """Return the value of each image on an axis of numbers."""
    return one.numbers(_DISTANCE) if name == "embedding" else _NUMBERS[name](one)


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


def _compare_embeddings(now: Observed, before: Observed) -> Difference | None:
    """Compare where images lie in the directions in which known ones differ, and how far away.

    The least likely of several tests, times how many they are (Bonferroni).
    """
    values = [
        np.column_stack([one.numbers(_ALONG), one.numbers(_DISTANCE)]) for one in (now, before)
    ]
    pairs = zip(values[0].T, values[1].T, strict=True)
    found = [compare_numbers(one, now.units(), two, before.units()) for one, two in pairs]
    there = [one for one in found if one is not None]
    if not there:
        return None
    least = min(there, key=lambda one: (one.p, -one.effect))
    return Difference(min(1.0, least.p * len(there)), least.effect)
