"""Columns that travel from a source into the rows: --carry, and all others of a manifest.

In: the flags, the manifests, planned objects. Out: the same objects with a typed column for each.
Invariants: a value is that of its image, null where there is none; what would tell a patient is a
hash; a column of rows has one meaning, so a name that is taken is refused.

Whatever is carried stands in the plan files: workers copy it, and a run that is resumed has it too.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

from imgcls.config.scoring import ScoreConfig
from imgcls.data.keys import Key, Keyed, Value, as_name, read_headers
from imgcls.data.label_manifest import read_cells
from imgcls.data.tables.shape import OURS, TableShape
from imgcls.errors import ConfigError, SourceError
from imgcls.identity import IDENTITIES, ISSUER, PLAIN, hashed, mark_of, require_key
from imgcls.schema import MEMBER_FIELD, ROW_COLUMNS, UNIT_FIELD
from imgcls.scoring.planning.listing import lists_manifest, root_of
from imgcls.sources.members import Member, MemberRequest
from imgcls.sources.requests import requests_of
from imgcls.storage.bulk_get import GetRequest

NONE: Final = "none"
UNIT: Final = "--unit"
_ISSUER_TAG: Final = 0x00100021

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Image:
    uri: str
    key: str
    cells: Mapping[str, Any] = field(default_factory=dict)
    member: Member | None = None


@dataclass(frozen=True)
class Carry:
    """What is carried.

    Args:
        keys: The key expressions of --carry, and last that of --unit.
        roots: The folders that paths begin at, the longest first.
        cells: What the manifests say, by column: uri and all that is carried of them.
    """

    keys: tuple[Key, ...] = ()
    roots: tuple[str, ...] = ()
    cells: pa.Table | None = None
    hidden: frozenset[str] = frozenset()
    """Columns of manifests that the keys read, and rows do not get."""

    @staticmethod
    def of(config: ScoreConfig) -> "Carry":
        """Read the flags, and the manifests among the sources.

        Raises:
            ConfigError: a key that is none, a name that is taken, an element that may tell a
                patient, or no secret key for a hash.
            SourceError: a manifest that cannot be read.
        """
        given = [text for text in config.carry if text != NONE]
        keys = tuple(_parse(text, "--carry") for text in given)
        names = [key.column for key in keys]
        for key in keys:
            _refuse_taken(key.column, f"--carry {key.text}")
            if names.count(key.column) > 1:
                raise ConfigError(
                    f"--carry {key.text}: a column {key.column!r} is carried already; give it a "
                    f"name, as in other={key.text}"
                )
        roots = sorted((_folder(root_of(source)) for source in config.sources), key=len)
        if config.unit:
            if UNIT_FIELD.name in names:
                raise ConfigError(
                    "--carry unit: --unit makes a column of that name; choose another"
                )
            keys = (*keys, parse_unit(config.unit))
        cells, by_themselves = _read_cells(config, keys)
        read = {str(key.detail) for key in keys if key.kind == "column"}
        renamed = {str(k.detail) for k in keys if k.column != k.detail and not _is_unit(k)}
        told = set(cells.column_names[1:]) if cells is not None else set[str]()
        hidden = (renamed | (read - by_themselves - set(names))) & told
        return Carry(keys, tuple(reversed(roots)), cells, frozenset(hidden))

    def added(self, objects: pa.Table) -> pa.Table:
        """Return planned objects with the values of --carry, beside what the manifests say."""
        if not self.keys:
            return objects
        uris = objects["uri"].to_pylist()
        known = set(self.cells.column_names[1:]) if self.cells is not None else set[str]()
        of_cells = {
            name: objects[name].to_pylist()
            for name in {str(key.detail) for key in self.keys if key.kind == "column"} & known
        }
        names = objects[MEMBER_FIELD.name].to_pylist() if is_of_containers(objects) else uris
        members: list[Member | None] = [None] * len(uris)
        if is_of_containers(objects) and any(key.kind == "dicom" for key in self.keys):
            members = [_member_of(request) for request in requests_of(objects)]
        images = [
            _Image(
                uri,
                self._path(f"{uri}/{names[n]}" if names is not uris and names[n] else uri),
                {name: column[n] for name, column in of_cells.items()},
                members[n],
            )
            for n, uri in enumerate(uris)
        ]
        found = list(zip(self.keys, _values(self.keys, images), strict=True))
        objects = objects.drop_columns([n for n in objects.column_names if n in self.hidden])
        for key, values in found:
            field_ = self._field(key)
            if field_.name in objects.column_names:
                continue
            objects = objects.append_column(field_, pa.array(values, field_.type))
        return objects

    @property
    def identity_mark(self) -> str:
        """Which secret key hashes what is carried; "" where nothing is hashed."""
        hashes = any(key.kind == "dicom" and _keyword(key) in IDENTITIES for key in self.keys)
        return mark_of(require_key("an id")) if hashes else ""

    def schema(self, planned: pa.Schema) -> pa.Schema:
        """Return the schema of what `added` makes of objects of this one."""
        empty = pa.Table.from_pylist([], schema=planned)
        return self.added(empty).schema

    def _field(self, key: Key) -> pa.Field:
        if _is_unit(key):
            return UNIT_FIELD
        if key.kind == "column" and self.cells is not None:
            named = [each for each in self.cells.schema if each.name == key.detail]
            return pa.field(key.column, named[0].type if named else pa.string())
        return pa.field(key.column, pa.string())

    def _path(self, uri: str) -> str:
        root = next((root for root in self.roots if uri.startswith(root)), "")
        return uri.removeprefix(root)


def parse_unit(text: str) -> Key:
    """Read the key expression of --unit.

    Raises:
        ConfigError: it is none, or an element of DICOM that may tell a patient and is not hashed.
    """
    key = _parse(f"{UNIT_FIELD.name}={text.partition('=')[2] if _is_named(text) else text}", UNIT)
    return replace(key, text=text)


def _is_named(text: str) -> bool:
    return re.match(r"[A-Za-z_][A-Za-z0-9_]*=", text) is not None


def _is_unit(key: Key) -> bool:
    return key.flag == UNIT


def _parse(text: str, flag: str) -> Key:
    key = Key.parse(text, flag, is_required=False)
    if key.kind == "name" and not key.column:
        raise ConfigError(f"{flag} {text}: give it a name, as in lot={text}")
    if key.kind != "dicom":
        return key
    keyword = _keyword(key)
    if keyword in IDENTITIES:
        require_key(f"{flag} dicom:{keyword}")
        is_named = key.text.partition("=")[2].startswith("dicom:")
        return key if is_named else replace(key, column=IDENTITIES[keyword])
    if keyword not in PLAIN:
        raise ConfigError(
            f"{flag} dicom:{keyword}: it may tell who a patient is; what is carried is "
            f"{', '.join(PLAIN)}, and as hashes {', '.join(IDENTITIES)}"
        )
    return key


def _keyword(key: Key) -> str:
    from pydicom.datadict import keyword_for_tag

    return str(keyword_for_tag(int(key.detail)))


def _read_cells(config: ScoreConfig, keys: Sequence[Key]) -> tuple[pa.Table | None, set[str]]:
    """Return what the manifests say of their images, by uri; and what is carried by itself."""
    tables, shape, by_themselves = list[pa.Table](), TableShape.of(config), set[str]()
    wanted = {str(key.detail) for key in keys if key.kind == "column"}
    for source in config.sources:
        if not lists_manifest(source, config):
            continue
        table = read_cells(source, shape)
        # Those that training reads are not carried by themselves: label, group, weight ...
        ours = {shape.names.get(name, name) for name in OURS} | {"split_key"}
        others = [n for n in table.column_names[1:] if n not in ours and NONE not in config.carry]
        if UNIT_FIELD.name in others and any(map(_is_unit, keys)):
            others.remove(UNIT_FIELD.name)  # the name of the column that --unit makes
            log.warning("%s: its column %r is not carried: --unit makes one", source, "unit")
        by_themselves |= set(others)
        for name in others:
            renamed = [key for key in keys if key.detail == name and key.column != name]
            if not any(not _is_unit(key) for key in renamed):
                _refuse_taken(name, f"{source}, column {name!r}")
        kept = [n for n in table.column_names[1:] if n in others or n in wanted]
        if kept:
            tables.append(table.select(["uri", *kept]))
            log.info(
                "%s: carried into the rows: %s (--carry none leaves them out)",
                source, ", ".join(map(repr, kept)),
            )  # fmt: skip
    if not tables:
        return None, by_themselves
    try:
        joined = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SourceError(
            f"the manifests have columns of one name and two types: {error}"
        ) from error
    return joined, by_themselves


def _refuse_taken(name: str, what: str) -> None:
    if name in ROW_COLUMNS:
        raise ConfigError(
            f"{what}: rows have a column {name!r} of their own. Carry it by another name, as in "
            f"--carry my_{name}={name}, and the others with it; --carry none carries no column by "
            "itself"
        )


def _values(keys: Sequence[Key], images: Sequence[_Image]) -> list[list[Value]]:
    """Return the values of the keys; ids as hashes, names of units as text."""
    tags = {key.column: int(key.detail) for key in keys if key.kind == "dicom"}
    headers: list[dict[str, Value]] = []
    if tags and images:
        headers = read_headers(images, tags | {ISSUER: _ISSUER_TAG})
    found = list[list[Value]]()
    for key in keys:
        if key.kind != "dicom":
            values = [_cell_or_path(key, image) for image in images]
            found.append([as_name(v) or None for v in values] if _is_unit(key) else values)
            continue
        written = _written(key)
        found.append([written(header) for header in headers])
    return found


def _cell_or_path(key: Key, image: Keyed) -> Value:
    if key.kind == "column" and image.cells.get(str(key.detail)) is not None:
        value: Value = image.cells[str(key.detail)]
        return value
    return key.of_path(image)


def _written(key: Key) -> Callable[[Mapping[str, Value]], Value]:
    """Return what makes of a header the value that may be written."""
    keyword = _keyword(key)
    if keyword not in IDENTITIES:
        return lambda header: as_name(header.get(key.column)) or None
    secret = require_key(f"--carry {key.text}")

    def as_hash(header: Mapping[str, Value]) -> Value:
        identity = as_name(header.get(key.column))
        issuer = as_name(header.get(ISSUER)) if keyword == "PatientID" else ""
        return hashed(secret, identity, issuer) if identity else None

    return as_hash


def _member_of(request: GetRequest) -> Member | None:
    if not isinstance(request, MemberRequest):
        return None
    return Member(request.container(), request.member, request.size_bytes, request.place)


def is_of_containers(objects: pa.Table) -> bool:
    """Return whether some of these planned objects may be members of containers."""
    return MEMBER_FIELD.name in objects.column_names


def _folder(root: str) -> str:
    return f"{root.rstrip('/')}/"
