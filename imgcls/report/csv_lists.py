"""The lists of a page as spreadsheets, whole, beside it.

In: rows. Out: a CSV of each list. Invariant: every cell is inert, and memory holds a few megabytes
of each list at most.
"""

import csv
import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Final

from imgcls.inert import in_csv
from imgcls.report.choose import PLACE, Row
from imgcls.report.names import Name
from imgcls.schema import GROUPS_SCHEMA, ROW_COLUMNS

_FIRST: Final = (
    *(
        "unit",
        "uri",
        "member",
        "frame",
        "decision",
        "threshold_id",
        "calibrated_prob",
        "class_name",
    ),
    *("labels", "confidence", *PLACE, "status", "error", "run_id"),
)
_IN_MEMORY: Final = 4 << 20


class CsvLists:
    """The lists of a page as spreadsheets: what a person needs first, every cell inert.

    Written as rows come, to files that are temporary where they are large.
    """

    def __init__(self, columns: Sequence[str], name: Name) -> None:
        carried = [key for key in columns if key not in (*ROW_COLUMNS, *GROUPS_SCHEMA.names)]
        self._columns = [*(key for key in _FIRST if key in columns), *carried]
        self._name = name
        self._files: dict[str, IO[bytes]] = {}

    def add(self, list_name: str, row: Row) -> None:
        """Write a row to the list of this name."""
        if list_name not in self._files:
            self._files[list_name] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  (closed by `files`)
            # Excel takes a file for UTF-8 only where it begins so.
            self._files[list_name].write(b"\xef\xbb\xbf" + _csv_line(map(in_csv, self._columns)))
        cells = (_cell(key, row.get(key), self._name) for key in self._columns)
        self._files[list_name].write(_csv_line(cells))

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each list that has rows."""
        for list_name, file in self._files.items():
            file.seek(0)
            with file:
                yield f"{list_name}.csv", file.read()


def _csv_line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(list(cells))
    return text.getvalue().encode()


def _cell(column: str, value: object, name: Name) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    is_name = column in ("unit", "uri", "member") or column not in ROW_COLUMNS
    return in_csv(name(text) if is_name else text)
