"""A table that somebody hands in, read strictly: columns by name, cells by type, rows by number.

In: the bytes of a table and the suffix that says what it is. Out: one `Row` per line, with the
cells of the wanted columns. Invariant: a cell is what its line says, or the line is refused by
number: no row of another width is cut or filled up, no column is chosen among two of one name, and
no value that is not a name (a list, NaN, true) becomes one.
"""

import csv
import io
import logging
import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.data.class_names import enumerate_names
from imgcls.data.tables.encodings import cut_separator_line, decode_text
from imgcls.data.tables.shape import advise, find_column
from imgcls.errors import SourceError
from imgcls.storage.json_text import parse_json

# Separators by what a suffix promises; the header decides.
_SEPARATORS = {"csv": ",;\t|", "tsv": "\t,;|", "txt": "\t,;|"}
_LINES = ("jsonl", "ndjson")
KINDS = (*_SEPARATORS, *_LINES, "json", "parquet")
# A Parquet file is packed inside.
SUFFIXES = (*(f".{kind}" for kind in KINDS), *(f".{kind}.gz" for kind in KINDS[:-1]))
_NAMES_OF_TAB = {"\t": "tabs"}
_MAX_UNPACKED_BYTES = 1 << 31
# What programs write where there is no value; read as text, it would be a class or a patient.
_NO_VALUES = ("nan", "<na>")
_MAX_CELL_CHARS = 1 << 20
_ROWS_AT_A_TIME = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """The wanted cells of one line, and words that name the line."""

    cells: Mapping[str, Any]
    where: str


@dataclass
class Columns:
    """Which columns a reader wants of a table, and what it has to say of the cells.

    Args:
        required: Names that every row must have.
        optional: Names that are read where they are there.
        together: Names that are read where all of them are there.
        asked: Names that a flag asks for, read where they are there.
        names: What a column is called in the table, where not as here; "" for one to leave out.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    num_trimmed: Counter[str] = field(default_factory=Counter)
    num_rounded: Counter[str] = field(default_factory=Counter)
    given: dict[str, None] = field(default_factory=dict)
    """Those that the table has, in its order."""
    _found: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)
    _is_told: bool = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """All of them, once each."""
        together = self.together if self.given.keys() >= set(self.together) else ()
        return tuple(dict.fromkeys((*self.required, *self.asked, *self.optional, *together)))

    def find(self, names: Iterable[object], table: str) -> dict[str, str]:
        """Return what each wanted column is called in a header, of those that are there.

        Raises:
            SourceError: one is missing, is there twice, or may be meant in another spelling; names
                it, those that there are, and what to write.
        """
        header = tuple(str(name) for name in names)
        if header not in self._found:
            self._found[header] = self._find(header, table)
        return self._found[header]

    def _find(self, given: tuple[str, ...], table: str) -> dict[str, str]:
        self.given.update(dict.fromkeys(given))
        found, missing = dict[str, str](), list[str]()
        for column in self.wanted:
            name = self.names.get(column, column)
            alike = find_column(name, given) if name else []
            if alike and given.count(alike[0]) > 1:
                raise SourceError(f"{table} has the column {alike[0]!r} twice: keep one")
            if len(alike) > 1:
                raise SourceError(
                    f"{table} has the columns {enumerate_names(alike)}: say which one is meant, as "
                    f"in --columns {column}={alike[0]}"
                )
            is_optional = column in self.optional and column not in (*self.names, *self.asked)
            if alike and alike[0] != name and is_optional:
                raise SourceError(
                    f"{table} has a column {alike[0]!r}: if it is the {column} that is read here, "
                    f"give --columns {column}={alike[0]}; if not, --columns {column}="
                )
            if alike:
                found[column] = alike[0]
            elif column in self.required or self.names.get(column):
                missing.append(column)
        for column in missing:
            may_have = f" and may have {','.join(self.optional)}" if self.optional else ""
            raise SourceError(
                f"{table} has no column {self.names.get(column) or column!r}; its columns are "
                f"{enumerate_names(given)}. This one needs {','.join(self.required)}{may_have}. "
                f"{advise(missing, given)}"
            )
        told = [f"{theirs!r} as {ours}" for ours, theirs in found.items() if theirs != ours]
        if told and not self._is_told:
            self._is_told = True
            _log.info("%s: read %s", table, ", ".join(told))
        return found

    @property
    def used(self) -> set[str]:
        """What the wanted columns are called, in any header that was read."""
        return {theirs for found in self._found.values() for theirs in found.values()}

    def name(self, row: Row, column: str) -> str:
        """Return a cell as text, as it is; "" where the row says nothing.

        Raises:
            SourceError: the cell holds something that is not a name.
        """
        value = row.cells.get(column)
        if isinstance(value, float) and value.is_integer():
            self.num_rounded[column] += 1
        return name_of(value, column, row.where)

    def text(self, row: Row, column: str) -> str:
        """Return a cell as text without blanks around it.

        Raises:
            SourceError: as for `name`.
        """
        text = self.name(row, column)
        if text != text.strip():
            self.num_trimmed[column] += 1
        return text.strip()

    def tell(self, table: str) -> None:
        """Say in the log what was changed while reading."""
        for column, count in self.num_trimmed.items():
            _log.warning("%s: blanks around %d cells of %s are left out", table, count, column)
        for column, count in self.num_rounded.items():
            _log.info("%s: %d cells of %s are numbers such as 1.0: read as 1", table, count, column)


def is_table(uri: str) -> bool:
    """Tell whether a name is that of a table."""
    return uri.lower().endswith(SUFFIXES)


def read_rows(data: bytes, table: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a table, numbered from 1.

    Args:
        data: Its bytes.
        table: Its URI; the suffix says what it is.
        columns: Those to read.

    Raises:
        SourceError: bytes that are not what the suffix says, or a row that cannot be read safely.
    """
    kind = table.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if table.lower().endswith(".gz"):
            data = _unpack(data, table)
        if kind == "parquet":
            found = _read_parquet(data, table, columns)
        elif kind in _SEPARATORS:
            found = _read_separated(decode_text(data, table), table, columns, _SEPARATORS[kind])
        else:
            text = decode_text(data, table, may_be_latin=False)
            found = _read_json(text, table, columns, by_line=kind in _LINES)
        yield from found
    except (UnicodeDecodeError, csv.Error, zlib.error, pa.ArrowException) as error:
        raise SourceError(f"{table} is not what its suffix says: {error}") from error


