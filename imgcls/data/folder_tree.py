"""A folder tree of labelled images, in one of the layouts that people use.

    DATA/<class>/...             DATA/<class>/<group>/...
    DATA/<split>/<class>/...     DATA/<class>/<split>/...

In: the folder's URI, or that of a container whose folders are read alike. Out: one `LabelRow` per
file or member, and what was left out. Invariant: a file in a
class folder is an image, whatever its name, unless its name alone says that some program left it
there; a folder that is not a class does not become one in silence.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from pathlib import Path

from imgcls.config.selection import LeftOutByFlags, Selection
from imgcls.data.class_names import enumerate_names
from imgcls.data.folder_names import SPLITS, is_litter_folder, litter, refuse_own, split_of
from imgcls.data.label_manifest import LabelRow
from imgcls.data.packed.members import PackedOptions, read_members
from imgcls.errors import AccessDeniedError, ConfigError, SourceError
from imgcls.sources.containers import (
    ContainerOptions,
    Entry,
    as_container,
    list_members,
    open_containers,
)
from imgcls.sources.members import Member
from imgcls.storage import objects
from imgcls.storage.objects import ObjectInfo, Skipped
from imgcls.storage.uri import is_local, split_uri

_WAY_OUT = "write DATA/train/<class>/..., or give a manifest with a column split"

_log = logging.getLogger(__name__)


class Layout(Enum):
    """Where a tree's splits are."""

    NO_SPLITS = auto()
    SPLITS_ABOVE_CLASSES = auto()
    SPLITS_BELOW_CLASSES = auto()


@dataclass(frozen=True)
class Tree:
    """The images of a folder tree, and how many listed names were no images, by reason."""

    rows: list[LabelRow]
    num_skipped: dict[str, int]
    has_own_labels: bool = False
    """Whether some images in containers bring their labels with them."""


def read_tree(
    data: str,
    *,
    group_by_folder: bool = False,
    has_classes: bool = True,
    selection: Selection | None = None,
    containers: ContainerOptions | None = None,
    packed: PackedOptions | None = None,
) -> Tree:
    """List a folder tree, or a container.

    Args:
        data: Its URI.
        group_by_folder: Take the first folder below a class, such as a patient, as the group; an
            image right in its class has none.
        has_classes: Its folders are classes; otherwise they mean nothing here, labels come from
            elsewhere, and so do splits.
        selection: Which of the images are meant; by default all.
        containers: How containers in it are opened.
        packed: How labels in them are read.

    Raises:
        AccessDeniedError: a folder may not be listed: a part of a class, or all of it.
        SourceError: missing or empty, a class folder without images, a file in no class folder, or
            split folders that are mixed with others or cannot be told apart; or a container that
            cannot be listed whole.
        ConfigError: images may have several labels, and folders are the classes.
    """
    packed = packed or PackedOptions()
    root, listed = _list_place(
        data, selection or Selection(), containers or ContainerOptions(), packed
    )
    num_skipped, left_out = listed.num_skipped, listed.left_out
    for line in left_out.lines():
        _log.info("%s", line)
    if not listed.rows and not listed.labelled:
        why = "; ".join(left_out.lines()) or "it is missing, or it is empty"
        raise SourceError(f"there are no images under {root}: {why}")
    for reason, count in num_skipped.items():
        _log.info("left out %d of %s: %s", count, root, reason)
    if not has_classes:
        return Tree([*listed.rows, *listed.labelled], dict(num_skipped))
    if packed.multi_label and listed.rows:
        raise ConfigError(
            f"several labels per image need a manifest or --label, {data} is a folder"
        )
    rows = _with_classes(listed, root, group_by_folder=group_by_folder) if listed.rows else []
    return Tree([*rows, *listed.labelled], dict(num_skipped), bool(listed.labelled))


