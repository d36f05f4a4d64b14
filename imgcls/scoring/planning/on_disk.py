"""Rows on local disk, sorted by DuckDB in bounded memory, and read again group by group.

In: a folder; a query that sorts. Out: a database; tables that hold groups whole. Invariant: memory
is MEMORY and a batch, however many rows there are. That holds for sorting. To join, or to group by
long keys, more than a few million rows ends in an error instead (ten million: also with 253 MB).

Shape legend: B row of a table.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MEMORY: Final = "80MB"
_BATCH_ROWS: Final = 16_384

Bools = npt.NDArray[np.bool_]


def open_on_disk(folder: str) -> duckdb.DuckDBPyConnection:
    """Open a new database; its files go with the folder."""
    database = duckdb.connect(
        f"{folder}/rows.duckdb",
        config={"memory_limit": MEMORY, "threads": 1, "temp_directory": folder},
    )
    # Where Python is interactive it would draw its own.
    database.execute("SET enable_progress_bar = false")
    return database


def whole_groups(
    database: duckdb.DuckDBPyConnection, query: str, by: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield what a query gives, so that all rows of a group are in one table.

    Args:
        database: it may be used meanwhile.
        query: sorts by these columns first.
        by: columns without nulls.
    """
    held: list[pa.RecordBatch] = []
    with database.cursor() as cursor:
        for batch in cursor.sql(query).to_arrow_reader(_BATCH_ROWS):
            if not batch.num_rows:
                continue
            rows = pa.Table.from_batches([*held, batch])
            last = int(np.flatnonzero(starts_of(rows, by))[-1])
            if last:
                yield rows.slice(0, last)
            held = rows.slice(last).to_batches()
    if held:
        yield pa.Table.from_batches(held)


def starts_of(rows: pa.Table, by: Sequence[str]) -> Bools:
    """Return which rows, of some that are sorted by these columns, begin a group, [B]."""
    starts_B = np.zeros(rows.num_rows, bool)
    starts_B[:1] = True
    for name in by:
        values = rows[name].combine_chunks()
        starts_B[1:] |= as_bools(pc.not_equal(values[1:], values[:-1]))
    return starts_B


def any_of_each(starts_B: Bools, is_so_B: Bools) -> Bools:
    """Return for each row whether it is so of any row of its group, [B]."""
    any_of_group = np.logical_or.reduceat(is_so_B, np.flatnonzero(starts_B))
    found: Bools = any_of_group[np.cumsum(starts_B) - 1]
    return found


def as_bools(values: Any) -> Bools:  # noqa: ANN401 - an array, in one or more chunks
    """Return an Arrow array of truths, none of them null."""
    found: Bools = values.to_numpy(zero_copy_only=False).astype(bool)
    return found
