"""All cells of a manifest, as typed columns.

In: rows by column. Out: an Arrow column each. Invariant: no value changes: text becomes a number
only where every cell of its column is one, written as a number would be ("007" is not).
"""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")


def column_of(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    """Return a column of cells; None and "" are null.

    Args:
        values: The cells.
        kind: Their type where the table knows it, as Parquet does; None otherwise.
    """
    if kind is not None:
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        return _or_text(pa.array(values, plain))
    given = [None if value == "" else value for value in values]
    texts = [value for value in given if value is not None]
    if not all(isinstance(value, str) for value in texts):
        return _or_text(_mixed(given))
    if texts and all(_WHOLE.fullmatch(text) for text in texts):
        return pa.array([None if v is None else int(v) for v in given], pa.int64())
    if texts and all(_DECIMAL.fullmatch(text) for text in texts):
        return pa.array([None if v is None else float(v) for v in given], pa.float64())
    return pa.array(given, pa.string())


def _mixed(values: Sequence[Any]) -> pa.Array:
    """Return what JSON holds; of several kinds in one column, as text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def _or_text(column: pa.Array) -> pa.Array:
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column
