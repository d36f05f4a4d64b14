"""How far a number would move with other images: 95 % intervals.

In: what gives numbers of weighted images; which images belong together. Out: [low, high] or null.
Invariant: what is drawn again is the group (a patient, a lot) where there are groups, never one of
its images: images of one group are not independent evidence.

Percentile bootstrap (Efron 1979): units are drawn with replacement as often as there are units; an
interval holds the middle 95 % of what the number becomes. A draw is a weight per image.

Where a number is the same in all draws (15 of 15 found, whichever are drawn) the bootstrap would
say that it is certain. Then it is Wilson's interval of a share of so many units: close to the rule
of three, which leaves 3/n open where none of n is wrong; of a difference on both sides of 0.

Shape legend: B image, R draw; a measured number is [R], or [R,K] per class.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from imgcls.metrics.top_classes import Bools, Doubles

NUM_RESAMPLES = 1000
# Of three units a draw takes the worst one three times with a chance of 1/27, more than the 2.5 %
# beyond a bound: the interval would be but the worst and the best unit. Of four it is 1/256.
MIN_UNITS = 4
# The percentile bootstrap is too narrow for few units: of 600 simulated test sets (groups of 8
# images, intraclass correlation 0.3, accuracy 0.85) its 95 % held the truth for 30 groups in 94 %,
# for 20 in 91, for 10 in 85, for 4 in 74, for 3 in 58, for 1 in none. So below 30 the card warns.
FEW_UNITS = 30
CONFIDENCE = 0.95
_ROUNDING = 1e-9  # less than this is no width
_Z_95 = 1.96  # standard deviations that hold 95 % of a normal distribution

# Draws are measured some at a time: enough to be fast, few enough to fit into the caches.
_CHUNK = 1 << 17

Measure = Callable[[Doubles], Mapping[str, Doubles]]
"""Weights [R,B] of the images -> numbers by name, [R] or [R,K]."""


def draw(
    measures: Sequence[Measure],
    unit_of_B: npt.NDArray[np.int64],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Doubles]:
    """Return every number of every measure, for all draws.

    Args:
        measures: What gives numbers of weighted images.
        unit_of_B: The unit of each image, see `number_units`.
        num_resamples: More give smoother bounds.
        seed: Of the draws.
    """
    drawn: defaultdict[str, list[Doubles]] = defaultdict(list)
    weights = draw_weights(unit_of_B, num_resamples, seed)
    num_rows = max(1, _CHUNK // len(unit_of_B))
    while chunk := list(islice(weights, num_rows)):
        weight_RB = np.stack(chunk)
        for measure in measures:
            for name, values in measure(weight_RB).items():
                drawn[name].append(values)
    return {name: np.concatenate(values) for name, values in drawn.items()}


def number_units(num_images: int, unit_B: Sequence[str] | None) -> npt.NDArray[np.int64]:
    """Return the number of each image's unit, counted from 0 without gaps."""
    if unit_B is None:
        return np.arange(num_images)
    _, unit_of_B = np.unique(np.asarray(unit_B), return_inverse=True)
    return unit_of_B.astype(np.int64)


def draw_weights(
    unit_of_B: npt.NDArray[np.int64], num_resamples: int, seed: int
) -> Iterator[Doubles]:
    """Yield, per resample, how often each image was drawn: as often as its unit."""
    rng = np.random.default_rng(seed)
    num_units = int(unit_of_B.max()) + 1
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(0, num_units, num_units), minlength=num_units)
        yield drawn[unit_of_B].astype(np.float64)


def interval(
    values: Sequence[float] | Doubles,
    num_units: int,
    num_counted: int | None = None,
    limits: tuple[float, float] | None = (0.0, 1.0),
) -> list[float] | None:
    """Return the middle 95 % of what is defined; Wilson's interval where that has no width.

    Null where less than half of the draws are, or where fewer than MIN_UNITS units were drawn from.

    Args:
        values: The number in each draw.
        num_units: That were drawn from.
        num_counted: Of these, those that the number is a share of; by default all.
        limits: Lowest and highest possible value, 0 between them (a difference has a lowest one
            below 0); None where there is none: null without width.
    """
    bounds = None if num_units < MIN_UNITS else middle(values)
    if bounds is None or bounds[1] - bounds[0] > _ROUNDING:
        return bounds
    num = num_units if num_counted is None else num_counted
    if limits is None or not num:
        return None
    low, high = limits
    up, down = _wide(bounds[0], high, num), _wide(-bounds[0], -low, num)
    return [min(up[0] - down[1], bounds[0]), max(up[1] - down[0], bounds[1])]


def _wide(value: float, most: float, num: int) -> tuple[float, float]:
    """Return the interval of what pulls a number from 0 to one side, by `most` in each unit."""
    if most <= 0:
        return 0.0, 0.0
    low, high = wilson(min(1.0, max(0.0, value / most)), num)
    return most * low, most * high


def count_units(
    unit_of_B: npt.NDArray[np.int64], is_in_BK: Bools
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, per class [K], how many units have an image in it, and how many one beside it."""
    num_classes = is_in_BK.shape[1]
    image_P, class_P = np.nonzero(is_in_BK)  # not of ~is_in_BK, which may be a thousand times more
    pairs, counts = np.unique(unit_of_B[image_P] * num_classes + class_P, return_counts=True)
    num_B = np.bincount(unit_of_B)
    is_whole = counts == num_B[pairs // num_classes]
    some_K, whole_K = (
        np.bincount(each % num_classes, minlength=num_classes) for each in (pairs, pairs[is_whole])
    )
    return some_K, len(num_B) - whole_K


def no_interval(num_units: int) -> dict[str, str]:
    """Return the entry that says why there are no intervals, and nothing where there are."""
    if num_units >= MIN_UNITS:
        return {}
    reason = f"too few groups (or images without one): {num_units}, an interval needs {MIN_UNITS}"
    return {"no_interval_because": reason}


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` independent images: Wilson 1927."""
    z2 = _Z_95**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = _Z_95 / (1 + z2) * float(np.sqrt(share * (1 - share) / count + z2 / (4 * count)))
    return max(0.0, centre - half), min(1.0, centre + half)


def middle(values: Sequence[float] | Doubles) -> list[float] | None:
    """Return the middle 95 % of what is defined; null where less than half of the draws are."""
    drawn = np.asarray(values, np.float64)
    defined = drawn[np.isfinite(drawn)]
    if 2 * len(defined) < len(drawn) or len(defined) == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]
