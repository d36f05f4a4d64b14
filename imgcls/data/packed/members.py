"""Members of containers as labelled rows: where their labels are, and what they say.

In: the members of all containers of a place. Out: a `LabelRow` each, with a label or, where folders
are the classes, without one; what was left out, by reason. Invariants: a row has the label of its
own image, or none; one kind of labels counts for all containers, so that a missing one is missed.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from imgcls.config.selection import LeftOutByFlags, Selection
from imgcls.data.columns import Columns, Row
from imgcls.data.folder_names import litter
from imgcls.data.label_manifest import LabelRow, facts_of
from imgcls.data.packed.paths import Names, name_members, splits_by_container
from imgcls.data.packed.sidecars import Beside, find_beside, is_of_labels, read_beside, tell_beside
from imgcls.data.packed.table import columns_wanted, read_table
from imgcls.data.tables.shape import TableShape, advise
from imgcls.errors import SourceError
from imgcls.sources.containers import path_of
from imgcls.sources.members import Member

_OURS: Final = ("label", "split", "group", "weight")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedOptions:
    """How containers with labelled images are read.

    Args:
        shape: What columns, and fields of a .json, are called.
        asked: Columns and fields that flags ask for.
        has_label: A flag says where labels are.
        multi_label: A label may be a list, or none; None where that is not known.
        may_lack_labels: An image without a label is returned, with the label "".
        classes: Those of a model that exists.
    """

    shape: TableShape = field(default_factory=TableShape)
    asked: tuple[str, ...] = ()
    has_label: bool = False
    multi_label: bool | None = None
    may_lack_labels: bool = False
    classes: Collection[str] = ()


@dataclass
class Packed:
    """Rows of members.

    Args:
        rows: Those that are meant.
        are_labelled: For each whether its label is its own, rather than a folder.
        num_skipped: What was left out, by reason.
        left_out: What flags leave out.
    """

    rows: list[LabelRow] = field(default_factory=list)
    are_labelled: list[bool] = field(default_factory=list)
    num_skipped: Counter[str] = field(default_factory=Counter)
    left_out: LeftOutByFlags = field(default_factory=LeftOutByFlags)


@dataclass(frozen=True, slots=True)
class _Named:
    member: Member
    names: Names
    number: int
    """Of the member in its container."""


def read_members(
    members: list[Member],
    root: str,
    options: PackedOptions,
    selection: Selection,
    *,
    is_single: bool,
) -> Packed:
    """Return the rows of members.

    Args:
        members: Of all containers, those of one in the order of their listing.
        root: The folder that holds the containers, with a "/" at its end.
        options: How they are read.
        selection: Which are meant.
        is_single: The data are one container.

    Raises:
        SourceError: a container that cannot be listed whole, or labels that contradict each other.
        StorageError: the store failed.
    """
    broken = next((each for each in members if each.name is None), None)
    if broken is not None:
        raise SourceError(f"{broken.container.uri}: {broken.place.problem}; copy it again")
    found = Packed()
    by_container = _select(members, root, options, selection, is_single=is_single, found=found)
    listed = defaultdict[str, list[Member]](list)
    for member in members:
        listed[member.container.uri].append(member)
    beside = {
        uri: find_beside(listed[uri], [named.number for named in meant])
        for uri, meant in by_container.items()
        if not _is_table(meant)
    }
    cells = _cells_beside(beside, by_container, options)
    splits = {} if is_single else splits_by_container(by_container, root)
    several, columns = dict[str, list[str]](), columns_wanted(options.asked, options.shape)
    for uri, meant in sorted(by_container.items()):
        if uri not in beside:
            labelled = _of_table(meant, options, columns)
        else:
            several |= _several(meant, beside[uri])
            labelled = _of_beside(meant, beside[uri], cells.get(uri, {}), options, found)
        for row, is_labelled in labelled:
            found.rows.append(replace(row, split=row.split or splits.get(uri, "")))
            found.are_labelled.append(is_labelled)
    columns.tell(root)
    tell_beside(root, several, [name for each in beside.values() for name in each.unused])
    return found


def _select(
    members: list[Member],
    root: str,
    options: PackedOptions,
    selection: Selection,
    *,
    is_single: bool,
    found: Packed,
) -> dict[str, list[_Named]]:
    """Return the members that are meant, by container."""
    names = name_members(members, root, is_single=is_single, classes=options.classes)
    number_in, meant = Counter[str](), dict[str, list[_Named]]()
    for member, name in zip(members, names, strict=True):
        uri = member.container.uri
        number = number_in[uri]
        number_in[uri] += 1
        flag = selection.left_out_by(name.path, member.container.last_modified)
        # A text may be a label, which is asked later.
        if not is_of_labels(str(member.name)) and (reason := litter(name.key)):
            found.num_skipped[reason] += 1
        elif flag:
            found.left_out.add(flag, path_of(member))
        else:
            meant.setdefault(uri, []).append(_Named(member, name, number))
    return meant


def _is_table(meant: list[_Named]) -> bool:
    return meant[0].member.place.method == "row"


def _row(named: _Named, **facts: Any) -> LabelRow:  # noqa: ANN401  (fields of LabelRow)
    names = named.names
    uri = path_of(named.member)
    values = {"label": "", **facts}
    return LabelRow(uri=uri, key=names.key, path=names.path, member=named.member, **values)


def _of_table(
    meant: list[_Named], options: PackedOptions, columns: Columns
) -> Iterator[tuple[LabelRow, bool]]:
    """Yield the rows of a Parquet file, and whether it has a column with their labels."""
    info = meant[0].member.container
    table = read_table(info, meant[0].member.place.column, columns)
    if not (table.has_labels or options.has_label) and not all(
        "/" in each.names.key for each in meant
    ):
        raise SourceError(
            f"{info.uri} has no column label, and its images lie in no folders; its columns are "
            f"{', '.join(table.header)}. {advise(['label'], table.header)}"
        )
    for named in meant:
        row = table.rows[named.member.place.start]
        facts = _facts(row, columns, options, is_labelled=table.has_labels)
        kept = {name: row.cells[name] for name in options.asked if name in row.cells}
        yield _row(named, **facts, cells=kept), table.has_labels


def _cells_beside(
    beside: Mapping[str, Beside], by_container: Mapping[str, list[_Named]], options: PackedOptions
) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the cells of each image that has files beside it, by container and number.

    The cell "label" is of the one kind of labels that counts; absent where none does.
    """
    files = {
        (uri, number, suffix): member
        for uri, each in beside.items()
        for number, by_suffix in each.files.items()
        if number not in each.no_images
        for suffix, member in by_suffix.items()
    }
    theirs = {ours: options.shape.names.get(ours, "") for ours in _OURS}
    if not (options.asked or any(theirs.values())) and any(key[2] == "cls" for key in files):
        files = {key: member for key, member in files.items() if key[2] == "cls"}
    # A file of several images is read once.
    listed = list({(m.container.uri, m.name): m for m in files.values()}.values())
    place = {(m.container.uri, m.name): n for n, m in enumerate(listed)}
    read = read_beside(listed)
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    # .cls last: it is believed before a field of that name.
    for (uri, number, _), member in sorted(files.items(), key=lambda item: item[0][2] == "cls"):
        found[uri][number] |= read[place[member.container.uri, member.name]]
    kind = theirs["label"] or _kind(found, by_container)
    if kind and not options.has_label:
        num = sum(kind in cells for by_number in found.values() for cells in by_number.values())
        where = f"the .{kind}" if kind in ("cls", "txt") else f"the field {kind!r} of the .json"
        _log.info("labels are those in %s beside %d images", where, num)
    for by_number in found.values():
        has_kind = any(kind in cells for cells in by_number.values())
        for number, cells in by_number.items():
            ours = {name: cells.get(column) for name, column in theirs.items() if column}
            if has_kind and kind:
                ours["label"] = cells.get(kind)
            by_number[number] = {
                **{name: cells[name] for name in options.asked if name in cells}, "": ours,
            }  # fmt: skip
    return found


