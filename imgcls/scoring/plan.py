"""The plan of a run: which objects, cut into which shards, for which model.

In: a stream of listed objects. Out: plan files (Parquet, one row group per shard) and plan.json, in
that order. Invariant: plan.json is written once, by put_new, after the files it names; from then on
every start of this run id works through exactly these rows. Two planners cannot mix: each writes
files of its own names.

Memory: the listing is staged on local disk and sorted there by DuckDB, so a plan of a hundred
million keys needs no more memory than one of a thousand.
"""

import hashlib
import io
import json
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ConfigError, ObjectExistsError, ObjectMissingError, SourceError
from imgcls.logs import Progress
from imgcls.schema import FAILED_BEFORE_FIELD, PLAN_SCHEMA
from imgcls.storage.json_text import build_record, parse_object
from imgcls.storage.objects import ObjectInfo, Skipped, exists, put, put_new, read
from imgcls.storage.uri import join

FORMAT_VERSION = 1
ROWS_PER_PLAN_FILE = 131_072
_STAGE_ROWS = 16_384
_SORT_MEMORY = "128MB"


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard's place: row group `row_group` of plan file `path`, of `num_images` rows."""

    shard_id: str
    path: str
    row_group: int
    num_images: int


@dataclass(frozen=True)
class Plan:
    """plan.json: everything a start of this run id needs to know."""

    run_id: str
    date: str
    source: str
    model: str
    model_uri: str
    model_digest: str
    spec_digest: str
    config: dict[str, Any]
    files: tuple[dict[str, Any], ...]
    shard_rows: tuple[int, ...]
    counts: dict[str, int]
    created_at: str

    def shards(self) -> Iterator[Shard]:
        """Yield the shards in order of uri; the ids are their running numbers."""
        numbers = iter(enumerate(self.shard_rows))
        for file in self.files:
            for row_group in range(file["num_shards"]):
                number, num_images = next(numbers)
                yield Shard(f"{number:06d}", file["path"], row_group, num_images)


def run_uri(output: str, run_id: str) -> str:
    """Return the folder of one run's bookkeeping: OUT/_runs/<run_id>."""
    return join(output, "_runs", run_id)


def rolled_back_uri(output: str, run_id: str) -> str:
    """Return the marker of a run that was taken back; such a run is never resumed."""
    return join(run_uri(output, run_id), "rolled_back.json")


def is_rolled_back(output: str, run_id: str) -> bool:
    """Return whether a run was taken back."""
    return exists(rolled_back_uri(output, run_id))


def read_plan(output: str, run_id: str) -> Plan | None:
    """Read the plan of a run, or None when there is none yet."""
    uri = join(run_uri(output, run_id), "plan.json")
    try:
        text = read(uri)
    except ObjectMissingError:
        return None
    fields = parse_object(text, uri, ConfigError)
    version = fields.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"run {run_id} was planned by another version of imgcls (plan format {version}, this "
            f"one reads {FORMAT_VERSION}): finish it there or start a new run id"
        )
    return build_record(fields, uri, ConfigError, _plan_of)


def _plan_of(fields: dict[str, Any]) -> Plan:
    return Plan(
        **fields | {"files": tuple(fields["files"]), "shard_rows": tuple(fields["shard_rows"])}
    )


def read_shard_rows(output: str, plan: Plan, shard: Shard) -> pa.Table:
    """Read the planned rows of one shard (PLAN_SCHEMA, or with failed_before)."""
    data = _read_plan_file(join(run_uri(output, plan.run_id), shard.path))
    return pq.ParquetFile(io.BytesIO(data)).read_row_group(shard.row_group)


@lru_cache(maxsize=2)
def _read_plan_file(uri: str) -> bytes:
    """Read a plan file; it never changes, and a worker's next shard is mostly in the same."""
    return read(uri)


