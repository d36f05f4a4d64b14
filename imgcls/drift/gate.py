"""The gate: does a night look like what the model was made with, and like the nights before?

In: what was observed of a night, a reference, the nights before, changes that were accepted. Out:
`Judged`. Invariant: of nights without a change at most ALPHA alarm, over all axes, groups and both
comparisons together (Holm); and none for a difference too small to matter, however sure it is.

What is tested, by what, and how large is large: axes.py. What an image counts for: statistics.py.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import zip_longest
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from imgcls.drift.axes import (
    MIN_DISTANCE,
    Axis,
    beside_known,
    compare,
    matters,
    most_different,
    numbers_of,
    texts_of,
)
from imgcls.drift.observed import CARRIED, FOLDER, Observed, pool
from imgcls.drift.record import BEFORE, TRAINING, Finding, Judged, Picture
from imgcls.drift.statistics import Difference, distance_beyond_mix, holm
from imgcls.drift.words import sentence_of, summary_of, words_of_number
from imgcls.metrics.bootstrap import draw, middle

# One night in a hundred may alarm without a cause.
ALPHA: Final = 0.01
# Of fewer a night is not judged by itself.
MIN_IMAGES: Final = 20
MIN_UNITS: Final = 5
NUM_PICTURES: Final = 12
_MAX_GROUPS: Final = 32  # of a column, the largest: each costs the others certainty
# An accepted change may grow by so much before it is a new one.
_GROWN: Final = 1.3
_NUM_RESAMPLES: Final = 200
# Within less, times tell in which order files were copied, and not when pictures were taken.
_MIN_SPAN: Final = timedelta(minutes=10)
_FAR: Final = 0.75  # of the images: an image beyond drives a change
_OF_A_PICTURE: Final = ["uri", "member", "frame", "width_px", "height_px"]
_ANSWERS: Final = ("unfamiliar", "class", "decision", "confidence")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Tested:
    axis: Axis
    found: Difference
    column: str
    group: str
    against: str
    now: Observed
    before: Observed


def judge(
    run_id: str,
    night: Observed,
    reference: Observed | None,
    before: Sequence[Observed] = (),
    *,
    small: Sequence[tuple[str, Observed]] = (),
    accepted: Sequence[Finding] = (),
    alpha: float = ALPHA,
) -> Judged:
    """Judge a night.

    Args:
        run_id: of the night.
        night: what was observed of it.
        reference: what was observed when the model was made; None where its bundle has none.
        before: published nights of the same network and specs.
        small: nights just before this one that were too small: they are judged with it.
        accepted: what a person released earlier nights with.
        alpha: how often nights without a change may alarm.
    """
    joined = pool([*(one for _, one in small), night]) or night
    earlier = pool(before)
    if earlier is not None and not _is_enough(earlier):
        earlier = None
    sides = [(TRAINING, reference), (BEFORE, earlier)]
    against = tuple(name for name, side in sides if side is not None and len(side.table))
    judged = Judged(
        run_id=run_id,
        state="quiet" if against else "alone",
        sentence="",
        num_images=joined.num_images,
        num_units=joined.num_units,
        alpha=alpha,
        with_nights=tuple(name for name, _ in small),
        compared_with=against,
    )
    if not _is_enough(joined):
        return replace(
            judged,
            state="accumulates",
            sentence=f"{joined.num_images} pictures of {joined.num_units} groups are too few to "
            "tell whether anything changed: they count in the next night",
        )
    tested = [
        one
        for name, side in sides
        if side is not None and len(side.table)
        for one in _test(*beside_known(joined, side), name)
    ]
    proven = holm([one.found.p for one in tested], alpha)
    alarms = [
        one for one, is_sure in zip(tested, proven, strict=True)
        if is_sure and matters(one.axis, one.found)
    ]  # fmt: skip
    alarms = _without_repeats(alarms)
    mixed = {(one.column, one.group) for one in alarms if one.axis.name == "class"}
    alarms.sort(key=lambda one: _rank(one, follows=_follows_the_mix(one, mixed)))
    findings = [(_finding(one), one) for one in alarms]
    known = [one for one, _ in findings if _is_accepted(one, accepted)]
    new = [(one, of) for one, of in findings if one not in known]
    sentences = [one.sentence for one, _ in new]
    return replace(
        judged,
        state="changed" if new else judged.state,
        sentence=summary_of(sentences, joined.num_images, against),
        findings=tuple(one for one, _ in new),
        accepted=tuple(known),
        pictures=_pictures([of for _, of in new]),
        num_tests=len(tested),
        is_medical="dicom" in joined.texts("format").tolist(),
    )


def _is_enough(one: Observed) -> bool:
    return len(one.table) >= MIN_IMAGES and one.num_units >= MIN_UNITS


def _test(night: Observed, side: Observed, against: str) -> Iterator[_Tested]:
    """Yield every test of a night beside one side: of all images, and of each group."""
    is_reference = against == TRAINING
    for axis, found in compare(night, side, by_group=False, is_reference=is_reference):
        yield _Tested(axis, found, "", "", against, night, side)
    for column in night.carried:
        if column not in side.carried or (column == FOLDER and len(night.carried) > 1):
            continue  # whoever carries a camera is told of cameras
        groups_now, groups_before = night.texts(column), side.texts(column)
        counts = Counter(group for group in groups_now.tolist() if group is not None)
        if len(counts) == 1 and set(groups_before.tolist()) <= set(counts):
            continue  # all images are of it, and were before
        for group, _ in counts.most_common(_MAX_GROUPS):
            now, before = night.where(groups_now == group), side.where(groups_before == group)
            if not _is_enough(before):
                if column == FOLDER:
                    continue  # folders have dates and numbers: a new one is no news
                before = side
            if _is_enough(now):
                for axis, found in compare(now, before, by_group=True, is_reference=is_reference):
                    name = column.removeprefix(CARRIED)
                    yield _Tested(axis, found, name, group, against, now, before)


def _without_repeats(alarms: list[_Tested]) -> list[_Tested]:
    """Leave out what another alarm says better: the group that explains all, or all of the groups.

    And of two comparisons of the same thing the one with the larger effect.
    """
    best: dict[tuple[str, str, str], _Tested] = {}
    for one in alarms:
        key = (one.axis.name, one.column, one.group)
        if key not in best or one.found.effect > best[key].found.effect:
            best[key] = one
    kept = list(best.values())
    for axis in {one.axis.name for one in kept}:
        groups = [one for one in kept if one.axis.name == axis and one.column]
        whole = best.get((axis, "", ""))
        if whole is None or not groups:
            continue
        night = whole.now
        is_rest = np.ones(len(night.table), bool)
        for one in groups:
            is_rest &= night.texts(f"{CARRIED}{one.column}") != one.group
        are_all = len(groups) > 1 and is_rest.sum() < MIN_IMAGES
        if are_all or _differs_too(night.where(is_rest), whole):
            kept = [one for one in kept if one not in groups]
        else:
            kept.remove(whole)
    return kept


def _differs_too(rest: Observed, whole: _Tested) -> bool:
    """Tell whether images outside of some groups have changed as well."""
    if len(rest.table) < MIN_IMAGES:
        return False
    is_reference = whole.against == TRAINING
    found = compare(
        rest, whole.before, by_group=True, is_reference=is_reference, only=whole.axis.name
    )
    return any(matters(axis, difference) for axis, difference in found)


def _follows_the_mix(one: _Tested, mixed: set[tuple[str, str]]) -> bool:
    """Tell whether pictures look different because other things are on them.

    That is so where the mix of classes has changed, and the pictures of each class look as before:
    of a dark camera they do not, whatever the model makes of it.
    """
    if one.axis.kind != "number" or (one.column, one.group) not in mixed:
        return False
    now_B, before_B = (numbers_of(one.axis.name, side) for side in (one.now, one.before))
    of_now_B, of_before_B = (texts_of("class", side) for side in (one.now, one.before))
    return distance_beyond_mix(now_B, of_now_B, before_B, of_before_B) < MIN_DISTANCE


def _rank(one: _Tested, *, follows: bool) -> tuple[int, float]:
    """Order what is told: how pictures are taken, who takes them, what the model makes of it.

    Then what says the same in other words: that pictures are different, and how, if only since
    other things are on them.
    """
    name = one.axis.name
    if follows or name == "embedding":
        tier = 3
    else:
        tier = 2 if name in _ANSWERS else 1 if name.startswith(CARRIED) else 0
    return tier, -one.found.effect


def _is_accepted(one: Finding, accepted: Sequence[Finding]) -> bool:
    return any(one.is_like(other) and one.effect <= _GROWN * other.effect for other in accepted)


def _finding(one: _Tested) -> Finding:
    found, axis = one.found, one.axis
    drives_B = _drives(one)
    since = _since(one.now, drives_B)
    interval = None
    if axis.kind == "number" and axis.name != "embedding":
        interval = _interval(one)
    most = most_different(one.now, one.before) if axis.name == "unfamiliar" else None
    how = words_of_number(*most)[0] if most is not None else ""
    return Finding(
        axis=axis.name.removeprefix(CARRIED),
        column=one.column,
        group=one.group,
        against=one.against,
        sentence=sentence_of(axis, found, one.column, one.group, since, one.against, how),
        p=found.p,
        effect=round(found.effect, 4),
        before=round(found.before, 4),
        now=round(found.now, 4),
        num_images=len(one.now.table),
        category=found.category,
        since=since,
        differs_in=most[0].name if most is not None else "",
        interval=interval,
    )


def _interval(one: _Tested) -> tuple[float, float] | None:
    """Return the mean of the night less that before: 95 %, by a bootstrap of groups."""
    now_B, before_B = (numbers_of(one.axis.name, side) for side in (one.now, one.before))
    is_there = np.isfinite(now_B)
    _, unit_of_B = np.unique(one.now.units()[is_there], return_inverse=True)
    now_B, mean_before = now_B[is_there], float(np.nanmean(before_B))
    drawn = draw(
        [lambda weight_RB: {"mean": weight_RB @ now_B / weight_RB.sum(axis=1)}],
        unit_of_B,
        num_resamples=_NUM_RESAMPLES,
    )
    found = middle(drawn["mean"] - mean_before)
    return None if found is None else (round(found[0], 3), round(found[1], 3))


def _drives(one: _Tested) -> npt.NDArray[np.float64]:
    """Return how much each image of the night drives a change; NaN of those that do not."""
    axis, found, now = one.axis, one.found, one.now
    if axis.name == "unfamiliar":
        return numbers_of("embedding", now)
    if axis.kind == "number":
        values_B = numbers_of(axis.name, now)
        sign = 1.0 if axis.name == "embedding" or found.shift >= 0 else -1.0
        return values_B * sign
    category = "yes" if axis.kind == "defect" else found.category
    is_it_B = np.array([text == category for text in texts_of(axis.name, now)], bool)
    return np.where(is_it_B, 1.0, np.nan if axis.kind == "defect" else 0.0)


def _since(now: Observed, drives_B: npt.NDArray[np.float64]) -> str:
    """Return when a change began within a night, "" where it was there from the first image.

    The cut in time that parts the images best: the largest sum of what is beyond the mean.
    """
    taken = now.table["taken_at"].to_pylist()
    known = [at for at, when in enumerate(taken) if when is not None]
    values = np.nan_to_num(drives_B[known])
    order = sorted(range(len(known)), key=lambda at: taken[known[at]])
    if len(order) < MIN_IMAGES:
        return ""
    span = taken[known[order[-1]]] - taken[known[order[0]]]
    if span < _MIN_SPAN:
        return ""
    # By rank, so that one image does not decide.
    ranks = np.argsort(np.argsort(values[order], kind="stable"), kind="stable") / len(order) - 0.5
    after = np.cumsum(ranks[::-1])[::-1]
    cut = int(after.argmax())
    fraction = cut / len(order)
    if not 0.05 < fraction < 0.95:
        return ""
    # A cut of nothing reaches about 0.87 (the 95 % quantile of a Brownian bridge is 1.36).
    if after[cut] / (np.std(ranks) * np.sqrt(len(order))) < 2.0:
        return ""
    begin = taken[known[order[cut]]]
    return f"{begin:%H:%M}" if span < timedelta(days=1) else f"{begin:%Y-%m-%d %H:%M}"


def _pictures(alarms: list[_Tested]) -> tuple[Picture, ...]:
    """Return the images that drive the changes most, by turns.

    Rather those with a thumbnail, then those of the first change: of one camera, say.
    """
    lists = []
    first = alarms[0].now.table["uri"].combine_chunks() if alarms else None
    for number, one in enumerate(alarms):
        drives_B = np.nan_to_num(_drives(one), nan=-np.inf)
        has_B = one.now.table["has_picture"].fill_null(False).to_numpy(zero_copy_only=False)
        is_far_B = drives_B >= np.quantile(drives_B, _FAR) if np.isfinite(drives_B).all() else has_B
        is_of_first_B = pc.is_in(one.now.table["uri"], value_set=first).to_numpy()
        order = np.lexsort((-drives_B, ~is_of_first_B, ~(has_B & is_far_B)))[:NUM_PICTURES]
        order = order[np.isfinite(drives_B[order])]
        names = one.now.table.select(_OF_A_PICTURE).take(order).to_pylist()
        lists.append([Picture(**name, shows=number) for name in names if name["uri"] is not None])
    found: dict[tuple[str, str | None, int | None], Picture] = {}
    for turn in zip_longest(*lists):
        for picture in turn:
            if picture is not None:
                found.setdefault((picture.uri, picture.member, picture.frame), picture)
    return tuple(found.values())[:NUM_PICTURES]
