"""A manifest of labelled images: a table with uri,label[,split,group,weight][,x,y,w,h].

In: the manifest's URI, see columns.py. Out: one `LabelRow` per line, in its order. Invariant:
labels, splits and groups are text: the integer 7 and the string "7" are the same label, and "007"
is another. A relative uri is relative to the folder that holds the manifest, or to --root; an
absolute one has a scheme, or begins with "/" in a local manifest. On a disk "./a.png" and
"x/../a.png" are a.png; in a store every name is what it is. Several boxes of one picture are
several rows.
"""

import csv
import io
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from imgcls.config.paths import absolute_path
from imgcls.data.boxes import BOX_COLUMNS, Place, place_of
from imgcls.data.class_names import enumerate_names
from imgcls.data.columns import Columns, Row, is_table, name_of, parquet_types, read_rows
from imgcls.data.keys import Key, as_name, columns_of, values_of
from imgcls.data.tables.cells import column_of
from imgcls.data.tables.encodings import refuse_workbook
from imgcls.data.tables.shape import TableShape, find_column
from imgcls.data.tables.windows_names import WindowsNames
from imgcls.errors import ObjectMissingError, SourceError
from imgcls.inert import from_csv, in_csv
from imgcls.sources.containers import ContainerOptions, members_named
from imgcls.sources.members import Member
from imgcls.storage import objects
from imgcls.storage.uri import canonical, is_local, join, split_uri

MULTI_LABEL_SEPARATOR = "|"
_REQUIRED = ("uri", "label")
_FROZEN = "split_key"
_OPTIONAL = ("split", "group", "weight", _FROZEN)
_NUM_NAMED = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image and what DATA says of it; empty strings where it says nothing."""

    uri: str
    key: str  # what the split is drawn from: the uri without the folder of DATA
    label: str
    split: str = ""
    group: str = ""
    weight: float = 1.0
    slice_name: str = ""
    unit: str = ""
    cells: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What keys may want of the row."""
    boxes: tuple[tuple[Place, str], ...] = ()
    """Where in the picture, and the label there; of a row of a manifest at most one."""
    member: Member | None = field(default=None, compare=False)
    """Of an image in a container; its uri is then that of the container, "/", its name."""
    path: str = field(default="", compare=False)
    """What keys look at, where that is not `key`."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which key gives the group, the slice, the label and the unit of an image; None for none."""

    group: Key | None = None
    slice_by: Key | None = None
    label: Key | None = None
    unit: Key | None = None

    @staticmethod
    def parse(
        *,
        group: str = "",
        slice_by: str = "",
        label: str = "",
        unit: str = "",
        needs_group: bool = True,
        needs_unit: bool = True,
    ) -> "Roles":
        """Read the flags of these names; "" for one that is not given.

        Args:
            group: What must stay together.
            slice_by: What to report by.
            label: Where the class is.
            unit: What one answer is for, a study or a part.
            needs_group: Data without any group are refused.
            needs_unit: Data without any unit are refused.

        Raises:
            ConfigError: one is not a key expression.
        """
        return Roles(
            group=Key.parse(group, "--group", is_required=needs_group) if group else None,
            slice_by=Key.parse(slice_by, "--slice-by", is_written=True) if slice_by else None,
            label=Key.parse(label, "--label", is_written=True) if label else None,
            unit=Key.parse(unit, "--unit", is_required=needs_unit) if unit else None,
        )

    @property
    def keys(self) -> list[Key]:
        """Those that are given."""
        roles = (self.group, self.slice_by, self.label, self.unit)
        return [key for key in roles if key is not None]

    def applied(self, rows: list[LabelRow]) -> list[LabelRow]:
        """Return the rows with what the keys give.

        Raises:
            SourceError: a key gives nothing for any row.
        """
        if not self.keys or not rows:
            return rows
        seen = [replace(row, key=row.path) if row.path else row for row in rows]
        found = dict(zip(self.keys, values_of(self.keys, seen), strict=True))

        def named(key: Key | None, before: str, number: int) -> str:
            return before if key is None else as_name(found[key][number])

        return [
            replace(
                row,
                label=named(self.label, row.label, number),
                boxes=tuple(
                    (place, named(self.label, label, number)) for place, label in row.boxes
                ),
                group=named(self.group, row.group, number),
                slice_name=named(self.slice_by, row.slice_name, number),
                unit=named(self.unit, row.unit, number),
                cells={},
            )
            for number, row in enumerate(rows)
        ]


def is_manifest(data: str) -> bool:
    """Tell whether DATA names a manifest rather than a folder.

    Raises:
        SourceError: it is a workbook.
    """
    refuse_workbook(data)
    return is_table(data) and not (is_local(data) and Path(data).is_dir())


