"""Which label belongs to which published row, also where the images were moved in between.

In: the uris of the labels; one by one, those of the rows. Out: the label of a row. Invariant: a
label is of one image and an image of one label; where several would do, that is an error with their
names, never a choice.
"""

from collections import defaultdict
from collections.abc import Iterable

from imgcls.config.choices import MatchBy
from imgcls.errors import ConfigError


class Matching:
    """Finds the label of a row by the whole uri, by its last folders and name, or by its name."""

    def __init__(self, labels: Iterable[str], match_by: MatchBy) -> None:
        self._by = match_by
        self._labels: defaultdict[str, list[str]] = defaultdict(list)
        for label in labels:
            self._labels[self._key(label)].append(label)
        self._row_of: dict[str, str] = {}  # by label: the uri of its row
        if match_by == "name":
            for name, alike in self._labels.items():
                if len(alike) > 1:
                    raise ConfigError(
                        f"--match-by name: {len(alike)} labels are of files called {name!r}, such "
                        f"as {alike[0]} and {alike[1]}; take --match-by suffix"
                    )

    def of(self, row: str) -> str | None:
        """Return the label of a row's uri, None for a row without one.

        Raises:
            ConfigError: several labels fit equally well, or this label has another row already.
        """
        candidates = self._labels.get(self._key(row))
        if not candidates:
            return None
        if self._by == "uri":
            return row
        shared = [_num_shared(row, label) for label in candidates]
        best = [label for label, n in zip(candidates, shared, strict=True) if n == max(shared)]
        if len(best) > 1:
            raise ConfigError(
                f"--match-by {self._by}: the labels of {best[0]} and {best[1]} fit {row} equally"
            )
        other = self._row_of.setdefault(best[0], row)
        if other != row:
            raise ConfigError(
                f"--match-by {self._by}: the label of {best[0]} fits {other} and {row}; measure "
                "one run with --run-id, or take labels with longer uris"
            )
        return best[0]

    def _key(self, uri: str) -> str:
        return uri if self._by == "uri" else uri.rpartition("/")[2]


def _num_shared(one: str, other: str) -> int:
    """Return how many segments two uris have in common at their ends."""
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    number = 0
    for a, b in pairs:
        if a != b:
            break
        number += 1
    return number


def refuse_no_match(labels: Iterable[str], row: str, match_by: MatchBy) -> None:
    """Refuse labels none of which has a row, and show one of each.

    Raises:
        ConfigError: always.
    """
    listed = list(labels)
    hint = "" if match_by == "name" else "; if they are the same files, --match-by suffix or name"
    raise ConfigError(
        f"none of the {len(listed)} labels has a row: a label is of {listed[0]!r}, a row of "
        f"{row!r}{hint}"
    )