@dataclass
class _Listed:
    """What a listing of a tree gave: images, folders that are heard of, and what is left out."""

    folders: set[str]
    rows: list[LabelRow] = field(default_factory=list)
    """Of folders that are classes; without a label yet."""
    labelled: list[LabelRow] = field(default_factory=list)
    """Those of containers that bring their own labels."""
    num_skipped: Counter[str] = field(default_factory=Counter)
    left_out: LeftOutByFlags = field(default_factory=LeftOutByFlags)


def _list_place(
    data: str, selection: Selection, containers: ContainerOptions, packed: PackedOptions
) -> tuple[str, _Listed]:
    """Return the root of a folder or a container, with a "/" at its end, and what is in it."""
    root = split_uri(data)[2] if is_local(data) else data
    container = as_container(root, containers)
    if container is not None:
        found, root = _Listed(set()), f"{root.rpartition('/')[0]}/"
        entries: Iterator[Entry] = list_members(container, containers)
    else:
        root = root if root.endswith("/") else f"{root}/"
        found = _Listed(_folders_on_disk(root))
        entries = open_containers(objects.list_entries(root), containers)
    members = list[Member]()
    for entry in entries:
        if isinstance(entry, Member):
            members.append(entry)
        else:
            _add(found, entry, root, selection)
    if members:
        more = read_members(members, root, packed, selection, is_single=container is not None)
        for row, is_labelled in zip(more.rows, more.are_labelled, strict=True):
            (found.labelled if is_labelled else found.rows).append(row)
        found.num_skipped += more.num_skipped
        found.left_out.merge(more.left_out)
        found.folders |= {uri_folder(each.container.uri, root) for each in members}
    return (root if container is None else data), found


def uri_folder(uri: str, root: str) -> str:
    """Return the folder of an object below a root, "" for none."""
    return uri.removeprefix(root).rpartition("/")[0]


def _add(found: _Listed, entry: ObjectInfo | Skipped, root: str, selection: Selection) -> None:
    key = entry.uri[len(root) :]
    refuse_own(key, root)
    if isinstance(entry, Skipped) and selection.leaves_out_folder(key):
        return
    reason = entry.reason if isinstance(entry, Skipped) else litter(key)
    if isinstance(entry, Skipped) and entry.unseen == "refused" and not litter(key):
        raise AccessDeniedError(f"{entry.uri}: {entry.reason}; open it, or move it away")
    # Every folder that is heard of, also one that holds nothing but litter.
    above = key.rpartition("/")[0]
    if not any(map(is_litter_folder, above.split("/"))):
        found.folders.add(above)
    flag = "" if reason else selection.left_out_by(key, _changed_at(entry))
    if reason:
        found.num_skipped[reason] += 1
    elif flag:
        found.left_out.add(flag, entry.uri)
    else:
        found.rows.append(LabelRow(entry.uri, key, ""))


def _with_classes(listed: _Listed, root: str, *, group_by_folder: bool) -> list[LabelRow]:
    """Return the rows with what their folders say."""
    keys = [row.key.split("/") for row in listed.rows]
    layout = _find_layout(keys, root)
    depth = 1 if layout is Layout.NO_SPLITS else 2
    _refuse_no_class(keys, root, min_depth=depth + 1)
    if not (listed.left_out.counts or listed.labelled):
        _refuse_empty_class(keys, listed.folders, depth=depth, root=root)
    rows = [_row(row, layout) for row in listed.rows]
    below = [_folder_below(row.key, depth) for row in rows]
    if group_by_folder:
        pairs = zip(rows, below, strict=True)
        return [replace(row, group=folder) for row, folder in pairs]
    _tell_of_folders(rows, below, root)
    return rows


def _changed_at(entry: ObjectInfo | Skipped) -> datetime | None:
    return entry.last_modified if isinstance(entry, ObjectInfo) else None


def _folders_on_disk(root: str) -> set[str]:
    """Return the folders one and two levels below a local root, less those of programs.

    A store has no empty folders, a disk has, and a listing of objects does not show them.
    """
    if not is_local(root):
        return set()
    found = [path for pattern in ("*/", "*/*/") for path in Path(root).glob(pattern)]
    below = [path.relative_to(root) for path in found]
    return {path.as_posix() for path in below if not any(map(is_litter_folder, path.parts))}


