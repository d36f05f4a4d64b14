"""Two samples, one axis: how likely such a difference is by chance, and how large it is.

In: values of a night and of what it is compared with, and which of them belong together. Out: a
p-value and an effect. Invariant: images of one group are not independent evidence: a sample counts
for as many independent images as its groups are worth.

Numbers: Kolmogorov-Smirnov (Smirnov 1948), by its limit distribution, which errs on the safe side
where there are few. Categories: the likelihood-ratio test G (Woolf 1957), rare ones together, for
its tail holds where that of Pearson's chi-square promises too much. Several axes: Holm (1979).

Legend: B image, K category, D the two sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.metrics.bootstrap import FEW_UNITS

_MIN_EXPECTED: Final = 5.0  # Cochran 1954: of fewer, the limit distribution does not hold

Numbers = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]
Texts = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Difference:
    """How two samples differ on one axis."""

    p: float
    effect: float
    """0 to 1: the largest distance of the two distributions, or the share that is elsewhere."""
    shift: float = 0.0
    """Of numbers: median less median."""
    category: str = ""
    """Of categories: the one whose share rose most."""
    before: float = 0.0
    """Its share in what is compared with, or the median there."""
    now: float = 0.0


def _special() -> Any:  # noqa: ANN401  (scipy is untyped)
    """Return scipy's distributions: a night too small to be judged never loads them."""
    from scipy import special

    return special


def compare_numbers(
    now_B: Numbers, units_now: Units, before_B: Numbers, units_before: Units
) -> Difference | None:
    """Compare numbers; NaN are left out. None where one side has too few."""
    (now, of_now), (before, of_before) = (
        (values[np.isfinite(values)], units[np.isfinite(values)])
        for values, units in ((now_B, units_now), (before_B, units_before))
    )
    if min(len(now), len(before)) < 2:
        return None
    now_sorted, before_sorted = np.sort(now), np.sort(before)
    points = np.concatenate([now_sorted, before_sorted])
    below_now = np.searchsorted(now_sorted, points, side="right") / len(now)
    below_before = np.searchsorted(before_sorted, points, side="right") / len(before)
    distance = float(np.abs(below_now - below_before).max())
    ranks = np.argsort(np.argsort(np.concatenate([now, before]), kind="stable"), kind="stable")
    num_now = effective_size(ranks[: len(now)].astype(np.float64), of_now)
    num_before = effective_size(ranks[len(now) :].astype(np.float64), of_before)
    root = float(np.sqrt(num_now * num_before / (num_now + num_before)))
    p = float(_special().kolmogorov(root * distance))
    middle_now, middle_before = float(np.median(now)), float(np.median(before))
    return Difference(p, distance, middle_now - middle_before, "", middle_before, middle_now)


def distance_beyond_mix(
    now_B: Numbers, kinds_now_B: Texts, before_B: Numbers, kinds_before_B: Texts
) -> float:
    """Return how far numbers would be apart if kinds had been as frequent before as they are now.

    The largest distance of the two distributions, each image before weighted by how much more
    frequent its kind became. A kind that is new is a difference, whatever it looks like.
    """
    is_there_now, is_there_before = np.isfinite(now_B), np.isfinite(before_B)
    kinds = [kinds_now_B[is_there_now], kinds_before_B[is_there_before]]
    _, code = np.unique(np.concatenate(kinds).astype(str), return_inverse=True)
    of_now, of_before = code[: len(kinds[0])], code[len(kinds[0]) :]
    times_K = np.bincount(of_now, minlength=code.max() + 1) / np.maximum(
        np.bincount(of_before, minlength=code.max() + 1), 1
    )
    weight_B = times_K[of_before]
    if not weight_B.sum():
        return 1.0
    signed = np.concatenate([np.full(len(of_now), 1 / len(of_now)), -weight_B / weight_B.sum()])
    values = np.concatenate([now_B[is_there_now], before_B[is_there_before]])
    _, at = np.unique(values, return_inverse=True)
    return float(np.abs(np.cumsum(np.bincount(at, weights=signed))).max())