def read_manifest(
    manifest: str,
    *,
    roles: Roles | None = None,
    shape: TableShape | None = None,
    multi_label: bool | None = None,
    may_lack_labels: bool = False,
    containers: ContainerOptions | None = None,
) -> list[LabelRow]:
    """Read a manifest of labelled images.

    Args:
        manifest: Its URI.
        roles: Keys that give group, slice or label instead of the columns of these names.
        shape: What its columns are called, and where relative names begin.
        may_lack_labels: A row without a label is returned, with the label "".
        multi_label: Whether a label may be a list of names or none; None where that is not known.
        containers: How those are opened whose members it names.

    Raises:
        SourceError: no such object, no such column, a row without uri or label, a cell that is no
            name, a weight that is not a positive number, or bytes that are not of the format the
            suffix says.
    """
    roles, shape = roles or Roles(), shape or TableShape()
    wanted = columns_of(roles.keys)
    required = _REQUIRED[:1] if roles.label else _REQUIRED
    columns = Columns(required, _OPTIONAL, together=BOX_COLUMNS, asked=wanted, names=shape.names)
    rows, where = list[LabelRow](), list[str]()
    for row, folder in _read_rows(manifest, columns, shape):
        label = "" if roles.label else _label(row, columns, multi_label)
        if row.cells.get("label") is None and not (roles.label or may_lack_labels):
            raise SourceError(f"{row.where} has no label: {_uri(row, folder)}")
        rows.append(_row(row, columns, folder, label, wanted))
        where.append(row.where)
    _refuse_absent(roles, rows, columns, manifest)
    if members := members_named((row.uri for row in rows), containers or ContainerOptions()):
        rows = [replace(row, member=members.get(row.uri)) for row in rows]
    rows = roles.applied(rows)
    unlabelled = next(
        (
            f"{place} has no label, its class name is empty: {row.uri}"
            for place, row in zip(where, rows, strict=True)
            if not row.label.strip()
        ),
        "",
    )
    # Beside labels that join several, an empty one is none of them: `refuse_joined` says more.
    is_joined = any(MULTI_LABEL_SEPARATOR in row.label for row in rows)
    if unlabelled and multi_label is False and not (is_joined or may_lack_labels):
        num = sum(not row.label.strip() for row in rows)
        raise SourceError(
            f"{unlabelled}. {num} of {len(rows)} rows have none; training leaves them out with "
            "--allow-unlabelled"
        )
    if not rows:
        raise SourceError(f"{manifest} holds no rows: give one line per image")
    columns.tell(manifest)
    _tell_blanks([row.uri for row in rows], manifest)
    return rows


def _refuse_absent(roles: Roles, rows: Iterable[LabelRow], columns: Columns, manifest: str) -> None:
    """Refuse a key that is neither a column nor in any path, with the columns that there are."""
    for key in roles.keys:
        is_wanted = key.kind == "column" and key.is_required
        is_there = bool(find_column(str(key.detail), list(columns.given)))
        if is_wanted and not is_there and not any(map(key.of_path, rows)):
            raise SourceError(
                f"{manifest} has no column {key.detail!r}; its columns are "
                f"{enumerate_names(columns.given)}. No path has a folder {key.detail}=VALUE either"
            )


