"""Columns that travel from a source into the rows: --carry, and all others of a manifest.

In: the flags, the manifests, planned objects. Out: the same objects with a typed column for each.
Invariants: a value is that of its image, null where there is none; what would tell a patient is a
hash; a column of rows has one meaning, so a name that is taken is refused.

Whatever is carried stands in the plan files: workers copy it, and a run that is resumed has it too.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa

from imgcls.config.scoring import ScoreConfig
from imgcls.data.keys import Key, Keyed, Value, as_name, read_headers
from imgcls.data.label_manifest import read_cells
from imgcls.data.tables.shape import OURS, TableShape
from imgcls.errors import ConfigError, SourceError
from imgcls.identity import IDENTITIES, ISSUER, PLAIN, hashed, require_key
from imgcls.schema import MEMBER_FIELD, ROW_COLUMNS
from imgcls.scoring.planning.listing import lists_manifest, root_of

NONE: Final = "none"
_ISSUER_TAG: Final = 0x00100021

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Image:
    uri: str
    key: str
    cells: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Carry:
    """What is carried.

    Args:
        keys: The key expressions of --carry.
        roots: The folders that paths begin at, the longest first.
        cells: What the manifests say, by column: uri and all that is carried of them.
    """

    keys: tuple[Key, ...] = ()
    roots: tuple[str, ...] = ()
    cells: pa.Table | None = None

    @staticmethod
    def of(config: ScoreConfig) -> "Carry":
        """Read the flags, and the manifests among the sources.

        Raises:
            ConfigError: a key that is none, a name that is taken, an element that may tell a
                patient, or no secret key for a hash.
            SourceError: a manifest that cannot be read.
        """
        given = [text for text in config.carry if text != NONE]
        keys = tuple(map(_parse, given))
        names = [key.column for key in keys]
        for key in keys:
            _refuse_taken(key.column, f"--carry {key.text}")
            if names.count(key.column) > 1:
                raise ConfigError(
                    f"--carry {key.text}: a column {key.column!r} is carried already; give it a "
                    f"name, as in other={key.text}"
                )
        roots = sorted((_folder(root_of(source)) for source in config.sources), key=len)
        cells = _read_cells(config, keys)
        return Carry(keys, tuple(reversed(roots)), cells)

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
        images = [
            _Image(
                uri,
                self._path(f"{uri}/{names[n]}" if names is not uris and names[n] else uri),
                {name: column[n] for name, column in of_cells.items()},
            )
            for n, uri in enumerate(uris)
        ]
        if is_of_containers(objects) and any(key.kind == "dicom" for key in self.keys):
            log.warning("headers of DICOM files in containers are not read: their columns are null")
        for key, values in zip(self.keys, _values(self.keys, images), strict=True):
            field_ = self._field(key)
            if key.kind == "column" and str(key.detail) in of_cells and key.column == key.detail:
                continue
            objects = objects.append_column(field_, pa.array(values, field_.type))
        hidden = {str(key.detail) for key in self.keys if key.column != key.detail} & set(of_cells)
        return objects.drop_columns([n for n in objects.column_names if n in hidden])

    def schema(self, planned: pa.Schema) -> pa.Schema:
        """Return the schema of what `added` makes of objects of this one."""
        empty = pa.Table.from_pylist([], schema=planned)
        return self.added(empty).schema

    def _field(self, key: Key) -> pa.Field:
        if key.kind == "column" and self.cells is not None:
            named = [each for each in self.cells.schema if each.name == key.detail]
            return pa.field(key.column, named[0].type if named else pa.string())
        return pa.field(key.column, pa.string())

    def _path(self, uri: str) -> str:
        root = next((root for root in self.roots if uri.startswith(root)), "")
        return uri.removeprefix(root)


def _parse(text: str) -> Key:
    key = Key.parse(text, "--carry", is_required=False)
    if key.kind == "name" and not key.column:
        raise ConfigError(f"--carry {text}: give it a name, as in lot={text}")
    if key.kind != "dicom":
        return key
    keyword = _keyword(key)
    if keyword in IDENTITIES:
        require_key(f"--carry dicom:{keyword}")
        is_named = key.text.partition("=")[2].startswith("dicom:")
        return key if is_named else replace(key, column=IDENTITIES[keyword])
    if keyword not in PLAIN:
        raise ConfigError(
            f"--carry dicom:{keyword}: it may tell who a patient is; what is carried is "
            f"{', '.join(PLAIN)}, and as hashes {', '.join(IDENTITIES)}"
        )
    return key


def _keyword(key: Key) -> str:
    from pydicom.datadict import keyword_for_tag

    return str(keyword_for_tag(int(key.detail)))


def _read_cells(config: ScoreConfig, keys: Sequence[Key]) -> pa.Table | None:
    """Return what the manifests say of their images, by uri; None where there is none."""
    tables, shape = list[pa.Table](), TableShape.of(config)
    wanted = {str(key.detail) for key in keys if key.kind == "column"}
    for source in config.sources:
        if not lists_manifest(source, config):
            continue
        table = read_cells(source, shape)
        # Those that training reads are not carried by themselves: label, group, weight ...
        ours = {shape.names.get(name, name) for name in OURS} | {"split_key"}
        others = [n for n in table.column_names[1:] if n not in ours and NONE not in config.carry]
        for name in others:
            renamed = [key for key in keys if key.detail == name and key.column != name]
            if not renamed:
                _refuse_taken(name, f"{source}, column {name!r}")
        kept = [n for n in table.column_names[1:] if n in others or n in wanted]
        if kept:
            tables.append(table.select(["uri", *kept]))
            log.info(
                "%s: carried into the rows: %s (--carry none leaves them out)",
                source, ", ".join(map(repr, kept)),
            )  # fmt: skip
    if not tables:
        return None
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SourceError(
            f"the manifests have columns of one name and two types: {error}"
        ) from error


def _refuse_taken(name: str, what: str) -> None:
    if name in ROW_COLUMNS:
        raise ConfigError(
            f"{what}: rows have a column {name!r} of their own. Carry it by another name, as in "
            f"--carry my_{name}={name}, and the others with it; --carry none carries no column by "
            "itself"
        )


def _values(keys: Sequence[Key], images: Sequence[_Image]) -> list[list[Value]]:
    """Return the values of the keys; ids as hashes."""
    tags = {key.column: int(key.detail) for key in keys if key.kind == "dicom"}
    headers: list[dict[str, Value]] = []
    if tags and images:
        headers = read_headers([image.uri for image in images], tags | {ISSUER: _ISSUER_TAG})
    found = list[list[Value]]()
    for key in keys:
        if key.kind != "dicom":
            found.append([_cell_or_path(key, image) for image in images])
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


def is_of_containers(objects: pa.Table) -> bool:
    """Return whether some of these planned objects may be members of containers."""
    return MEMBER_FIELD.name in objects.column_names


def _folder(root: str) -> str:
    return f"{root.rstrip('/')}/"