def parquet_types(data: bytes) -> dict[str, pa.DataType]:
    """Return the types of the columns of a Parquet file."""
    schema = pq.read_schema(pa.BufferReader(data))
    return {name: schema.field(name).type for name in schema.names}


def name_of(value: Any, column: str, where: str) -> str:  # noqa: ANN401  (a cell of any type)
    """Return a cell as a name: text as it is, a whole number in digits, "" for none.

    Raises:
        SourceError: anything else, such as a list, a fraction, NaN, true or an object.
    """
    match value:
        case None:
            return ""
        case str() if value.strip().casefold() not in _NO_VALUES:
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case float() if value.is_integer():
            return str(int(value))
        case bytes() if _is_utf8(value):
            return value.decode()
    raise SourceError(
        f"{where}: {column} is {_kind_of(value)}; write one name as text, or leave it empty"
    )


def _kind_of(value: object) -> str:
    match value:
        case bool():
            return f"{str(value).lower()}, not text"
        case str():
            return f"{value!r}, which programs write where there is no value"
        case bytes():
            return "bytes that are not UTF-8"
        case float() if math.isnan(value):
            return "NaN, not a name"
        case float() | Decimal():
            return f"the number {value}, not a name"
        case list():
            return "a list"
        case Mapping():
            return "an object"
    return f"a {type(value).__name__}, not text"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unpack(data: bytes, table: str) -> bytes:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    parts, size_bytes = list[bytes](), 0
    while data:
        parts.append(unpacker.decompress(data, _MAX_UNPACKED_BYTES - size_bytes + 1))
        size_bytes += len(parts[-1])
        if size_bytes > _MAX_UNPACKED_BYTES:
            raise SourceError(
                f"{table} unpacks to more than {_MAX_UNPACKED_BYTES >> 30} GiB: write a .parquet"
            )
        if not unpacker.eof:
            raise SourceError(f"{table} ends in mid-file: copy it again")
        data = unpacker.unused_data
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    return b"".join(parts)


