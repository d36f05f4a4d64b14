"""What the columns of somebody's table are called, and where its relative names begin.

In: the flags --columns and --root. Out: a TableShape; words for a column that is missing.
Invariant: a column under another name is read only because somebody said so; a guess is an advice.
"""

import csv
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from imgcls.config.source_options import ListingOptions
from imgcls.errors import ConfigError

OURS = ("uri", "label", "split", "group", "weight")
# What others call the same; a guess, for messages alone.
_USUAL = {
    "uri": (
        *("file", "filename", "file name", "path", "filepath", "file path", "image", "image path"),
        *("img", "key", "url", "name", "datei", "dateiname", "pfad", "bild", "picture", "fichier"),
    ),
    "label": (
        *("class", "class name", "finding", "findings", "diagnosis", "category", "target"),
        *("result", "befund", "klasse", "defect", "fehler", "verdict", "labels", "urteil"),
    ),
}


@dataclass(frozen=True, slots=True)
class TableShape:
    """How a manifest is laid out.

    Args:
        names: What its columns are called, by our name for them; "" for one that is not to be read.
        root: Where relative names begin; "" for the folder of the manifest.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    root: str = ""

    @staticmethod
    def of(options: ListingOptions) -> "TableShape":
        """Read the flags.

        Raises:
            ConfigError: --columns names none of ours, or one twice.
        """
        names = dict[str, str]()
        for part in next(csv.reader([options.columns]), []):
            ours, equals, theirs = part.strip().partition("=")
            if not equals or ours not in OURS or ours in names:
                raise ConfigError(
                    f"--columns {options.columns}: write uri=File,label=Finding, each of "
                    f"{', '.join(OURS)} at most once"
                )
            if theirs.startswith(("dicom:", "folder:", "name:")):
                raise ConfigError(f"--columns {part}: that is not a column; give --{ours} {theirs}")
            names[ours] = theirs
        return TableShape(names, options.root)


def find_column(wanted: str, given: Sequence[str]) -> list[str]:
    """Return the columns that are called so: this one alone, or those in another spelling."""
    if wanted in given:
        return [wanted]
    return [name for name in given if _plain(name) == _plain(wanted)]


def advise(missing: Iterable[str], given: Sequence[str]) -> str:
    """Return a sentence that says how to name columns that are called otherwise, or ""."""
    guessed = list[str]()
    for column in missing:
        words = _USUAL.get(column, (column,))
        by_word = {_plain(name): name for name in given}
        found = next((by_word[word] for word in words if word in by_word), "")
        if not found:
            near = difflib.get_close_matches(column, list(by_word), n=1)
            found = by_word[near[0]] if near else ""
        guessed.append(f"{column}={found or 'NAME'}")
    return f"If it is called otherwise, say so: --columns {','.join(guessed)}" if guessed else ""


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()
