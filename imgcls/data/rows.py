"""The labelled rows of one place or several: folder trees and manifests alike.

In: DATA and how it is read. Out: a row per listed image, and what was left out by reason.
Invariant: every command that takes labelled images reads them here.
"""

from collections import Counter
from dataclasses import dataclass, replace

from imgcls.config.selection import Selection
from imgcls.config.source_options import ListingOptions
from imgcls.data.folder_tree import read_tree
from imgcls.data.label_manifest import LabelRow, Roles, is_manifest, read_manifest
from imgcls.data.left_out import select_rows
from imgcls.data.tables.shape import TableShape
from imgcls.errors import ConfigError, SourceError


@dataclass(frozen=True)
class Reading:
    """How DATA is read; see `read_dataset`."""

    roles: Roles
    options: ListingOptions
    multi_label: bool
    may_lack_labels: bool
    group_by_folder: bool


def read_rows_of(data: str, reading: Reading) -> tuple[list[LabelRow], dict[str, int]]:
    """Return the rows of DATA and of what is read beside it, and what was left out by reason."""
    rows, num_skipped = _read_place(data, reading)
    for place in reading.options.also:
        more, skipped = _read_place(place, reading)
        # Its own name: two places may have the same paths.
        rows += [replace(row, key=row.uri) for row in more]
        num_skipped = dict(Counter(num_skipped) + Counter(skipped))
    return rows, num_skipped


def _read_place(data: str, reading: Reading) -> tuple[list[LabelRow], dict[str, int]]:
    """Return the rows of a manifest or a folder tree, and what was left out of it by reason."""
    roles, selection = reading.roles, Selection.of(reading.options)
    if reading.group_by_folder and roles.group is not None:
        raise ConfigError("--group and --group-by folder: give one of them")
    if is_manifest(data):
        if reading.group_by_folder:
            raise ConfigError(f"--group-by folder: {data} is a manifest; give it a column group")
        rows = read_manifest(
            data,
            roles=roles,
            shape=TableShape.of(reading.options),
            multi_label=reading.multi_label,
            may_lack_labels=reading.may_lack_labels,
        )
        return select_rows(rows, selection, data), {}
    if reading.multi_label and roles.label is None:
        raise ConfigError(
            f"several labels per image need a manifest or --label, {data} is a folder"
        )
    tree = read_tree(
        data,
        group_by_folder=reading.group_by_folder,
        has_classes=roles.label is None,
        selection=selection,
    )
    rows = roles.applied(tree.rows)
    unlabelled = [row.uri for row in rows if not row.label.strip()]
    if unlabelled and not (reading.multi_label or reading.may_lack_labels):
        raise SourceError(
            f"{len(unlabelled)} images of {data} get no label from --label, such as "
            f"{unlabelled[0]}; --allow-unlabelled leaves them out"
        )
    return rows, tree.num_skipped
