"""A folder tree of labelled images: DATA/<class>/... or DATA/{train,val,test}/<class>/...

In: the folder's URI. Out: one `LabelRow` per file, and what was left out. Invariant: a file in a
class folder is an image, whatever its name, unless its name alone says that some program left it
there.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imgcls.errors import SourceError
from imgcls.model.labels import enumerate_names
from imgcls.model.manifest import LabelRow
from imgcls.storage import objects
from imgcls.storage.objects import Skipped
from imgcls.storage.uri import is_local, split_uri

SPLITS = ("train", "val", "test")

# Left in folders by Windows, macOS and version control; never images.
_LITTER = frozenset({"Thumbs.db", "ehthumbs.db", "desktop.ini", ".DS_Store", ".gitkeep", ".keep"})
# A text about the data set is usual beside the class folders, where no image can be.
_DOCUMENT_SUFFIXES = (".txt", ".md", ".csv", ".json", ".jsonl", ".parquet", ".yaml", ".pdf")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tree:
    """The images of a folder tree, and how many listed names were no images, by reason."""

    rows: list[LabelRow]
    num_skipped: dict[str, int]


def read_tree(data: str) -> Tree:
    """List a folder tree.

    Raises:
        SourceError: missing or empty, a class folder without images, a file in no class folder, or
            split folders mixed with class folders.
    """
    root = split_uri(data)[2] if is_local(data) else data
    root = root if root.endswith("/") else f"{root}/"
    num_skipped: Counter[str] = Counter()
    uris, folders = [], _folders_on_disk(root)
    for entry in objects.list_entries(root):
        key = entry.uri[len(root) :]
        # Every folder that is heard of, also one that holds nothing but litter.
        folders.add(key.rpartition("/")[0])
        reason = entry.reason if isinstance(entry, Skipped) else _reason_to_skip(key)
        if reason:
            num_skipped[reason] += 1
        else:
            uris.append(entry.uri)
    if not uris:
        raise SourceError(f"there are no images under {root}: it is missing, or it is empty")
    for reason, count in num_skipped.items():
        _log.info("left out %d of %s: %s", count, root, reason)
    keys = [uri[len(root) :].split("/") for uri in uris]
    has_splits = _has_split_folders(keys, root)
    _refuse_no_class(keys, root, min_depth=3 if has_splits else 2)
    _refuse_empty_class(keys, folders, depth=2 if has_splits else 1, root=root)
    return Tree([_row(uri, uri[len(root) :], has_splits) for uri in uris], dict(num_skipped))


def _folders_on_disk(root: str) -> set[str]:
    """Return the folders one and two levels below a local root, less hidden ones.

    A store has no empty folders, a disk has, and a listing of objects does not show them.
    """
    if not is_local(root):
        return set()
    found = [path for pattern in ("*/", "*/*/") for path in Path(root).glob(pattern)]
    return {path.relative_to(root).as_posix() for path in found if not path.name.startswith(".")}


def _reason_to_skip(key: str) -> str:
    folder, _, name = key.rpartition("/")
    if name in _LITTER:
        return f"{name} is no image"
    if not folder and name.lower().endswith(_DOCUMENT_SUFFIXES):
        return f"{name} lies beside the class folders and is no image"
    return ""


def _row(uri: str, key: str, has_splits: bool) -> LabelRow:
    first, _, rest = key.partition("/")
    if has_splits:
        return LabelRow(uri=uri, key=key, label=rest.partition("/")[0], split=first)
    return LabelRow(uri=uri, key=key, label=first)


def _has_split_folders(keys: list[list[str]], root: str) -> bool:
    """Tell DATA/train/<class>/file from DATA/<class>/file, where a class may be called "train".

    train, val and test are splits where every file in them lies in a further folder.
    """
    tops = {key[0] for key in keys if len(key) > 1}
    split_tops = {
        top
        for top in tops & set(SPLITS)
        if all(len(key) > 2 for key in keys if len(key) > 1 and key[0] == top)
    }
    if split_tops and split_tops != tops:
        raise SourceError(
            f"{root} holds split folders ({enumerate_names(sorted(split_tops))}) beside others "
            f"({enumerate_names(sorted(tops - split_tops))}): move those away, or give a manifest"
        )
    return bool(split_tops)


def _refuse_no_class(keys: list[list[str]], root: str, min_depth: int) -> None:
    stray = ["/".join(key) for key in keys if len(key) < min_depth]
    if stray:
        raise SourceError(
            f"{len(stray)} file(s) under {root} lie in no class folder: {enumerate_names(stray)}; "
            "move each into the folder of its class, or away"
        )


def _refuse_empty_class(keys: list[list[str]], folders: set[str], *, depth: int, root: str) -> None:
    filled = {"/".join(key[:depth]) for key in keys}
    heard_of = {"/".join(f.split("/")[:depth]) for f in folders if f.count("/") >= depth - 1 and f}
    empty = sorted(heard_of - filled)
    if empty:
        raise SourceError(
            f"class folders without images under {root}: {enumerate_names(empty)}; "
            "fill or remove them"
        )
