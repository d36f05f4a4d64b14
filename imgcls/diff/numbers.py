"""How much two models agree, and whether one of them is right more often.

In: which images they answer alike, which answers are right, what belongs together. Out: numbers
with 95 % intervals. Invariant: images of one group are no independent evidence: intervals are drawn
over groups (metrics/bootstrap.py).

Legend: N image, U unit (a group, or an image by itself).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.metrics.bootstrap import NUM_RESAMPLES, draw_weights, interval, number_units, wilson

_MAX_UNITS: Final = 100_000  # above it the interval is so narrow that a formula does
_LIKELY: Final = 0.05

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Paired:
    """The paired test of two models on images with labels."""

    num_images: int
    num_units: int
    accuracy_a: float
    accuracy_b: float
    only_a_right: int
    only_b_right: int
    p_value: float
    """McNemar's exact test: how likely so uneven a split is if both are right equally often."""
    difference: float
    """Accuracy of the second less that of the first."""
    difference_interval: list[float] | None

    @property
    def verdict(self) -> str:
        """worse, better or no_difference: of the second model, as far as these images tell.

        Where images belong to groups their interval decides, else the test.
        """
        low, high = self.difference_interval or (-1.0, 1.0)
        if self.num_units < self.num_images:
            is_told = low > 0 or high < 0
        else:
            is_told = self.p_value < _LIKELY
        if not is_told or self.difference == 0:
            return "no_difference"
        return "better" if self.difference > 0 else "worse"


def agreement(same_N: Bools, unit_N: Sequence[str] | None) -> tuple[float, list[float] | None]:
    """Return the share of equal answers and its interval."""
    share = float(same_N.mean()) if len(same_N) else 1.0
    return share, _interval_of_mean(same_N.astype(np.float64), unit_N, least=0.0)


def paired_test(right_a_N: Bools, right_b_N: Bools, unit_N: Sequence[str] | None) -> Paired | None:
    """Compare two models on the same images; None without any."""
    if not len(right_a_N):
        return None
    only_a = int((right_a_N & ~right_b_N).sum())
    only_b = int((right_b_N & ~right_a_N).sum())
    difference_N = right_b_N.astype(np.float64) - right_a_N
    return Paired(
        num_images=len(right_a_N),
        num_units=len(right_a_N) if unit_N is None else len(set(unit_N)),
        accuracy_a=float(right_a_N.mean()),
        accuracy_b=float(right_b_N.mean()),
        only_a_right=only_a,
        only_b_right=only_b,
        p_value=mcnemar_exact(only_a, only_b),
        difference=float(difference_N.mean()),
        difference_interval=_interval_of_mean(difference_N, unit_N, least=-1.0),
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the two-sided p of McNemar's exact test: a fair coin, thrown `only_a + only_b` times.

    McNemar 1947; exact as the binomial test of the images on which the two differ.
    """
    thrown, fewer = only_a + only_b, min(only_a, only_b)
    if thrown == 0:
        return 1.0
    logs = [
        math.lgamma(thrown + 1) - math.lgamma(k + 1) - math.lgamma(thrown - k + 1)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(log - thrown * math.log(2)) for log in logs))


def _interval_of_mean(
    value_N: npt.NDArray[np.float64], unit_N: Sequence[str] | None, least: float
) -> list[float] | None:
    """Return the interval of the mean of values from `least` to 1."""
    if not len(value_N):
        return None
    unit_of_N = number_units(len(value_N), unit_N)
    sum_U = np.bincount(unit_of_N, weights=value_N)
    count_U = np.bincount(unit_of_N).astype(np.float64)
    num_units = len(count_U)
    if num_units > _MAX_UNITS and least == 0:
        return list(wilson(float(value_N.mean()), num_units))
    draws = draw_weights(np.arange(num_units), min(NUM_RESAMPLES, 10**8 // num_units), seed=0)
    means = [float(weight_U @ sum_U / (weight_U @ count_U)) for weight_U in draws]
    return interval(means, num_units, limits=(least, 1.0))