class Staging:
    """The listed objects on local disk, to be counted, compared and sorted in bounded memory."""

    def __init__(self, folder: str) -> None:
        self._database = duckdb.connect(
            str(Path(folder) / "staging.duckdb"),
            config={"memory_limit": _SORT_MEMORY, "threads": 1, "temp_directory": folder},
        )
        self._database.execute("SET TimeZone = 'UTC'")
        self._database.execute(
            "CREATE TABLE listing (uri VARCHAR, etag VARCHAR, size_bytes BIGINT,"
            " last_modified TIMESTAMPTZ, version_id VARCHAR, failed_before BOOLEAN DEFAULT false)"
        )
        self._skipped = Path(folder) / "skipped.jsonl"
        self.num_skipped = self.num_excluded = 0
        self.planned_again: dict[str, int] = {}
        self.plan_schema = PLAN_SCHEMA

    def fill(self, entries: Iterable[ObjectInfo | Skipped]) -> None:
        """Stage a listing, showing its count and rate as it goes."""
        batch: list[ObjectInfo] = []
        with Progress("listing", None, "objects") as progress:
            for entry in entries:
                if isinstance(entry, Skipped):
                    self._skip(entry)
                    continue
                batch.append(entry)
                if len(batch) == _STAGE_ROWS:
                    self._insert(batch)
                    progress.advance(len(batch))
                    batch = []
            self._insert(batch)
            progress.advance(len(batch))

    def _skip(self, entry: Skipped) -> None:
        self.num_skipped += 1
        line = json.dumps({"uri": entry.uri, "reason": entry.reason})
        with self._skipped.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")

    def skipped_lines(self) -> bytes:
        """Return the skipped keys with their reasons, one JSON object a line."""
        return self._skipped.read_bytes() if self.num_skipped else b""

    def _insert(self, batch: list[ObjectInfo]) -> None:
        columns = {name: [getattr(info, name) for info in batch] for name in PLAN_SCHEMA.names}
        staged = pa.table(columns, schema=PLAN_SCHEMA)
        self._database.register("staged", staged)
        self._database.execute("INSERT INTO listing SELECT *, false FROM staged")
        self._database.unregister("staged")

    def exclude(self, published: Iterable[pa.Table], *, retry_failed: bool) -> dict[str, int]:
        """Drop what is published already with the same etag; return counts of what was found.

        What stays although it is published is counted in `planned_again`: of images that were ok,
        as pixels_moved, and of others, as failed_before.

        Args:
            published: tables of uri, etag, status and, where some rows are not current, is_current
                (see ledger.py); any number of rows for one object.
            retry_failed: keep objects that are published, but never with status ok.

        Returns:
            new (never published), changed (published with other etags only, or with other pixels),
            failed_before (published, never ok) and unchanged (published, ok).
        """
        self._database.execute(
            "CREATE TABLE rows (uri VARCHAR, etag VARCHAR, ok BOOLEAN, done BOOLEAN)"
        )
        for table in published:
            if "is_current" not in table.column_names:
                table = table.append_column("is_current", pa.array([True] * table.num_rows))
            self._database.register("staged", table)
            # `missing` and `changed` say nothing of the version that was planned: had it been read,
            # it might well be ok. Only of an object that was never there is `missing` the outcome.
            # What was `unreadable` is tried every night: its owner may have opened it.
            self._database.execute(
                "INSERT INTO rows SELECT uri, etag, status = 'ok',"
                " is_current AND status <> 'unreadable' FROM staged"
                " WHERE etag = '' OR status NOT IN ('missing', 'changed')"
            )
            self._database.unregister("staged")
        self._database.execute(
            "CREATE TABLE ledger AS SELECT uri, etag, bool_or(ok) AS ok, bool_or(done) AS done"
            " FROM rows GROUP BY ALL; DROP TABLE rows"
        )
        [counts] = self._database.sql(
            "SELECT count(*) FILTER (ledger.uri IS NULL AND known.uri IS NULL),"
            " count(*) FILTER (ledger.uri IS NULL AND known.uri IS NOT NULL"
            " OR ledger.ok AND NOT ledger.done),"
            " count(*) FILTER (NOT ledger.ok), count(*) FILTER (ledger.ok AND ledger.done)"
            " FROM listing LEFT JOIN ledger USING (uri, etag)"
            " LEFT JOIN (SELECT DISTINCT uri FROM ledger) AS known ON known.uri = listing.uri"
        ).fetchall()
        self._database.execute(
            "DELETE FROM listing USING ledger WHERE listing.uri = ledger.uri"
            " AND listing.etag = ledger.etag AND ledger.done AND (ledger.ok OR NOT ?)",
            [retry_failed],
        )
        self.num_excluded = sum(counts) - self.count()
        self._mark_planned_again()
        return dict(zip(("new", "changed", "failed_before", "unchanged"), counts, strict=True))

    def _mark_planned_again(self) -> None:
        """Mark what failed in an earlier night; it is judged apart from what is new."""
        self._database.execute(
            "UPDATE listing SET failed_before = true FROM ledger WHERE listing.uri = ledger.uri"
            " AND listing.etag = ledger.etag AND NOT ledger.ok"
        )
        [(moved, failed)] = self._database.sql(
            "SELECT count(*) FILTER (ledger.ok), count(*) FILTER (NOT ledger.ok)"
            " FROM listing JOIN ledger USING (uri, etag)"
        ).fetchall()
        self.planned_again = {"pixels_moved": moved, "failed_before": failed}
        if failed:
            self.plan_schema = PLAN_SCHEMA.append(FAILED_BEFORE_FIELD)

    def count(self) -> int:
        """Return the number of staged objects."""
        return int(self._database.sql("SELECT count(*) FROM listing").fetchall()[0][0])

    def duplicate(self) -> str:
        """Return a uri that is staged more than once, or ""; a plan must name each once."""
        found = self._database.sql(
            "SELECT uri FROM listing GROUP BY uri HAVING count(*) > 1 LIMIT 1"
        ).fetchall()
        return str(found[0][0]) if found else ""

    def size_bytes(self) -> int:
        """Return the total size of the staged objects."""
        sizes = self._database.sql("SELECT coalesce(sum(size_bytes), 0) FROM listing").fetchall()
        return int(sizes[0][0])

    def sorted_tables(self, sizes: Iterable[int]) -> Iterator[pa.Table]:
        """Yield the objects sorted by uri, in tables of these sizes, as far as there are any."""
        left = iter(sizes)
        num_rows = next(left, 0)
        columns = ", ".join(self.plan_schema.names)
        batches = (
            self._database.table("listing")
            .project(columns)
            .order("uri")
            .to_arrow_reader(_STAGE_ROWS)
        )
        held: list[pa.RecordBatch] = []
        held_rows = 0
        for batch in batches:
            held.append(batch)
            held_rows += batch.num_rows
            while held_rows >= num_rows > 0:
                table = pa.Table.from_batches(held)
                yield table.slice(0, num_rows).cast(self.plan_schema)
                held = table.slice(num_rows).to_batches()
                held_rows -= num_rows
                num_rows = next(left, 0)
        if held_rows:
            yield pa.Table.from_batches(held).cast(self.plan_schema)

    def close(self) -> None:
        """Close the database; its files go with the folder."""
        self._database.close()


