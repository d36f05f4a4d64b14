"""Give each side the share of images that was asked for, where a hash alone would miss it.

In: units (a patient's images, or one image) with their images per class, each on a side. Out: the
same units, as few of them as needed on another side. Invariants: a fixed unit does not move; no
class loses its last unit on a side; the same input gives the same output, whatever its order.

A hash gives shares that are right on average: 20 patients at 15 % may well come out as 1, or as 6.
So units move one by one, always the one that brings the sides nearest to what was asked, until
every side holds within _TOTAL_TOLERANCE (and every class within _CLASS_TOLERANCE) of it, or until
no move helps any more; few units are exchanged in pairs as well. Of many units hardly one moves.

How far sides are off is the chi-square of their counts: the sum of (images - wanted)^2 / wanted
over sides and classes, and over sides for all images together. It is a greedy descent like that of
scikit-learn's StratifiedGroupKFold, but with shares, and from a hash instead of from nothing.

Shape legend: U unit, K class and last the total, S side, E entry of the sparse table of counts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_TOTAL_TOLERANCE = 0.02
_CLASS_TOLERANCE = 0.10
_MAX_PASSES = 2000
# Exchanging pairs compares all of them.
_MAX_EXCHANGED_UNITS = 400
_MAX_EXCHANGED_CLASSES = 200
_LEAST_GAIN = 1e-9

_Floats = npt.NDArray[np.float64]


def balance(
    split: Mapping[str, str],
    images_by_unit: Mapping[str, Mapping[str, int]],
    shares: Mapping[str, float],
    fixed: Collection[str] = (),
) -> dict[str, str]:
    """Move as few units as needed for each side to hold its share of the images.

    Args:
        split: The side of each unit, to begin with.
        images_by_unit: Number of images of each unit by class; one of several classes counts in
            each of them.
        shares: The share of the images that each side should hold; those with none are left out.
        fixed: Units that stay where they are.
    """
    sides = [side for side, share in shares.items() if share > 0]
    units = sorted(unit for unit in split if split[unit] in sides)
    if not units or len(sides) < 2:
        return dict(split)
    table = _Table.of(units, images_by_unit, [shares[side] for side in sides])
    side_U = np.array([sides.index(split[unit]) for unit in units])
    held = set(fixed)
    may_move_U = np.array([unit not in held for unit in units])
    state = _State(table, side_U, may_move_U)
    for _ in range(_MAX_PASSES):
        if state.holds() or not (state.move_best() or state.exchange_best()):
            break
    moved = {unit: sides[side] for unit, side in zip(units, state.side_U.tolist(), strict=True)}
    return {**split, **moved}


@dataclass(frozen=True)
class _Table:
    """Images per unit and class, sparse: entry e says that unit_E[e] has count_E[e] of class_E[e].

    The last class is the total.
    """

    unit_E: npt.NDArray[np.intp]
    class_E: npt.NDArray[np.intp]
    count_E: _Floats
    num_units: int
    wanted_SK: _Floats

    @staticmethod
    def of(
        units: list[str], images_by_unit: Mapping[str, Mapping[str, int]], shares: list[float]
    ) -> "_Table":
        names = sorted({name for unit in units for name in images_by_unit[unit]})
        label_of = {name: label for label, name in enumerate(names)}
        entries = list[tuple[int, int, float]]()
        for number, unit in enumerate(units):
            images = images_by_unit[unit]
            entries += [(number, label_of[name], float(images[name])) for name in sorted(images)]
            entries.append((number, len(names), float(max(1, sum(images.values())))))
        unit_E, class_E, count_E = (np.array(column) for column in zip(*entries, strict=True))
        total_K = np.bincount(class_E, weights=count_E, minlength=len(names) + 1)
        share_S = np.array(shares) / sum(shares)
        wanted_SK = np.outer(share_S, total_K)
        return _Table(unit_E, class_E, count_E, len(units), wanted_SK)


class _State:
    """Where each unit lies, and what is gained by moving one."""

    def __init__(
        self, table: _Table, side_U: npt.NDArray[np.intp], may_move_U: npt.NDArray[np.bool_]
    ) -> None:
        self._table, self.side_U, self._may_move_U = table, side_U, may_move_U
        self._weight_SK = 1 / np.maximum(table.wanted_SK, 1.0)
        # All images together weigh as much as all classes: rare ones alone would decide otherwise.
        self._weight_SK[:, -1] *= max(1, table.wanted_SK.shape[1] - 1)
        self._is_total_E = table.class_E == table.wanted_SK.shape[1] - 1
        tolerance_K = np.full(table.wanted_SK.shape[1], _CLASS_TOLERANCE)
        tolerance_K[-1] = _TOTAL_TOLERANCE
        self._allowed_SK = np.maximum(1.0, tolerance_K * table.wanted_SK)
        self._num_SK = np.zeros_like(table.wanted_SK)
        np.add.at(self._num_SK, (side_U[table.unit_E], table.class_E), table.count_E)

    def holds(self) -> bool:
        """Whether every side has what was asked for, within the tolerance."""
        return bool((abs(self._num_SK - self._table.wanted_SK) <= self._allowed_SK).all())

    def move_best(self) -> bool:
        """Move the best unit, and beside it the best of other classes; False if none helps."""
        gain_US = self._gains()
        best_U = gain_US.argmax(axis=1)
        gain_U = gain_US[np.arange(len(best_U)), best_U]
        order = np.argsort(-gain_U, kind="stable")
        touched = set[int]()
        num_moved = 0
        for unit in order[: self._table.wanted_SK.shape[1]].tolist():
            if gain_U[unit] <= _LEAST_GAIN:
                break
            classes = set(self._entries_of(unit)[0].tolist())
            if touched & classes:
                continue
            # All share the total: later ones are looked at again, as it has changed by then.
            if num_moved and self._gain(unit, int(best_U[unit])) <= _LEAST_GAIN:
                continue
            touched |= classes
            self._move(unit, int(best_U[unit]))
            num_moved += 1
        return num_moved > 0

    def exchange_best(self) -> bool:
        """Exchange the best pair of units on two sides, of few units; False if none helps."""
        movable = np.flatnonzero(self._may_move_U)
        num_classes = self._table.wanted_SK.shape[1]
        if len(movable) > _MAX_EXCHANGED_UNITS or num_classes > _MAX_EXCHANGED_CLASSES:
            return False
        count_UK = np.zeros((self._table.num_units, num_classes))
        count_UK[self._table.unit_E, self._table.class_E] = self._table.count_E
        off_SK = self._num_SK - self._table.wanted_SK
        found = list[tuple[float, int, int]]()
        for a in range(len(off_SK)):
            for b in range(a + 1, len(off_SK)):
                of_a, of_b = (movable[self.side_U[movable] == side] for side in (a, b))
                # Moving w from a to b changes the chi-square by sum(w * (slope + w * weight)).
                weight_K = self._weight_SK[a] + self._weight_SK[b]
                slope_K = 2 * (off_SK[b] * self._weight_SK[b] - off_SK[a] * self._weight_SK[a])
                there_U = (count_UK[of_a] * (slope_K + count_UK[of_a] * weight_K)).sum(axis=1)
                back_U = (count_UK[of_b] * (-slope_K + count_UK[of_b] * weight_K)).sum(axis=1)
                both = (count_UK[of_a] * weight_K) @ count_UK[of_b].T
                gain = 2 * both - there_U[:, None] - back_U[None]
                for at in np.argsort(-gain, axis=None, kind="stable")[:num_classes]:
                    i, j = divmod(int(at), len(of_b))
                    found.append((-float(gain[i, j]), int(of_a[i]), int(of_b[j])))
        for loss, one, other in sorted(found):
            if -loss <= _LEAST_GAIN:
                return False
            if self._keeps_all_classes(count_UK, one, other):
                a, b = int(self.side_U[one]), int(self.side_U[other])
                self._move(one, b)
                self._move(other, a)
                return True
        return False

    def _keeps_all_classes(self, count_UK: _Floats, one: int, other: int) -> bool:
        there_K = count_UK[one] - count_UK[other]
        for unit, gone_K in ((one, there_K), (other, -there_K)):
            before_K = self._num_SK[self.side_U[unit]]
            if ((before_K > 0) & (before_K - gone_K < 0.5)).any():
                return False
        return True

    def _gains(self) -> _Floats:
        """Return what the chi-square loses by moving each unit to each side; -inf for what may not.

        Returns:
            float64 [U,S].
        """
        table = self._table
        from_E = self.side_U[table.unit_E]
        off_SK = self._num_SK - table.wanted_SK
        w_E, k_E = table.count_E, table.class_E
        leave_E = w_E * (w_E - 2 * off_SK[from_E, k_E]) * self._weight_SK[from_E, k_E]
        num_U = table.num_units
        leave_U = np.bincount(table.unit_E, weights=leave_E, minlength=num_U)
        is_last_E = (self._num_SK[from_E, k_E] - w_E < 0.5) & ~self._is_total_E
        stays_U = np.bincount(table.unit_E, weights=is_last_E, minlength=num_U) > 0
        gain_US = np.full((num_U, len(off_SK)), -np.inf)
        for side in range(len(off_SK)):
            enter_E = w_E * (w_E + 2 * off_SK[side, k_E]) * self._weight_SK[side, k_E]
            enter_U = np.bincount(table.unit_E, weights=enter_E, minlength=num_U)
            may_U = self._may_move_U & ~stays_U & (self.side_U != side)
            gain_US[may_U, side] = -(leave_U + enter_U)[may_U]
        return gain_US

    def _gain(self, unit: int, to: int) -> float:
        class_, count, start = *self._entries_of(unit), int(self.side_U[unit])
        off_SK = self._num_SK - self._table.wanted_SK
        leave = count * (count - 2 * off_SK[start, class_]) * self._weight_SK[start, class_]
        enter = count * (count + 2 * off_SK[to, class_]) * self._weight_SK[to, class_]
        return -float((leave + enter).sum())

    def _entries_of(self, unit: int) -> tuple[npt.NDArray[np.intp], _Floats]:
        low, high = np.searchsorted(self._table.unit_E, [unit, unit + 1])
        return self._table.class_E[low:high], self._table.count_E[low:high]

    def _move(self, unit: int, to: int) -> None:
        class_, count = self._entries_of(unit)
        self._num_SK[self.side_U[unit], class_] -= count
        self._num_SK[to, class_] += count
        self.side_U[unit] = to
