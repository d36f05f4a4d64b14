"""Class names and the integers that stand for them.

In: names as they appear in folders or manifests. Out: label <-> class name, both ways.
Invariant: the order of `names` is the order of the model's outputs, and it travels in the bundle.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from imgcls.errors import ConfigError

_NUM_NAMES_IN_MESSAGE = 10
_UNSEEN = ("Cf", "Cc")  # categories of Unicode: formats, such as a zero-width space, and controls


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model: `names[label]` is the class name of output `label`."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _refuse_unusable(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _label_by_name(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names)}

    def label_of(self, name: str) -> int:
        """Return the label of a class name.

        Raises:
            ConfigError: no such class.
        """
        label = self._label_by_name.get(name)
        if label is None:
            raise ConfigError(
                f"unknown class {name!r}; the classes are {enumerate_names(self.names)}"
            )
        return label


def from_labels(labels: Iterable[str]) -> ClassNames:
    """Collect the distinct names, in the order of their code points ("10" comes before "2").

    Raises:
        ConfigError: no name, one only, an empty name, or names that differ only in case.
    """
    return ClassNames(tuple(sorted(set(labels))))


def refuse_lookalikes(names: Iterable[str], data: str) -> None:
    """Refuse names of classes that nobody could tell apart, or that begin or end with a blank.

    Raises:
        ConfigError: names them, so that one sees the difference.
    """
    alike = defaultdict(list)
    for name in sorted(set(names)):
        alike[_looks(name)].append(name)
    for variants in alike.values():
        if len(variants) > 1:
            raise ConfigError(
                f"{data} has class names that look alike: {', '.join(map(ascii, variants))}. They "
                "differ only in case, in blanks or in characters that are not seen: rename them to "
                "one spelling"
            )
        if variants[0] != variants[0].strip() and variants[0].strip():
            raise ConfigError(
                f"{data} has a class name with surrounding blanks: {variants[0]!r}; remove them"
            )


def describe_unknown(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Return "it holds x; it knows y", with what is not seen of a name where names look alike."""
    names, known = list(unknown), list(known)
    meant = {_looks(name): name for name in known}
    alike = [(name, meant[_looks(name)]) for name in names if _looks(name) in meant]
    hint = f"; {alike[0][0]!a} only looks like {alike[0][1]!a}" if alike else ""
    return f"{enumerate_names(names)}; it knows {enumerate_names(known)}{hint}"


def _looks(name: str) -> str:
    """Return what is seen of a name: composed, without case, marks of width zero and blanks."""
    composed = unicodedata.normalize("NFC", name)
    seen = "".join(c for c in composed if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    return unicodedata.normalize("NFC", " ".join(seen.split()).casefold())


def enumerate_names(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many there are in total."""
    listed = list(names)
    shown = ", ".join(repr(name) for name in listed[:_NUM_NAMES_IN_MESSAGE])
    more = len(listed) - _NUM_NAMES_IN_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown


def _refuse_unusable(names: tuple[str, ...]) -> None:
    if not names:
        raise ConfigError("there are no classes: every image needs a label")
    if len(names) == 1:
        raise ConfigError(
            f"there is one class only, {names[0]!r}: a classifier needs two or more; "
            "give images of another class, or of 'other'"
        )
    if any(not name.strip() for name in names):
        raise ConfigError("a class name is empty: name every class")
    spellings = defaultdict(set)
    for name in names:
        spellings[name.strip().casefold()].add(name)
    for variants in spellings.values():
        if len(variants) > 1:
            raise ConfigError(
                f"class names differ only in case or in surrounding blanks: "
                f"{enumerate_names(sorted(variants))}; rename them to one spelling"
            )
    assert len(set(names)) == len(names), "class names repeat"