def write_manifest(rows: Iterable[LabelRow], *, slice_by: str = "") -> bytes:
    """Return a CSV that `read_manifest` reads as these very rows, wherever it lies.

    Args:
        rows: With absolute uris.
        slice_by: Name of the column for `slice_name`; "" leaves it out.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    # The column split_key, which we alone write, says that cells are to be read by `from_csv`.
    rows = list(rows)
    has_boxes = any(row.boxes for row in rows)
    sliced, boxed = ([slice_by] if slice_by else []), (BOX_COLUMNS if has_boxes else ())
    writer.writerow([*_REQUIRED, *_OPTIONAL, *sliced, *boxed])
    for row in rows:
        after = [row.split, row.group, f"{row.weight!r}", row.key]
        after += [row.slice_name] if slice_by else []
        for place, label in row.boxes or [(None, row.label)]:
            numbers = map(str, place) if place else [""] * len(boxed)
            writer.writerow(map(in_csv, [row.uri, label, *after, *numbers]))
    return text.getvalue().encode("utf-8", "surrogatepass")


def read_uris(manifest: str, shape: TableShape | None = None) -> list[str]:
    """Read only the column uri, as `score` does: images without labels.

    Raises:
        SourceError: as for `read_manifest`, but that no label is needed.
    """
    shape = shape or TableShape()
    columns = Columns(("uri",), (_FROZEN,), names={"uri": shape.names.get("uri", "uri")})
    uris = [_uri(row, folder) for row, folder in _read_rows(manifest, columns, shape)]
    if not uris:
        raise SourceError(f"{manifest} holds no rows: give one line per image")
    _tell_blanks(uris, manifest)
    return uris


def read_cells(manifest: str, shape: TableShape) -> pa.Table:
    """Read all columns: uri, and the others by their own names, typed.

    Raises:
        SourceError: as for `read_uris`.
    """
    names = {"uri": shape.names.get("uri", "uri")}
    header = Columns(("uri",), names=names)
    uris = [_uri(row, folder) for row, folder in _read_rows(manifest, header, shape)]
    others = [n for n in header.given if n and n not in {"uri", *header.used}]
    columns = Columns(("uri",), asked=tuple(others), names=names)
    rows = [row.cells for row, _ in _read_rows(manifest, columns, shape)]
    kinds = parquet_types(objects.read(manifest)) if manifest.lower().endswith(".parquet") else {}
    places = [canonical(uri) if is_local(uri) else uri for uri in uris]
    cells = {n: column_of([row.get(n) for row in rows], kinds.get(n)) for n in others}
    return pa.table({"uri": pa.array(places, pa.string()), **cells})


def _read_rows(manifest: str, columns: Columns, shape: TableShape) -> Iterator[tuple[Row, str]]:
    """Yield each row, its uri as this system writes it, and where relative names begin."""
    if is_local(manifest):
        manifest = split_uri(manifest)[2]
    try:
        data = objects.read(manifest)
    except ObjectMissingError as error:
        raise SourceError(f"there is no manifest {manifest}") from error
    folder = (shape.root or manifest.rpartition("/")[0]).rstrip("/") + "/"
    windows = WindowsNames(manifest, folder)
    for row in read_rows(data, manifest, columns):
        if _FROZEN in row.cells and manifest.lower().endswith(".csv"):
            cells = {
                name: from_csv(cell) if isinstance(cell, str) else cell
                for name, cell in row.cells.items()
            }
            yield Row(cells, row.where), folder
        else:
            given = row.cells.get("uri")
            if isinstance(given, str) and "\\" in given:
                name = windows.translated(given, row.where)
                row = Row({**row.cells, "uri": name}, row.where)
            yield row, folder
    windows.tell()


def _row(row: Row, columns: Columns, folder: str, label: str, wanted: tuple[str, ...]) -> LabelRow:
    uri = _uri(row, folder)
    given = _given(row)
    place = place_of(row.cells, row.where)
    # As it is written, also "./a.png": the split is drawn from it.
    is_relative = is_local(given) and not given.startswith("/")
    key = given if is_relative else uri.removeprefix(folder)
    return LabelRow(
        uri=uri,
        # Of a frozen split, see `write_manifest`: so the same images have the same digest.
        key=name_of(row.cells.get(_FROZEN), _FROZEN, row.where) or key,
        label=label,
        **_more_facts(row, columns),
        cells={name: row.cells[name] for name in wanted if name in row.cells},
        boxes=((place, label),) if place else (),
    )


def facts_of(row: Row, columns: Columns, multi_label: bool | None) -> dict[str, Any]:
    """Return label, split, group and weight of a row of a container, as a manifest's are read.

    Raises:
        SourceError: a cell that is no name, or a weight that is not a positive number.
    """
    return {"label": _label(row, columns, multi_label), **_more_facts(row, columns)}


def _more_facts(row: Row, columns: Columns) -> dict[str, Any]:
    return {
        "split": columns.text(row, "split"),
        "group": columns.text(row, "group"),
        "weight": _weight(row.cells.get("weight"), row.where),
    }


def _label(row: Row, columns: Columns, multi_label: bool | None) -> str:
    """Return the label; a list of names, as JSON and Parquet can hold it, joined by "|"."""
    value = row.cells.get("label")
    if not isinstance(value, list):
        # As it is: a blank too many in a class's name is a slip that its owner should see.
        return columns.name(row, "label")
    if multi_label is False:
        raise SourceError(
            f"{row.where}: label is a list: write one name as text, or train with --multi-label"
        )
    names = [name_of(name, "label", row.where) for name in value]
    if any(MULTI_LABEL_SEPARATOR in name or not name for name in names):
        raise SourceError(
            f'{row.where}: label holds the names {names}: none may be empty or hold "|"'
        )
    return MULTI_LABEL_SEPARATOR.join(names)


def _given(row: Row) -> str:
    return name_of(row.cells.get("uri"), "uri", row.where)


def _uri(row: Row, folder: str) -> str:
    given = _given(row)
    if not given:
        raise SourceError(f"{row.where} has no uri")
    if not is_local(given):
        return given
    if is_local(folder):
        return absolute_path(given, folder)
    return join(folder, given)


def _tell_blanks(uris: Iterable[str], manifest: str) -> None:
    """Name uris with blanks around them: a file may be called that, but few are."""
    padded = [uri for uri in uris if uri != uri.strip()]
    if padded:
        _log.warning(
            "%s: %d uris begin or end with a blank, which belongs to their names: %s",
            manifest,
            len(padded),
            ", ".join(map(repr, padded[:_NUM_NAMED])),
        )


def _weight(value: Any, where: str) -> float:  # noqa: ANN401  (a cell of any type)
    if value is None or value == "":
        return 1.0
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise SourceError(f"{where}: weight {value!r} is not a positive number")
    return weight
