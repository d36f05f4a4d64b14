"""Folds for cross-validation: a unit (a patient, a lot) lies in one fold, whole.

In: the group and the labels of each image. Out: a fold for each. Invariant: the same images, seed
and number of folds give the same folds, in whatever order; folds hold alike many images of each
class, as far as whole groups allow.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from imgcls.data.splits.balanced import balance
from imgcls.data.splits.hashed import unit_position
from imgcls.errors import SourceError


def grouped_folds(
    groups: Sequence[str], labels: Sequence[Collection[int]], num_folds: int, seed: int
) -> list[int]:
    """Return the fold of each image, 0 to num_folds - 1.

    Args:
        groups: What must stay together: a group's name, or of an image without one its key.
        labels: The labels of each image; none, one or several.
        num_folds: At least 2.
        seed: Another seed, other folds.

    Raises:
        SourceError: fewer groups than folds.
    """
    images_by_unit: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, of_image in zip(groups, labels, strict=True):
        images_by_unit[group].update(map(str, of_image) if of_image else [""])
    if len(images_by_unit) < num_folds:
        raise SourceError(
            f"{num_folds} folds need as many groups, there are {len(images_by_unit)}: "
            "ask for fewer folds, or add patients or parts"
        )
    names = [str(fold) for fold in range(num_folds)]
    by_hash = {
        unit: names[int(unit_position(seed, f"fold {unit}") * num_folds)] for unit in images_by_unit
    }
    balanced = balance(by_hash, images_by_unit, dict.fromkeys(names, 1 / num_folds))
    return [int(balanced[group]) for group in groups]
