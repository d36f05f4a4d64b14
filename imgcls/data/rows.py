"""The labelled rows of one place or several: folder trees and manifests alike.

In: DATA and how it is read. Out: a row per listed image, and what was left out by reason.
Invariant: every command that takes labelled images reads them here.
"""

from collections import Counter
from dataclasses import dataclass, replace

from imgcls.config.selection import Selection
from imgcls.config.source_options import ListingOptions
from imgcls.data.folder_tree import read_tree
from imgcls.data.keys import columns_of
from imgcls.data.label_manifest import LabelRow, Roles, is_manifest, read_manifest
from imgcls.data.left_out import select_rows
from imgcls.data.packed.members import PackedOptions
from imgcls.data.tables.shape import TableShape
from imgcls.errors import ConfigError, SourceError
from imgcls.sources.containers import ContainerOptions, as_container


@dataclass(frozen=True)
class Reading:
    """How DATA is read; see `read_dataset`."""

    roles: Roles
    options: ListingOptions
    multi_label: bool
    may_lack_labels: bool
    group_by_folder: bool
    classes: tuple[str, ...] = ()

    @property
    def containers(self) -> ContainerOptions:
        """How containers are opened."""
        return ContainerOptions.of(self.options)

    @property
    def packed(self) -> PackedOptions:
        """How labels in containers are read."""
        return PackedOptions(
            shape=TableShape.of(self.options),
            asked=columns_of(self.roles.keys),
            has_label=self.roles.label is not None,
            multi_label=self.multi_label,
            may_lack_labels=self.may_lack_labels,
            classes=self.classes,
        )


@dataclass
class Rows:
    """The rows of DATA.

    Args:
        rows: One per listed image.
        num_skipped: What was left out, by reason.
        are_texts: Some labels are texts that people wrote, not names of folders.
    """

    rows: list[LabelRow]
    num_skipped: dict[str, int]
    are_texts: bool


def read_rows_of(data: str, reading: Reading) -> Rows:
    """Return the rows of DATA and of what is read beside it.

    Raises:
        ConfigError, SourceError, AccessDeniedError, StorageError: as for `read_dataset`.
    """
    found = _read_place(data, reading)
    for place in reading.options.also:
        more = _read_place(place, reading)
        # Its own name: two places may have the same paths.
        found.rows += [replace(row, key=row.uri) for row in more.rows]
        found.num_skipped = dict(Counter(found.num_skipped) + Counter(more.num_skipped))
        found.are_texts |= more.are_texts
    return found


def is_list(data: str, options: ListingOptions) -> bool:
    """Tell whether DATA names a list of images, rather than a folder or a container.

    Raises:
        SourceError: it is a workbook.
        ConfigError: it is not clear whether a Parquet file is a list or holds images.
    """
    return is_manifest(data) and as_container(data, ContainerOptions.of(options)) is None


def _read_place(data: str, reading: Reading) -> Rows:
    """Return the rows of a manifest, a folder tree or a container."""
    roles, selection = reading.roles, Selection.of(reading.options)
    if reading.group_by_folder and roles.group is not None:
        raise ConfigError("--group and --group-by folder: give one of them")
    if is_list(data, reading.options):
        if reading.group_by_folder:
            raise ConfigError(f"--group-by folder: {data} is a manifest; give it a column group")
        rows = read_manifest(
            data,
            roles=roles,
            shape=TableShape.of(reading.options),
            multi_label=reading.multi_label,
            may_lack_labels=reading.may_lack_labels,
            containers=reading.containers,
        )
        return Rows(select_rows(rows, selection, data), {}, are_texts=True)
    tree = read_tree(
        data,
        group_by_folder=reading.group_by_folder,
        has_classes=roles.label is None,
        selection=selection,
        containers=reading.containers,
        packed=reading.packed,
    )
    rows = roles.applied(tree.rows)
    unlabelled = [row.uri for row in rows if not row.label.strip()]
    if unlabelled and not (reading.multi_label or reading.may_lack_labels):
        lack = "get no label from --label" if roles.label is not None else "have no label"
        raise SourceError(
            f"{len(unlabelled)} images of {data} {lack}, such as {unlabelled[0]}; "
            "--allow-unlabelled leaves them out"
        )
    return Rows(rows, tree.num_skipped, tree.has_own_labels or roles.label is not None)