def _kind(
    found: Mapping[str, Mapping[int, Mapping[str, Any]]],
    by_container: Mapping[str, list[_Named]],
) -> str:
    """Return which cell is the label: that of .cls, the field label of .json, or that of .txt."""
    seen = {name for by_number in found.values() for cells in by_number.values() for name in cells}
    kind = next((name for name in ("cls", "label") if name in seen), "")
    if kind or "txt" not in seen:
        return kind
    folders = {
        named.names.key.partition("/")[0] if "/" in named.names.key else ""
        for uri, meant in by_container.items()
        for named in meant
        if named.number in found.get(uri, {})
    }
    if len(folders) > 1 and "" not in folders:
        _log.warning(
            "the folders are the classes; the .txt beside the images are not read: --label txt "
            "takes them instead"
        )
        return ""
    return "txt"


def _of_beside(
    meant: list[_Named],
    beside: Beside,
    cells: Mapping[int, Mapping[str, Any]],
    options: PackedOptions,
    found: Packed,
) -> Iterator[tuple[LabelRow, bool]]:
    """Yield the rows of an archive, and whether their labels lie beside them."""
    has_labels = any("label" in each[""] for each in cells.values())
    of_sample = Counter(base for n, base in beside.sample.items() if n not in beside.no_images)
    columns = Columns(())
    for named in meant:
        if reason := beside.no_images.get(named.number) or litter(named.names.key):
            found.num_skipped[reason] += 1
            continue
        mine = cells.get(named.number, {"": {}})
        row = Row(mine[""], path_of(named.member))
        facts = _facts(row, columns, options, is_labelled=has_labels)
        sample = beside.sample.get(named.number, "")
        if of_sample[sample] > 1 and not facts["group"]:
            facts["group"] = f"{named.member.container.uri}/{sample}"
        kept = {name: value for name, value in mine.items() if name}
        yield _row(named, **facts, cells=kept), has_labels


def _facts(
    row: Row, columns: Columns, options: PackedOptions, *, is_labelled: bool
) -> dict[str, Any]:
    """Return what a row says, of images that may have any number of labels also that it has none.

    Raises:
        SourceError: it does not say which labels an image has.
    """
    is_missing = is_labelled and row.cells.get("label") is None
    if is_missing and options.multi_label and not (options.may_lack_labels or options.has_label):
        raise SourceError(f"{row.where} has no label")
    return facts_of(row, columns, options.multi_label)


def _several(meant: list[_Named], beside: Beside) -> dict[str, list[str]]:
    """Return the samples with several images."""
    by_sample = defaultdict[str, list[str]](list)
    for named in meant:
        if named.number in beside.sample and named.number not in beside.no_images:
            by_sample[beside.sample[named.number]].append(str(named.member.name))
    uri = meant[0].member.container.uri
    return {f"{uri}/{base}": names for base, names in by_sample.items() if len(names) > 1}
