"""Which row of an image counts where several runs scored it: the one scored last.

In: published rows. Out: the latest ones. Invariant: the rows of one image come from one run, so
that frames of two nights never mix; whoever asks for "latest" asks here.
"""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.errors import SourceError
from imgcls.runs.published import list_published
from imgcls.schema import MEMBER_FIELD
from imgcls.storage.objects import read
from imgcls.storage.uri import join


def latest_of(relation: str) -> str:
    """Return the SQL of the rows of a relation that count: the rule as a database has it.

    Args:
        relation: Name of a relation with uri, member (never null), run_id and scored_at; all rows
            of an image that are of one run have the same scored_at.
    """
    return (
        f"SELECT * FROM {relation} QUALIFY rank() OVER"  # noqa: S608 - a name of ours
        " (PARTITION BY uri, member ORDER BY scored_at DESC, run_id DESC) = 1"
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
        _plain(pq.read_table(io.BytesIO(read(join(folder, part.path)))))
        for folder, manifest in list_published(output)
        for part in manifest.parts
    ]
    if not tables:
        raise SourceError(f"nothing is published under {output}: score writes there first")
    table = pa.concat_tables(tables, promote_options="default")
    member = MEMBER_FIELD.name
    key = ["uri", member] if member in table.column_names else ["uri"]
    newest = table.group_by([*key, "run_id"]).aggregate([("scored_at", "max")])
    newest = newest.sort_by(
        [*((name, "ascending") for name in key), ("scored_at_max", "descending")]
    )
    chosen = newest.group_by(key, use_threads=False).aggregate([("run_id", "first")])
    names = pa.array(range(len(chosen)))
    chosen = chosen.rename_columns({"run_id_first": "run_id"}).append_column("_chosen", names)
    # A join leaves out rows whose key is null: a member is null where the file itself is the image.
    if member in key:
        table = table.set_column(
            table.schema.get_field_index(member), member, pc.fill_null(table[member], "")
        )
        chosen = chosen.set_column(
            chosen.schema.get_field_index(member), member, pc.fill_null(chosen[member], "")
        )
    numbered = table.select([*key, "run_id"]).append_column("_row", pa.array(range(len(table))))
    kept = numbered.join(chosen, [*key, "run_id"], join_type="inner")
    rows = table.take(kept["_row"])
    if member in key:
        cleared = pc.if_else(pc.equal(rows[member], ""), pa.scalar(None, pa.string()), rows[member])
        rows = rows.set_column(rows.schema.get_field_index(member), member, cleared)
    order = [(name, "ascending") for name in (*key, "frame")]
    return rows.sort_by(order)


def _plain(table: pa.Table) -> pa.Table:
    """Return a table with plain strings: dictionaries of several files do not join."""
    fields = [
        pa.field(
            field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        )
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))