def _read_separated(text: str, table: str, columns: Columns, separators: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CELL_CHARS)
    text, told = cut_separator_line(text)
    separator = told or _separator(text, columns, separators)
    if separator != separators[0]:
        _log.info("%s: separated by %s", table, _NAMES_OF_TAB.get(separator, repr(separator)))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = next(lines, [])
    at = {ours: header.index(theirs) for ours, theirs in columns.find(header, table).items()}
    _tell_unused(header, [header[index] for index in at.values()], table)
    number = 0
    for cells in lines:
        if not cells:
            continue
        number += 1
        where = f"{table}, row {number}"
        if len(cells) != len(header):
            name = _NAMES_OF_TAB.get(separator, repr(separator))
            more = f'put a cell that holds {name} into "quotes"'
            raise SourceError(
                f"{where} has {len(cells)} cells, the header has {len(header)}: "
                f"{more if len(cells) > len(header) else 'write an empty cell where none is known'}"
            )
        yield Row({name: cells[index] for name, index in at.items()}, where)


def _separator(text: str, columns: Columns, separators: str) -> str:
    """Return the separator that cuts the wanted names out of the header, first the usual one."""
    first = io.StringIO(text[: text.find("\n") + 1 or len(text)], newline="")

    def num_found(separator: str) -> tuple[int, int]:
        first.seek(0)
        header = next(csv.reader(first, delimiter=separator), [])
        names = (columns.names.get(name, name) for name in (*columns.required, *columns.asked))
        return sum(bool(find_column(n, header)) for n in names), -separators.index(separator)

    return max(separators, key=num_found)


def _tell_unused(header: Sequence[str], used: Collection[str], table: str) -> None:
    unused = [name for name in header if name not in used and name]
    if unused:
        _log.info("%s: columns that are not read: %s", table, enumerate_names(unused))


def _read_json(text: str, table: str, columns: Columns, *, by_line: bool) -> Iterator[Row]:
    # A .json is a list of objects; some programs write lines into it.
    if by_line or not text.lstrip().startswith("["):
        numbered = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
        found: Iterable[tuple[str, Any]] = (
            (f"line {n}", _parse_line(line, f"{table}, line {n}")) for n, line in numbered
        )
    else:
        values = parse_json(text, table, SourceError, pairs_hook=_once_each)
        found = ((f"entry {n}", value) for n, value in enumerate(values, 1))
    for number, (place, fields) in enumerate(found, 1):
        if not isinstance(fields, dict):
            raise SourceError(f"{table}, {place} is not a JSON object")
        at = columns.find(fields, table)
        yield Row({ours: fields[theirs] for ours, theirs in at.items()}, f"{table}, row {number}")


def _parse_line(line: str, where: str) -> Any:  # noqa: ANN401  (any JSON)
    return parse_json(line, where, SourceError, pairs_hook=_once_each)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, unless it has a name twice: JSON's readers would take the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _), *_] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} is there twice")
    return found


def _read_parquet(data: bytes, table: str, columns: Columns) -> Iterator[Row]:
    file = pq.ParquetFile(pa.BufferReader(data))
    names = file.schema_arrow.names
    at = columns.find(names, table)
    wanted = list(dict.fromkeys(at.values()))
    _tell_unused(names, wanted, table)
    yield from parquet_rows(file, at, table)


def parquet_rows(file: pq.ParquetFile, at: Mapping[str, str], table: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file, numbered from 1.

    Args:
        file: It.
        at: What the wanted columns are called; none gives rows without cells.
        table: Its URI.
    """
    wanted = list(dict.fromkeys(at.values()))
    if not wanted:
        yield from (Row({}, f"{table}, row {n + 1}") for n in range(file.metadata.num_rows))
        return
    number = 0
    for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=wanted, use_threads=False):
        for cells in batch.to_pylist():
            number += 1
            found = {ours: cells[theirs] for ours, theirs in at.items()}
            yield Row(found, f"{table}, row {number}")