def compare_categories(
    now_B: Texts, units_now: Units, before_B: Texts, units_before: Units
) -> Difference | None:
    """Compare categories; None are left out. None where there is nothing to compare."""
    sides = []
    for values, units in ((now_B, units_now), (before_B, units_before)):
        has = np.array([value is not None for value in values], bool)
        sides.append((values[has], units[has]))
    if min(len(values) for values, _ in sides) < 2:
        return None
    names = sorted({value for values, _ in sides for value in values.tolist()})
    if len(names) < 2:
        return None
    number = {name: at for at, name in enumerate(names)}
    codes = [np.array([number[value] for value in values.tolist()]) for values, _ in sides]
    share_DK = np.stack([np.bincount(code, minlength=len(names)) / len(code) for code in codes])
    moved_K = share_DK[0] - share_DK[1]
    most = int(moved_K.argmax())
    # What counts as an independent image, by the category that rose most.
    sizes = [
        effective_size((code == most).astype(np.float64), units)
        for code, (_, units) in zip(codes, sides, strict=True)
    ]
    p = _test_categories(share_DK * np.array(sizes)[:, None])
    return Difference(
        p,
        float(np.abs(moved_K).sum() / 2),
        0.0,
        names[most],
        float(share_DK[1, most]),
        float(share_DK[0, most]),
    )


def _test_categories(counts_DK: Numbers) -> float:
    """Return the p-value of two rows of counts being of one distribution.

    Categories that are rare even together get an exact test of their own, of how many of them fall
    to the first row (binomial, given their sum).
    """
    totals_D = counts_DK.sum(axis=1)
    share = float(totals_D[0] / totals_D.sum())
    is_rare_K = counts_DK.sum(axis=0) * min(share, 1 - share) < _MIN_EXPECTED
    kept = counts_DK[:, ~is_rare_K]
    rest_D = counts_DK[:, is_rare_K].sum(axis=1)
    if rest_D.sum() * min(share, 1 - share) >= _MIN_EXPECTED:
        return _g_test(np.concatenate([kept, rest_D[:, None]], axis=1))
    of_first, total = float(rest_D[0]), float(rest_D.sum())
    tails = [
        float(_special().betainc(found, total - found + 1, chance)) if found > 0 else 1.0
        for found, chance in ((of_first, share), (total - of_first, 1 - share))
    ]
    return min(1.0, 2 * min(_g_test(kept), min(1.0, 2 * min(tails))))


def _g_test(counts_DK: Numbers) -> float:
    if counts_DK.shape[1] < 2:
        return 1.0
    expected_DK = counts_DK.sum(axis=1, keepdims=True) * counts_DK.sum(axis=0) / counts_DK.sum()
    is_there = counts_DK > 0
    ratio_DK = np.where(is_there, counts_DK, 1.0) / np.where(is_there, expected_DK, 1.0)
    g = 2 * float((counts_DK * np.log(ratio_DK)).sum())
    return float(_special().chdtrc(counts_DK.shape[1] - 1, max(g, 0.0)))


def effective_size(values_B: Numbers, units: Units) -> float:
    """Return for how many independent images a sample counts.

    It is the number by which the variance of the mean over groups (the sandwich estimate, what a
    bootstrap of groups comes to) is that of independent images. Few groups tell too little of their
    variance: each counts once then.
    """
    num_images = len(values_B)
    _, unit_of_B = np.unique(units, return_inverse=True)
    num_units = int(unit_of_B.max()) + 1
    if num_units == num_images:
        return float(num_images)
    if num_units < FEW_UNITS:
        return float(num_units)
    centred = values_B - values_B.mean()
    of_units = np.bincount(unit_of_B, weights=centred)
    by_units = float((of_units**2).sum()) * num_units / (num_units - 1)
    independent = float((centred**2).sum())
    if independent == 0:
        return float(num_units)
    return float(np.clip(num_images * independent / max(by_units, 1e-30), 1.0, num_images))


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Tell which are small enough that all of them together are by chance in `alpha` of cases."""
    order = np.argsort(p_values)
    rejected = [False] * len(p_values)
    for rank, at in enumerate(order.tolist()):
        if p_values[at] > alpha / (len(p_values) - rank):
            break
        rejected[at] = True
    return rejected
