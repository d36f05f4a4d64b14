"""Prove that no night scored what another had: each image is published once.

In: an output prefix. Out: in words, which nights hold the same rows. Invariant: a row is known by
(uri, member, frame, etag, network, spec, decoders); of all nights one alone holds it, but for those
that were asked to score failures again. `score` scores what it is asked to; repeats are counted.

Memory: the rows are compared on local disk by DuckDB, see on_disk.py. Where a small run is asked
about, of all others only the rows of its images are.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from imgcls.in_order import in_order
from imgcls.runs.plan import read_plan
from imgcls.runs.published import (
    PARTS_AHEAD,
    Manifest,
    Part,
    list_published,
    read_columns,
    with_comparable_etags,
)
from imgcls.runs.row_keys import with_members
from imgcls.runs.run import Run
from imgcls.schema import ASKED_AGAIN, MEMBER_FIELD, NOTHING_LEARNT, READ_LATER
from imgcls.scoring.planning.on_disk import any_of_each, open_on_disk, starts_of, whole_groups
from imgcls.scratch import scratch_folder

log = logging.getLogger(__name__)
_COLUMNS = ["uri", "frame", "etag", "status"]
_KEY = ("uri", "member", "frame", "etag")
# Rows that another night may hold too: nothing was learnt of the version that was planned, or there
# is more to be learnt by now.
_TRIED_AGAIN = (*NOTHING_LEARNT, *ASKED_AGAIN, *READ_LATER)
_SMALL_ROWS = 262_144


@dataclass(frozen=True)
class _Run:
    """A published run, and what it was asked for."""

    folder: str
    manifest: Manifest
    is_night: bool
    retry_failed: bool


@dataclass
class Twice:
    """What was found: differences in words, and rows that `score` was asked to repeat."""

    problems: list[str]
    num_repeated: int = 0


def find_twice(output: str, run_id: str = "") -> Twice:
    """Compare the published runs of an output with each other.

    Args:
        output: the output prefix.
        run_id: only rows that this run holds; "" for those of every run.
    """
    found = Twice([])
    for runs in _comparable(output):
        if len(runs) > 1 and any(run.manifest.run_id == run_id or not run_id for run in runs):
            with scratch_folder("verify") as folder:
                _compare(runs, run_id, folder, found)
    return found


def _comparable(output: str) -> Iterator[list[_Run]]:
    """Yield the published runs of one network, one spec and one state of the decoders each."""
    alike: dict[tuple[str, str, str], list[_Run]] = defaultdict(list)
    published = list(list_published(output))
    # Versions that differ in thresholds alone are one; what an older imgcls published says no
    # network digest, and is compared with all others of its very version.
    network_by_model = {m.model_digest: m.network_digest for _, m in published if m.network_digest}
    plans = in_order(read_plan, [Run(output, manifest.run_id) for _, manifest in published])
    for (folder, manifest), plan in zip(published, plans, strict=True):
        decoders = json.dumps(manifest.decoders, sort_keys=True)
        is_night = plan is not None and plan.is_night
        retry_failed = plan is not None and bool(plan.config.get("retry_failed"))
        network = network_by_model.get(manifest.model_digest, manifest.model_digest)
        alike[network, manifest.spec_digest, decoders].append(
            _Run(folder, manifest, is_night, retry_failed)
        )
    yield from alike.values()


def _compare(runs: list[_Run], run_id: str, folder: str, found: Twice) -> None:
    database = open_on_disk(folder)
    try:
        database.execute(
            "CREATE TABLE published (uri VARCHAR, member VARCHAR, frame INTEGER, etag VARCHAR,"
            " ok BOOLEAN, run_id VARCHAR, is_night BOOLEAN, retry_failed BOOLEAN)"
        )
        # First: then only its images are taken of all others.
        runs = sorted(runs, key=lambda run: run.manifest.run_id != run_id)
        is_small = bool(run_id) and runs[0].manifest.counts["rows"] <= _SMALL_ROWS
        parts = ((run, part) for run in runs for part in run.manifest.parts)
        for run, rows in in_order(_read, parts, PARTS_AHEAD):
            _insert(database, run, rows, of_first=is_small and run is not runs[0])
        _keep_repeated(database)
        found.problems += _list_problems(database, run_id)
        found.num_repeated += _count_repeated(database, run_id)
    finally:
        database.close()


def _read(found: tuple[_Run, Part]) -> tuple[_Run, pa.Table]:
    run, part = found
    table = with_members(read_columns(run.folder, part, (*_COLUMNS, MEMBER_FIELD.name)))
    status = table.schema.get_field_index("status")
    table = with_comparable_etags(table)
    return run, table.set_column(status, "status", table["status"].cast(pa.string()))


def _insert(
    database: duckdb.DuckDBPyConnection, run: _Run, rows: pa.Table, *, of_first: bool
) -> None:
    """Take in rows; `of_first`: only those of images that are there already."""
    database.register("part", rows)
    database.execute(
        "INSERT INTO published SELECT uri, member, frame, etag, status = 'ok', ?, ?, ?"  # noqa: S608
        f" FROM {'part SEMI JOIN published USING (uri, member)' if of_first else 'part'}"
        " WHERE NOT list_contains(?, status)",
        [run.manifest.run_id, run.is_night, run.retry_failed, [str(s) for s in _TRIED_AGAIN]],
    )
    database.unregister("part")


def _keep_repeated(database: duckdb.DuckDBPyConnection) -> None:
    """Keep the rows that are there more than once as the table `repeated`: there are few."""
    database.execute("CREATE TABLE repeated AS FROM published LIMIT 0")
    query = (
        "SELECT * REPLACE (coalesce(frame, -1) AS frame) FROM published"
        " ORDER BY uri, member, coalesce(frame, -1), etag"
    )
    for rows in whole_groups(database, query, _KEY):
        starts_B = starts_of(rows, _KEY)
        repeated = rows.filter(pa.array(any_of_each(starts_B, ~starts_B)))
        if repeated.num_rows:
            database.register("part", repeated)
            database.execute("INSERT INTO repeated FROM part")
            database.unregister("part")


def _list_problems(database: duckdb.DuckDBPyConnection, run_id: str) -> Iterator[str]:
    """Yield one sentence for each two nights that hold the same rows."""
    # Of min, max and count the state has a fixed size, which DuckDB can move to disk.
    pairs = database.execute(
        "WITH twice AS (SELECT uri, min(run_id) AS one, max(run_id) AS other FROM repeated"
        " WHERE is_night GROUP BY uri, member, frame, etag"
        # A failure may be there again where that was asked for, a success never.
        " HAVING (count(*) FILTER (ok) > 1 OR count(*) FILTER (NOT retry_failed) > 1)"
        " AND (? = '' OR count(*) FILTER (run_id = ?) > 0))"
        " SELECT one, other, count(*), min(uri) FROM twice GROUP BY one, other ORDER BY one, other",
        [run_id, run_id],
    ).fetchall()
    for one, other, num_rows, uri in pairs:
        yield (
            f"{num_rows} rows of run {one} are published by run {other} too, the first of {uri}: "
            "roll one of the two back, and the next night scores what is missing then"
        )


def _count_repeated(database: duckdb.DuckDBPyConnection, run_id: str) -> int:
    """Return how many rows other runs hold too because `score` was asked for them."""
    [(num_repeated,)] = database.execute(
        "SELECT coalesce(sum(num), 0) FROM (SELECT count(*) - 1 AS num FROM repeated"
        " GROUP BY uri, member, frame, etag HAVING count(*) > 1 AND NOT bool_and(is_night)"
        " AND (? = '' OR count(*) FILTER (run_id = ?) > 0))",
        [run_id, run_id],
    ).fetchall()
    if num_repeated:
        log.info("%d rows were scored again by score; readers find them twice", num_repeated)
    return int(num_repeated)
