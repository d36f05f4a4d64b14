"""Results as CSV, for Excel and other spreadsheets.

In: published rows. Out: the bytes of a CSV file: a byte order mark, by which Excel knows UTF-8,
lines that end in CRLF, what a person needs first. Invariant: no cell is a formula; `from_csv` of
inert.py gives every text back. Columns of many numbers (probs, embedding) stay in the Parquet.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import pyarrow as pa

from imgcls.config.choices import CsvSeparator
from imgcls.inert import in_csv

_FIRST: Final = (
    *("image", "unit", "status", "decision", "class_name", "labels", "calibrated_prob"),
    *("confidence", "error", "num_images", "num_ok", "num_failed", "statuses", "frame"),
    *("x_px", "y_px", "w_px", "h_px", "uri", "member"),
)
_LEFT_OUT: Final = ("probs", "embedding", "topk_label", "topk_prob", "label", "etag")
_DIGITS: Final = 6
_SEPARATORS: Final = {"comma": ",", "semicolon": ";", "tab": "\t"}


def write_csv(tables: Iterable[pa.Table], columns: Sequence[str], separator: CsvSeparator) -> bytes:
    """Return rows as a CSV file.

    Args:
        tables: The rows; each may have some of the columns.
        columns: Those of all tables, in their order.
        separator: Between cells; with semicolons numbers have a comma, as where those are used.
    """
    names = columns_of(columns)
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=_SEPARATORS[separator])
    writer.writerow([in_csv(name) for name in names])
    has_comma = separator == "semicolon"
    for table in tables:
        kept = table.select([name for name in names if name in table.column_names])
        for batch in kept.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                row["image"] = _image(row)
                writer.writerow([_cell(row.get(name), has_comma=has_comma) for name in names])
    return file.getvalue().encode("utf-8-sig")


def columns_of(columns: Iterable[str]) -> list[str]:
    """Return the columns of the file: what a person needs first, then what is carried, the rest."""
    there = dict.fromkeys(["image", *(name for name in columns if name not in _LEFT_OUT)])
    first = [name for name in _FIRST if name in there]
    return [*first, *(name for name in there if name not in first)]


def _image(row: dict[str, Any]) -> str:
    """Return the name of an image without its folders."""
    return str(row.get("member") or row.get("uri") or "").rpartition("/")[2]


def _cell(value: Any, *, has_comma: bool) -> str | int:  # noqa: ANN401 - of whatever column
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        text = f"{value:.{_DIGITS}g}"
        return text.replace(".", ",") if has_comma else text
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return in_csv(", ".join(map(str, value)))
    return in_csv(str(value))
