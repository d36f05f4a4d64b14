"""Commit a shard: its rows become an attempt, the first attempt becomes the commit.

In: a shard's table. Out: OUT/_runs/<run_id>/attempts/<shard>-<uuid>.parquet, then
commits/<shard>.json. Invariant: a shard has at most one commit, made by put_new after its attempt
is stored whole. Whoever comes second (a twin run, a worker that woke up late) finds the commit made
and changes nothing.
"""

import hashlib
import io
import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.errors import ObjectExistsError, SourceError
from imgcls.schema import FAILED_BEFORE_FIELD, NOT_FAILED, Status
from imgcls.storage.json_text import known_fields, parse_record
from imgcls.storage.objects import list_objects, put, put_new, read
from imgcls.storage.uri import join

READS_IN_FLIGHT = 16
_COMMIT_NAME = re.compile(r"/commits/(\d+)\.json$")


@dataclass(frozen=True)
class Commit:
    """The record that makes one attempt the outcome of its shard."""

    shard_id: str
    attempt: str
    sha256: str
    num_rows: int
    status_counts: dict[str, int]
    num_failed_again: int = 0
    """Rows of images that failed and had failed in an earlier night already."""
    decoders: dict[str, Any] | None = None
    """What the decoders of this shard could read, and by which versions; see decoders.py."""


def commit_shard(
    run: str,
    shard_id: str,
    table: pa.Table,
    *,
    num_failed_again: int = 0,
    decoders: dict[str, Any] | None = None,
) -> Commit:
    """Store a shard's rows and commit them; return the commit that counts, ours or an earlier one.

    Args:
        run: the run's folder.
        shard_id: the shard.
        table: PREDICTION_SCHEMA rows of the whole shard.
        num_failed_again: as in the commit.
        decoders: as in the commit.

    Raises:
        StorageError: nothing was committed, or CommitStateUnknownError: that could not be learnt.
            Either way the
            shard may safely be scored again.
    """
    data = to_parquet(table)
    commit = Commit(
        shard_id=shard_id,
        attempt=f"attempts/{shard_id}-{uuid.uuid4().hex}.parquet",
        sha256=hashlib.sha256(data).hexdigest(),
        num_rows=table.num_rows,
        status_counts=count_statuses(table),
        num_failed_again=num_failed_again,
        decoders=decoders,
    )
    put(join(run, commit.attempt), data)
    uri = join(run, "commits", f"{shard_id}.json")
    try:
        put_new(uri, json.dumps(asdict(commit)).encode())
    except ObjectExistsError:
        return _parse_commit(read(uri), uri)
    return commit


def _parse_commit(data: bytes, uri: str) -> Commit:
    return parse_record(
        data, uri, SourceError, lambda fields: Commit(**known_fields(Commit, fields))
    )


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
    """Return the planned images that failed in an earlier night already."""
    name = FAILED_BEFORE_FIELD.name
    if name not in planned.column_names:
        return frozenset()
    return frozenset(planned["uri"].filter(planned[name]).to_pylist())


def count_failed_again(planned: pa.Table, rows: pa.Table) -> int:
    """Count the rows of images that failed, and had failed in an earlier night already."""
    before = pa.array(sorted(uris_failed_before(planned)), pa.string())
    is_no_failure = pc.is_in(rows["status"].cast(pa.string()), value_set=pa.array(NOT_FAILED))
    is_again = pc.is_in(rows["uri"], value_set=before)
    return int(pc.sum(pc.and_(is_again, pc.invert(is_no_failure))).as_py() or 0)


def read_commits(run: str) -> Iterator[Commit]:
    """Yield every commit of a run, in order of shard, several reads in flight."""
    uris = (info.uri for info in list_objects(join(run, "commits")))
    named = sorted(uri for uri in uris if _COMMIT_NAME.search(uri))
    pool = ThreadPoolExecutor(READS_IN_FLIGHT)
    try:
        for uri, data in zip(named, pool.map(read, named), strict=True):
            yield _parse_commit(data, uri)
    finally:
        # Not waited for: a run that is stopped must not sit out a store that stalls.
        pool.shutdown(wait=False, cancel_futures=True)
