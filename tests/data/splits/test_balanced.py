import random
from collections import Counter

import pytest

from imgcls.data.splits.balanced import balance
from imgcls.data.splits.hashed import unit_position

_SHARES = {"test": 0.15, "val": 0.15, "train": 0.7}


def _by_hash(units: dict[str, Counter[str]], seed: int) -> dict[str, str]:
    positions = {unit: unit_position(seed, unit) for unit in units}
    return {u: "test" if p < 0.15 else "val" if p < 0.3 else "train" for u, p in positions.items()}


def _groups(count: int, seed: int, num_classes: int = 2) -> dict[str, Counter[str]]:
    draw = random.Random(seed)
    return {
        f"g{i}": Counter({f"c{draw.randrange(num_classes)}": draw.randint(1, 12)})
        for i in range(count)
    }


def _misses(split: dict[str, str], units: dict[str, Counter[str]]) -> dict[str, float]:
    images = Counter[str]()
    for unit, side in split.items():
        images[side] += units[unit].total()
    return {side: images[side] / images.total() - share for side, share in _SHARES.items()}


@pytest.mark.parametrize("seed", range(15))
def test_twenty_groups_hold_the_share_that_was_asked_for(seed: int) -> None:
    units = _groups(20, seed)
    split = balance(_by_hash(units, seed), units, _SHARES)
    assert max(abs(miss) for miss in _misses(split, units).values()) < 0.03


def test_the_hash_alone_misses_it() -> None:
    worst = max(
        abs(miss)
        for seed in range(15)
        for miss in _misses(_by_hash(_groups(20, seed), seed), _groups(20, seed)).values()
    )
    assert worst > 0.1


def test_every_class_keeps_its_share_too() -> None:
    units = _groups(120, 3, num_classes=4)
    split = balance(_by_hash(units, 3), units, _SHARES)
    for name in ("c0", "c1", "c2", "c3"):
        images = Counter[str]()
        for unit, side in split.items():
            images[side] += units[unit][name]
        assert images["test"] / images.total() == pytest.approx(0.15, abs=0.04)


def test_fixed_units_stay_and_the_order_of_the_input_says_nothing() -> None:
    units = _groups(30, 1)
    start = _by_hash(units, 1)
    fixed = {unit for unit in units if start[unit] == "train"} | {"g3"}
    split = balance(start, units, _SHARES, fixed)
    assert all(split[unit] == start[unit] for unit in fixed)
    turned = dict(reversed(list(units.items())))
    assert balance(dict(reversed(list(start.items()))), turned, _SHARES, fixed) == split


def test_many_units_move_hardly() -> None:
    units = {f"i{i}": Counter({f"c{i % 2}": 1}) for i in range(20_000)}
    start = _by_hash(units, 0)
    split = balance(start, units, _SHARES)
    assert sum(split[unit] != start[unit] for unit in units) < 200


@pytest.mark.parametrize("seed", range(10))
def test_no_class_loses_its_last_unit_on_a_side(seed: int) -> None:
    units = _groups(60, seed, num_classes=6)
    start = _by_hash(units, seed)
    split = balance(start, units, _SHARES)
    before = {(name, start[unit]) for unit, images in units.items() for name in images}
    after = {(name, split[unit]) for unit, images in units.items() for name in images}
    assert before <= after
