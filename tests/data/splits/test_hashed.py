from collections import Counter

import pytest

from imgcls.data.splits.hashed import assign_splits, check_fractions, unit_position
from imgcls.errors import ConfigError, SourceError


def _assign(classes_by_unit: dict[str, frozenset[str]], seed: int = 0) -> dict[str, str]:
    return assign_splits(classes_by_unit, val_fraction=0.15, test_fraction=0.15, seed=seed)


def _units(name: str, count: int) -> dict[str, frozenset[str]]:
    return {f"{name}/{i}": frozenset([name]) for i in range(count)}


def test_shares_are_those_asked_for() -> None:
    count = Counter(_assign(_units("a", 10_000)).values())
    assert count["test"] == pytest.approx(1500, abs=150)
    assert count["val"] == pytest.approx(1500, abs=150)


def test_other_seed_gives_another_split() -> None:
    assert _assign(_units("a", 100), seed=0) != _assign(_units("a", 100), seed=1)


def test_no_unit_moves_when_a_class_of_usual_size_grows() -> None:
    before = _assign(_units("a", 100) | _units("b", 60))
    after = _assign(_units("a", 300) | _units("b", 61) | _units("c", 50))
    assert all(after[unit] == side for unit, side in before.items())


@pytest.mark.parametrize("seed", range(40))
def test_small_class_has_every_side_and_moves_lent_units_only(seed: int) -> None:
    previous: dict[str, str] = {}
    for count in range(3, 30):
        split = _assign(_units("a", count), seed)
        assert set(split.values()) == {"train", "val", "test"}
        moved = [unit for unit, side in previous.items() if split[unit] != side]
        by_hash = {u: _side(unit_position(seed, u)) for u in split}
        # Whatever moved was lent before, or is lent now.
        assert all(previous[u] != by_hash[u] or split[u] != by_hash[u] for u in moved)
        assert sum(split[u] != by_hash[u] for u in split) <= 2
        previous = split


def _side(position: float) -> str:
    return "test" if position < 0.15 else "val" if position < 0.30 else "train"


def test_groups_of_several_classes_leave_no_class_without_a_side() -> None:
    for seed in range(30):
        units = {f"p{i}": frozenset(["ill", "well"]) for i in range(4)}
        units |= {f"q{i}": frozenset(["well"]) for i in range(6)}
        split = _assign(units, seed)
        for name in ("ill", "well"):
            sides = {split[unit] for unit, names in units.items() if name in names}
            assert sides == {"train", "val", "test"}


def test_groups_that_cannot_serve_every_class_are_refused_by_class() -> None:
    # Three classes, each on two of three groups: no two sides can hold every class.
    units = {"g1": frozenset("ab"), "g2": frozenset("bc"), "g3": frozenset("ca")}
    for seed in range(10):
        with pytest.raises(SourceError, match=r"class '[abc]' gets no image"):
            assign_splits(units, val_fraction=0.5, test_fraction=0.0, seed=seed)


def test_class_with_fewer_units_than_sides_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match=r"each of 3 splits: 'b', the smallest with 2"):
        _assign(_units("a", 5) | _units("b", 2))


def test_a_share_of_zero_needs_and_gets_none() -> None:
    split = assign_splits(_units("a", 2), val_fraction=0.5, test_fraction=0.0, seed=0)
    assert sorted(split.values()) == ["train", "val"]
    everything = assign_splits(_units("a", 1), val_fraction=0.0, test_fraction=0.0, seed=0)
    assert set(everything.values()) == {"train"}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (1.0, 0.0), (0.5, 0.5), (float("nan"), 0)])
def test_fractions_out_of_range_are_refused(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        check_fractions(val, test)