def _row(row: LabelRow, layout: Layout) -> LabelRow:
    first, _, rest = row.key.partition("/")
    second = rest.partition("/")[0]
    match layout:
        case Layout.SPLITS_ABOVE_CLASSES:
            return replace(row, label=second, split=split_of(first) or "")
        case Layout.SPLITS_BELOW_CLASSES:
            return replace(row, label=first, split=split_of(second) or "")
        case Layout.NO_SPLITS:
            return replace(row, label=first)


def _find_layout(keys: list[list[str]], root: str) -> Layout:
    """Tell DATA/train/<class>/file from DATA/<class>/file, where a class may be called "train".

    A name such as train, Testing or valid is a split where every file in it lies in a further
    folder, and a class where files lie in it, beside other classes.
    """
    tops = {key[0] for key in keys if len(key) > 1}
    named = {top for top in tops if split_of(top) is not None}
    flat = {key[0] for key in keys if len(key) == 2}
    split_tops = named - flat
    if named == tops == flat:
        raise SourceError(
            f"{root} holds images right in {enumerate_names(sorted(flat))}, which are "
            f"named like splits, not like classes: {_WAY_OUT}"
        )
    if split_tops and split_tops != tops:
        raise SourceError(
            f"{root} holds split folders ({enumerate_names(sorted(split_tops))}) beside others "
            f"({enumerate_names(sorted(tops - split_tops))}): move those away, or give a manifest"
        )
    if split_tops:
        _refuse_unclear(split_tops, root)
        return Layout.SPLITS_ABOVE_CLASSES
    return Layout.SPLITS_BELOW_CLASSES if _has_splits_below(keys, root) else Layout.NO_SPLITS


def _has_splits_below(keys: list[list[str]], root: str) -> bool:
    """Tell whether the folders in all classes are splits.

    Raises:
        SourceError: those of some classes are, and of others not.
    """
    below = defaultdict[str, set[str]](set)
    for key in keys:
        below[key[0]].add(key[1] if len(key) > 2 else "")
    with_splits = {
        top for top, names in below.items() if all(split_of(name) is not None for name in names)
    }
    if not with_splits:
        return False
    if with_splits != set(below):
        raise SourceError(
            f"{root} holds splits in some classes ({enumerate_names(sorted(with_splits))}) and "
            f"not in others ({enumerate_names(sorted(set(below) - with_splits))}): {_WAY_OUT}"
        )
    _refuse_unclear(set().union(*below.values()), root)
    return True


def _refuse_unclear(names: set[str], root: str) -> None:
    """Refuse names of which nobody knows which split they are, or two of one split."""
    by_split = defaultdict[str, list[str]](list)
    for name in sorted(names):
        by_split[split_of(name) or ""].append(name)
    if by_split[""]:
        raise SourceError(
            f"{root}: {by_split[''][0]} is val to some and test to others: rename it to the one"
        )
    for split, called in by_split.items():
        if len(called) > 1:
            raise SourceError(
                f"{root}: the folders {enumerate_names(called)} all read as {split}: put them "
                f"together, or rename them to {', '.join(SPLITS)}"
            )


def _folder_below(key: str, depth: int) -> str:
    """Return the first folder below a class, "" for a file right in it."""
    parts = key.split("/")
    return parts[depth] if len(parts) > depth + 1 else ""


def _tell_of_folders(rows: list[LabelRow], below: list[str], root: str) -> None:
    """Say that folders below classes are not groups, where they may well be."""
    folders = Counter(filter(None, below))
    if not folders:
        return
    first = next(row.key for row, folder in zip(rows, below, strict=True) if folder)
    _log.warning(
        "%d images of %s lie in %d folders below their class (such as %s). If each is a patient "
        "or a part, give --group-by folder: all images of a group then stay on one side of the "
        "split. Without it they are split one by one",
        folders.total(), root, len(folders), first,
    )  # fmt: skip


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
