"""How the sides of a data set are drawn: known ones first, the rest by hash, balanced if asked.

In: units with the keys and the classes of their images. Out: the side of each unit, and which
images to remember because a hash would put them elsewhere. Invariant: a unit of which a side is
known keeps it, whatever is added; what is remembered (`moved`) gives the same sides again without
the data of the earlier draw.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from imgcls.data.splits.balanced import balance
from imgcls.data.splits.hashed import assign_splits, check_fractions, side_by_hash
from imgcls.errors import BundleError
from imgcls.identity import HASHED, pseudonyms
from imgcls.storage.json_text import parse_object

SPLIT_MOVED = "split_moved.json"
_HASH_DIGITS = 16
# Of a unit that moved: enough of its images that some are still there later.
_NUM_REMEMBERED = 16
_SIDES = ("test", "val", "train")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """The sides of an earlier draw: by the hash of an image's key, and by the name of its group.

    `source` names it, for messages.
    """

    side_by_hash: Mapping[str, str] = field(default_factory=dict)
    side_by_group: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass
class Unit:
    """What stays together: a group, or one image."""

    group: str
    keys: list[str] = field(default_factory=list)
    images: Counter[str] = field(default_factory=Counter)
    """Number of images by class."""


@dataclass(frozen=True)
class Draw:
    """What was asked for.

    Args:
        val_fraction: Share to draw for validation, in [0, 1).
        test_fraction: Share to draw for testing, in [0, 1).
        seed: Another seed, another draw.
        known: Gives the sides of an earlier draw; asked only where sides are drawn.
        is_balanced: Units without a known side move until every side holds its share.
    """

    val_fraction: float
    test_fraction: float
    seed: int
    known: Callable[[], Known | None] = Known
    is_balanced: bool = False

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on, see `check_fractions`."""
        check_fractions(self.val_fraction, self.test_fraction)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each side."""
        train_fraction = 1 - self.val_fraction - self.test_fraction
        return {"test": self.test_fraction, "val": self.val_fraction, "train": train_fraction}

    def sides(self, units: Mapping[str, Unit]) -> dict[str, str]:
        """Return the side of each unit.

        Raises:
            SourceError: a class with fewer units than sides, see `assign_splits`.
        """
        earlier = self.known() or Known()
        known = _known_sides(units, earlier, {s for s, share in self.shares.items() if share > 0})
        split = assign_splits(
            {name: frozenset(unit.images) for name, unit in units.items()},
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
            known=known,
        )
        if known:
            _log.info(
                "%d of %d groups or images keep their side of %s",
                sum(split[name] == side for name, side in known.items()), len(units),
                earlier.source,
            )  # fmt: skip
        if not self.is_balanced:
            return split
        images = {name: unit.images or Counter([""]) for name, unit in units.items()}
        return balance(split, images, self.shares, fixed=known)

    def moved(self, units: Mapping[str, Unit], split: Mapping[str, str]) -> dict[str, str]:
        """Return the sides that no hash gives, by the hashes of the keys of some images."""
        return {
            hash_of(key): split[name]
            for name, unit in units.items()
            if split[name] != side_by_hash(self.seed, name, self.val_fraction, self.test_fraction)
            for key in sorted(unit.keys)[:_NUM_REMEMBERED]
        }


def _known_sides(
    units: Mapping[str, Unit], known: Known, allowed: Collection[str]
) -> dict[str, str]:
    """Return the side of each unit that has one of these sides already."""
    sides, num_torn = dict[str, str](), 0
    # A group is on file by its hash, or by its name where an earlier version wrote it. Where only
    # its number is, nothing but its images tells its side.
    has_hashes = any(group.startswith(HASHED) for group in known.side_by_group)
    named = pseudonyms(unit.group for unit in units.values()) if has_hashes else {}
    named = {group: name for group, name in named.items() if name.startswith(HASHED)}
    for name, unit in units.items():
        of_images = (known.side_by_hash.get(hash_of(key), "") for key in unit.keys)
        found = Counter(side for side in of_images if side in allowed)
        of_group = known.side_by_group.get(unit.group) or known.side_by_group.get(
            named.get(unit.group, ""), ""
        )
        if not found and of_group in allowed:
            found[of_group] += 1
        if found:
            num_torn += len(found) > 1
            sides[name] = max(_SIDES, key=found.__getitem__)
    if num_torn:
        _log.warning(
            "%d groups lay on several sides of %s: each goes where most of its images were",
            num_torn, known.source,
        )  # fmt: skip
    return sides


def write_moved(moved: Mapping[str, str]) -> bytes:
    """Return a bundle's file of the sides that no hash gives."""
    return json.dumps({"side_by_hash_of_key": dict(sorted(moved.items()))}).encode()


def read_moved(attachments: Mapping[str, bytes]) -> Known | None:
    """Return the sides that a bundle remembers; None of one that was split by hash alone.

    Raises:
        BundleError: its file is not one of ours.
    """
    if SPLIT_MOVED not in attachments:
        return None
    facts = parse_object(attachments[SPLIT_MOVED], SPLIT_MOVED, BundleError)
    sides = facts.get("side_by_hash_of_key")
    if not isinstance(sides, dict) or not set(sides.values()) <= set(_SIDES):
        raise BundleError(f"{SPLIT_MOVED} does not say which images are on which side")
    return Known(sides, source="the training")


def hash_of(key: str) -> str:
    """Return the hash by which an image's key is remembered."""
    # surrogatepass: JSON can spell a key that is not valid Unicode text.
    data = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=_HASH_DIGITS // 2).hexdigest()


def describe_shares(split_of_images: Iterable[str], asked: Mapping[str, float]) -> tuple[str, bool]:
    """Return in words which shares were reached, and whether one misses by more than a tenth."""
    count = Counter(split_of_images)
    total = count.total()
    parts = [
        f"{side} {count[side] / total:.1%} (asked {asked[side]:.1%})" for side in reversed(_SIDES)
    ]
    misses = any(abs(count[side] - asked[side] * total) > 0.1 * asked[side] * total + 1
                 for side in ("test", "val"))  # fmt: skip
    return f"shares of the images: {', '.join(parts)}", misses
