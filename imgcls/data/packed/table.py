"""Labels in the columns of a Parquet file that holds the images, too.

In: the file, which columns are wanted. Out: a row of cells for each image, in the order of the
file. Invariant: a cell is of the image in its own row; where Hugging Face's metadata name the
classes, a label is its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.data.columns import Columns, Row, parquet_rows
from imgcls.data.tables.shape import TableShape
from imgcls.errors import SourceError
from imgcls.sources.ranged_file import RangedFile
from imgcls.storage.info import ObjectInfo
from imgcls.storage.json_text import parse_json

_OPTIONAL: Final = ("label", "split", "group", "weight")
# What Hugging Face writes where a class is not known.
_NO_CLASS: Final = -1


def columns_wanted(asked: Sequence[str], shape: TableShape) -> Columns:
    """Return what is read of a Parquet file with images, beside these.

    Args:
        asked: Columns that flags ask for.
        shape: What columns are called.
    """
    names = {ours: theirs for ours, theirs in shape.names.items() if ours != "uri"}
    return Columns((), _OPTIONAL, asked=tuple(asked), names=names)


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of every row of one file, and which columns this very file has."""

    rows: list[Row]
    has_labels: bool
    header: Sequence[str]
    """All columns but that of the images."""


def read_table(info: ObjectInfo, image_column: str, columns: Columns) -> Table:
    """Return the cells of every row.

    Args:
        info: The file.
        image_column: The column that holds the images.
        columns: Those that are wanted.

    Raises:
        SourceError: a column that is missing or twice, a label that is no class, or bytes that are
            not Parquet.
        StorageError: the store failed, or it is another version by now.
    """
    try:
        file = pq.ParquetFile(RangedFile(info), pre_buffer=False)
        schema = file.schema_arrow
        header = [name for name in schema.names if name != image_column]
        at = columns.find(header, info.uri)
        names = _class_names(schema, info.uri)
        rows = [_with_names(row, at, names) for row in parquet_rows(file, at, info.uri)]
        return Table(rows, "label" in at, header)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{info.uri} cannot be read: {error}") from error


def _with_names(row: Row, at: Mapping[str, str], names: dict[str, list[str]]) -> Row:
    """Return a row whose classes have their names."""
    cells = {ours: _named(cell, names.get(at[ours]), row.where) for ours, cell in row.cells.items()}
    return Row(cells, row.where)


def _named(value: Any, names: list[str] | None, where: str) -> Any:  # noqa: ANN401  (a cell)
    """Return the name of a class for its number."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(each, names, where) for each in value]
    if not isinstance(value, int) or value == _NO_CLASS:
        return None if value == _NO_CLASS else value
    if not 0 <= value < len(names):
        raise SourceError(f"{where}: the class {value} has no name; there are {len(names)}")
    return names[value]


def _class_names(schema: pa.Schema, uri: str) -> dict[str, list[str]]:
    """Return the names of the classes of columns, as Hugging Face's metadata have them."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    try:
        features = parse_json(metadata, f"the metadata of {uri}", SourceError)["info"]["features"]
    except (KeyError, TypeError):
        return {}
    found = dict[str, list[str]]()
    for column, feature in features.items() if isinstance(features, dict) else ():
        inner = feature
        while isinstance(inner, list) and len(inner) == 1:
            inner = inner[0]
        if isinstance(inner, dict) and isinstance(inner.get("feature"), dict):
            inner = inner["feature"]
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = list(map(str, cast(list[Any], inner["names"])))
    return found