@contextmanager
def stage(entries: Iterable[ObjectInfo | Skipped]) -> Iterator[Staging]:
    """Stage a listing in a temporary folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="imgcls-plan-", ignore_cleanup_errors=True) as folder:
        staging = Staging(folder)
        try:
            staging.fill(entries)
            yield staging
        finally:
            staging.close()


def write_plan(
    output: str,
    staging: Staging,
    *,
    run_id: str,
    date: str,
    source: str,
    model: str,
    model_uri: str,
    model_digest: str,
    spec_digest: str,
    config: dict[str, Any],
    shard_sizes: Iterable[int],
    difference: dict[str, int],
) -> Plan:
    """Write the plan files, then plan.json; return the plan that counts: the first one there."""
    if staging.duplicate():
        raise SourceError(
            f"{source} lists {staging.duplicate()} more than once: an image is scored once"
        )
    run = run_uri(output, run_id)
    planner = uuid.uuid4().hex[:8]
    files: list[dict[str, Any]] = []
    shard_rows: list[int] = []
    writer = _PlanFileWriter(staging.plan_schema)
    for table in staging.sorted_tables(shard_sizes):
        writer.add(table)
        shard_rows.append(table.num_rows)
        if writer.num_rows >= ROWS_PER_PLAN_FILE:
            files.append(writer.finish(run, f"plan/{len(files):05d}-{planner}.parquet"))
            writer = _PlanFileWriter(staging.plan_schema)
    if writer.num_shards:
        files.append(writer.finish(run, f"plan/{len(files):05d}-{planner}.parquet"))
    if staging.num_skipped:
        put(join(run, f"plan/skipped-{planner}.jsonl"), staging.skipped_lines())
    planned = sum(shard_rows)
    plan = Plan(
        run_id=run_id,
        date=date,
        source=source,
        model=model,
        model_uri=model_uri,
        model_digest=model_digest,
        spec_digest=spec_digest,
        config=config,
        files=tuple(files),
        shard_rows=tuple(shard_rows),
        counts={
            "listed": planned + staging.num_skipped + staging.num_excluded,
            "planned": planned,
            "skipped": staging.num_skipped,
            **difference,
        },
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    text = json.dumps({"format_version": FORMAT_VERSION} | asdict(plan), indent=1)
    try:
        put_new(join(run, "plan.json"), text.encode())
    except ObjectExistsError:
        winner = read_plan(output, run_id)
        assert winner is not None, "plan.json exists, put_new said so"
        return winner
    return plan


class _PlanFileWriter:
    """One plan file in memory: a row group per shard."""

    def __init__(self, schema: pa.Schema) -> None:
        self.num_shards = self.num_rows = 0
        self._buffer = io.BytesIO()
        self._parquet = pq.ParquetWriter(self._buffer, schema, compression="zstd")

    def add(self, table: pa.Table) -> None:
        self._parquet.write_table(table, row_group_size=max(1, table.num_rows))
        self.num_shards += 1
        self.num_rows += table.num_rows

    def finish(self, run: str, path: str) -> dict[str, Any]:
        self._parquet.close()
        data = self._buffer.getvalue()
        put(join(run, path), data)
        sha256 = hashlib.sha256(data).hexdigest()
        return {"path": path, "sha256": sha256, "num_shards": self.num_shards}
