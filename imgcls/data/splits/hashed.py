"""Which images train, which validate, which test: a hash decides.

In: units (an image's key, or its group) with their classes. Out: unit -> split.
Invariant: a unit's side depends on (seed, its name) alone, so a growing data set keeps its sides.
One exception: where hashing leaves a class none on a side, the unit nearest to that side's interval
is lent to it. When images are added, lent units may return or be exchanged (at most one per class
and side); no other unit moves.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from imgcls.data.class_names import enumerate_names
from imgcls.errors import ConfigError, SourceError

_HASH_BYTES = 8


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        ConfigError: a share outside [0, 1), or both together 1 or more.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not (math.isfinite(fraction) and 0 <= fraction < 1):
            raise ConfigError(f"{name} is {fraction}: it must be at least 0 and below 1")
    if val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to "
            "train on: together they must be below 1"
        )


def unit_position(seed: int, unit: str) -> float:
    """Hash (seed, unit) to a number in [0, 1), uniformly."""
    # surrogatepass: JSON can spell a key that is not valid Unicode text.
    name = f"{seed}|{unit}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(name, digest_size=_HASH_BYTES).digest()
    # 53 bits: what a float holds exactly, so that the result never rounds up to 1.
    return (int.from_bytes(digest) >> 11) / 2**53


def assign_splits(
    classes_by_unit: Mapping[str, frozenset[str]],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign each unit to "train", "val" or "test".

    [0, test_fraction) is test, the next val_fraction is val, the rest is train. Every class gets at
    least one unit on each side with a positive share.

    Args:
        classes_by_unit: For each image key or group, the classes of its images.
        val_fraction: Expected share of the units in val; 0 for none.
        test_fraction: Expected share of the units in test; 0 for none.
        seed: Another seed, another split.
        known: Units that have a side already; one is lent only where no other can be.

    Raises:
        SourceError: a class with fewer units than sides, or whose units cannot be lent because
            another class of theirs would lose its only one.
    """
    bounds = {"test": (0.0, test_fraction), "val": (test_fraction, test_fraction + val_fraction)}
    bounds["train"] = (test_fraction + val_fraction, 1.0)
    sides = [side for side in ("test", "val", "train") if bounds[side][0] < bounds[side][1]]
    units_by_class = _group_by_class(classes_by_unit)
    _refuse_small_classes(units_by_class, len(sides))
    position = {unit: unit_position(seed, unit) for unit in classes_by_unit}
    known = known or {}
    split = {
        unit: known.get(unit) or _side_at(at, val_fraction, test_fraction)
        for unit, at in position.items()
    }
    count = Counter((name, split[u]) for u, names in classes_by_unit.items() for name in names)
    for name in sorted(units_by_class):
        for side in sides:
            if count[name, side]:
                continue
            low, high = bounds[side]
            lent = _nearest_that_can_go(
                sorted(
                    units_by_class[name],
                    key=lambda unit: (
                        unit in known,
                        max(low - position[unit], position[unit] - high),
                        unit,
                    ),
                ),
                split,
                count,
                classes_by_unit,
            )
            if not lent:
                raise SourceError(
                    f"class {name!r} gets no image for {side}: each of its groups is the only one "
                    "of some class on its side; add groups, or give a manifest with a split column"
                )
            for other in classes_by_unit[lent]:
                count[other, split[lent]] -= 1
                count[other, side] += 1
            split[lent] = side
    return split


def side_by_hash(seed: int, unit: str, val_fraction: float, test_fraction: float) -> str:
    """Return the side of a unit by its hash alone."""
    return _side_at(unit_position(seed, unit), val_fraction, test_fraction)


def _side_at(position: float, val_fraction: float, test_fraction: float) -> str:
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def _group_by_class(classes_by_unit: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    units_by_class: defaultdict[str, list[str]] = defaultdict(list)
    for unit, names in classes_by_unit.items():
        for name in names:
            units_by_class[name].append(unit)
    return dict(units_by_class)


def _refuse_small_classes(units_by_class: Mapping[str, list[str]], num_sides: int) -> None:
    small = sorted(name for name, units in units_by_class.items() if len(units) < num_sides)
    if small:
        smallest = min(len(units_by_class[name]) for name in small)
        raise SourceError(
            f"too few images (or groups) to have one in each of {num_sides} splits: "
            f"{enumerate_names(small)}, the smallest with {smallest}; add images, leave the class "
            "out, or give a manifest with a split column"
        )


def _nearest_that_can_go(
    units: list[str],
    split: Mapping[str, str],
    count: Mapping[tuple[str, str], int],
    classes_by_unit: Mapping[str, frozenset[str]],
) -> str:
    """Return the first unit that leaves none of its classes without its side, or "" for none."""
    return next(
        (u for u in units if all(count[name, split[u]] > 1 for name in classes_by_unit[u])), ""
    )
