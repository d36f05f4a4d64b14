"""Commit a shard: its rows become an attempt, the first attempt becomes the commit.

In: a shard's tables. Out: OUT/_runs/<run_id>/attempts/<shard>-<uuid>.parquet, the same below
facts/, then commits/<shard>.json. Invariant: a shard has at most one commit, made by put_new after
its attempt is stored whole. Whoever comes second (a twin run, a worker that woke up late) finds the
commit made and changes nothing.
"""

import hashlib
import io
import uuid
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.errors import ObjectExistsError
from imgcls.runs.commits import Commit, CommittedFile, parse_commit
from imgcls.runs.row_keys import image_keys
from imgcls.runs.run import Run, attempt_path, facts_path, tiles_path
from imgcls.schema import FAILED_BEFORE_FIELD, NOT_FAILED, Status
from imgcls.storage.objects import put, put_new, read
from imgcls.storage.records import record_text


def commit_shard(
    run: Run,
    shard_id: str,
    table: pa.Table,
    *,
    num_failed_again: int = 0,
    decoders: dict[str, Any] | None = None,
    facts: pa.Table | None = None,
    greys: dict[str, int] | None = None,
    tiles: pa.Table | None = None,
) -> Commit:
    """Store a shard's rows and commit them; return the commit that counts, ours or an earlier one.

    Args:
        run: the run.
        shard_id: the shard.
        table: PREDICTION_SCHEMA rows of the whole shard.
        num_failed_again: as in the commit.
        decoders: as in the commit.
        facts: FACTS_SCHEMA, in the order of `table`; its pictures are for the owner alone.
        greys: as in the commit.
        tiles: TILES_SCHEMA rows of the whole shard, where they are wanted.

    Raises:
        StorageError: nothing was committed, or CommitStateUnknownError: that could not be learnt.
            Either way the
            shard may safely be scored again.
    """
    data, writer = to_parquet(table), uuid.uuid4().hex
    commit = Commit(
        shard_id=shard_id,
        attempt=attempt_path(shard_id, writer),
        sha256=hashlib.sha256(data).hexdigest(),
        num_rows=table.num_rows,
        status_counts=count_statuses(table),
        num_failed_again=num_failed_again,
        decoders=decoders,
        facts=facts_path(shard_id, writer) if facts is not None else "",
        greys=greys or {},
    )
    put(run.file(commit.attempt), data)
    if facts is not None:
        put(run.file(commit.facts), to_parquet(facts), is_private=True)
    if tiles is not None:
        tile_data = to_parquet(tiles)
        path = tiles_path(shard_id, writer)
        put(run.file(path), tile_data)
        file = CommittedFile(path, hashlib.sha256(tile_data).hexdigest(), tiles.num_rows)
        commit = replace(commit, tiles=file)
    uri = run.commit(shard_id)
    try:
        put_new(uri, record_text(commit))
    except ObjectExistsError:
        return parse_commit(read(uri), uri)
    return commit


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of a whole Parquet file, built in memory."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def count_statuses(table: pa.Table) -> dict[str, int]:
    """Count rows by status."""
    counted = pc.value_counts(table["status"].cast(pa.string()))
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def count_kinds(table: pa.Table) -> dict[str, int]:
    """Count the files that are not images by what they are, in the words of their rows."""
    is_none = pc.equal(table["status"].cast(pa.string()), Status.NOT_AN_IMAGE.value)
    counted = pc.value_counts(table["error"].filter(is_none))
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}


def uris_failed_before(planned: pa.Table) -> frozenset[str]:
    """Return the planned objects that failed in an earlier night already."""
    return frozenset(_failed_before(planned)["uri"].to_pylist())


def count_failed_again(planned: pa.Table, rows: pa.Table) -> int:
    """Count the rows of images that failed, and had failed in an earlier night already."""
    before = pc.unique(image_keys(_failed_before(planned)))
    is_no_failure = pc.is_in(rows["status"].cast(pa.string()), value_set=pa.array(NOT_FAILED))
    is_again = pc.is_in(image_keys(rows), value_set=before)
    return int(pc.sum(pc.and_(is_again, pc.invert(is_no_failure))).as_py() or 0)


def _failed_before(planned: pa.Table) -> pa.Table:
    name = FAILED_BEFORE_FIELD.name
    return planned.filter(planned[name]) if name in planned.column_names else planned.slice(0, 0)
