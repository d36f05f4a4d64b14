from collections import Counter

import pytest

from imgcls.data.splits.folds import grouped_folds
from imgcls.errors import SourceError


def test_groups_stay_whole_and_folds_are_alike() -> None:
    groups = [f"p{i % 23}" for i in range(299)]
    labels = [(int(i % 3 == 0),) for i in range(299)]
    folds = grouped_folds(groups, labels, 5, seed=0)
    assert all(
        len({f for f, g in zip(folds, groups, strict=True) if g == name}) == 1
        for name in set(groups)
    )
    sizes = Counter(folds)
    # 23 groups of 13: four or five a fold.
    assert set(sizes.values()) == {52, 65}
    ill = Counter(f for f, label in zip(folds, labels, strict=True) if label == (1,))
    assert min(ill.values()) >= 15


def test_folds_are_those_of_the_names_in_whatever_order() -> None:
    groups = [f"p{i}" for i in range(40)]
    labels = [(i % 2,) for i in range(40)]
    folds = dict(zip(groups, grouped_folds(groups, labels, 4, 1), strict=True))
    backwards = grouped_folds(groups[::-1], labels[::-1], 4, 1)
    assert dict(zip(groups[::-1], backwards, strict=True)) == folds
    assert dict(zip(groups, grouped_folds(groups, labels, 4, 2), strict=True)) != folds


def test_images_without_a_label_are_spread_too() -> None:
    sizes = Counter(grouped_folds([f"i{i}" for i in range(50)], [()] * 50, 5, 0))
    assert max(sizes.values()) - min(sizes.values()) <= 2


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(SourceError, match="5 folds need as many groups, there are 3"):
        grouped_folds(["a", "b", "c", "a"], [(0,)] * 4, 5, 0)
