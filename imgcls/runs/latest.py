"""Which row of an image counts where several runs scored it: the one scored last.

In: published rows. Out: the latest ones. Invariant: the rows of one image come from one run, so
that frames of two nights never mix; whoever asks for "latest" asks here.
"""

from collections.abc import Container, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from imgcls.errors import SourceError
from imgcls.runs.published import files_of, list_published, read_whole
from imgcls.runs.row_keys import with_members
from imgcls.schema import MEMBER_FIELD, plain_field


def latest_of(relation: str) -> str:
    """Return the SQL of the rows of a relation that count: the rule as a database has it.

    Args:
        relation: Name of a relation with uri, member, run_id and scored_at; all rows
            of an image that are of one run have the same scored_at.
    """
    return (
        f"SELECT * FROM {relation} QUALIFY rank() OVER"  # noqa: S608 - a name of ours
        " (PARTITION BY uri, member ORDER BY scored_at DESC, run_id DESC) = 1"
    )


def latest_units_of(relation: str) -> str:
    """Return the SQL of the rows of units that count: the highest version of each.

    Args:
        relation: Name of a relation with unit, uri, member, version and run_id.
    """
    return (
        f"SELECT * FROM {relation} QUALIFY row_number() OVER (PARTITION BY unit,"  # noqa: S608
        " CASE WHEN unit IS NULL THEN uri END, CASE WHEN unit IS NULL THEN member END"
        " ORDER BY version DESC, run_id DESC) = 1"
    )


def is_later(row: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Tell whether a row of another run takes the place of what was kept of the same image."""
    later: bool = (row["scored_at"], row["run_id"]) > (kept["scored_at"], kept["run_id"])
    return later


def read_latest(output: str) -> pa.Table:
    """Return the latest rows of every image of an output, sorted by uri.

    Of an image with frames these are several rows, of one run. Columns that only some runs have are
    null in the rows of the others. Memory grows with the rows.

    Args:
        output: What `score` or `nightly` wrote to.

    Raises:
        SourceError: nothing is published there.
    """
    tables = [
        _plain(read_whole(folder, part))
        for night in list_published(output)
        for folder, part in files_of(output, night)
    ]
    if not tables:
        raise SourceError(f"nothing is published under {output}: score writes there first")
    table = pa.concat_tables(tables, promote_options="default")
    keys = with_members(table).select(["uri", MEMBER_FIELD.name, "run_id", "scored_at"])
    with duckdb.connect() as database:
        database.register("keys", keys.append_column("row", pa.array(range(table.num_rows))))
        found = database.sql(latest_of("keys")).to_arrow_table()
    rows = table.take(found["row"])
    order = [name for name in ("uri", MEMBER_FIELD.name, "frame") if name in rows.column_names]
    return rows.sort_by([(name, "ascending") for name in order])


def read_latest_units(output: str, run_ids: Container[str] | None = None) -> pa.Table:
    """Return the latest row of every unit of an output (GROUPS_SCHEMA), sorted by unit.

    Args:
        output: What `score` or `nightly` wrote to.
        run_ids: Of these runs alone; of all by default.

    Raises:
        SourceError: no run with --unit is published there.
    """
    tables = [
        read_whole(folder, file)
        for night in list_published(output)
        if run_ids is None or night[1].run_id in run_ids
        for folder, file in files_of(output, night, of_units=True)
    ]
    if not tables:
        raise SourceError(f"no units are published under {output}: score with --unit writes them")
    table = with_members(pa.concat_tables(tables))
    with duckdb.connect() as database:
        keys = table.select(["unit", "uri", MEMBER_FIELD.name, "version", "run_id"])
        database.register("keys", keys.append_column("row", pa.array(range(table.num_rows))))
        found = database.sql(latest_units_of("keys")).to_arrow_table()
    rows = table.take(found["row"])
    return rows.sort_by([("unit", "ascending"), ("uri", "ascending")])


def _plain(table: pa.Table) -> pa.Table:
    """Return a table with plain strings: dictionaries of several files do not join."""
    return table.cast(pa.schema(map(plain_field, table.schema)))
