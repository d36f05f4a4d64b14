"""The plan of a run: which objects, cut into which shards, for which model.

In: a stream of listed objects. Out: plan files (Parquet, one row group per shard) and plan.json, in
that order. Invariant: plan.json is written once, by put_new, after the files it names; from then on
every start of this run id works through exactly these rows. Two planners cannot mix: each writes
files of its own names.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ConfigError, ObjectExistsError, ObjectMissingError, SourceError
from imgcls.runs.published import ModelDigests
from imgcls.runs.row_options import RowOptions
from imgcls.runs.run import Run
from imgcls.scoring.planning.staging import Staging
from imgcls.storage.json_text import build_record, known_fields, parse_object
from imgcls.storage.objects import exists, put, put_new, read
from imgcls.storage.uri import join

FORMAT_VERSION = 1
ROWS_PER_PLAN_FILE = 131_072


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
    """The flags of the command that planned it; for people."""
    files: tuple[dict[str, Any], ...]
    shard_rows: tuple[int, ...]
    counts: dict[str, int]
    created_at: str
    num_not_listed: int = 0
    """Of those skipped: folders and files that could not be looked at, or were removed meanwhile;
    what they held is in no row."""
    not_listed: dict[str, str] = field(default_factory=dict)
    """The first of them, each with its reason; all are in plan/skipped-*.jsonl."""
    row_options: RowOptions = field(default_factory=RowOptions)
    """What decides its rows, whatever the flags of a later start are."""
    network_digest: str = ""
    """As in the manifest."""
    calibration_digest: str = ""
    """As in the manifest."""

    @property
    def is_night(self) -> bool:
        """Whether `nightly` planned it, so that its images are those that no other night scores."""
        return "retry_failed" in self.config

    def shards(self) -> Iterator[Shard]:
        """Yield the shards in order of uri; the ids are their running numbers."""
        numbers = iter(enumerate(self.shard_rows))
        for file in self.files:
            for row_group in range(file["num_shards"]):
                number, num_images = next(numbers)
                yield Shard(f"{number:06d}", file["path"], row_group, num_images)


def run_uri(output: str, run_id: str) -> str:
    """Return the folder of one run's bookkeeping: OUT/_runs/<run_id>."""
    return Run(output, run_id).uri


def rolled_back_uri(output: str, run_id: str) -> str:
    """Return the marker of a run that was taken back; such a run is never resumed."""
    return Run(output, run_id).rolled_back


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
    changed: dict[str, Any] = {name: tuple(fields[name]) for name in ("files", "shard_rows")}
    # Plans of before there were row options have them among the flags.
    changed["row_options"] = RowOptions.of_flags(fields.get("row_options", fields["config"]))
    return Plan(**known_fields(Plan, fields) | changed)


def read_shard_rows(output: str, plan: Plan, shard: Shard) -> pa.Table:
    """Read the planned rows of one shard (PLAN_SCHEMA, or with failed_before).

    Raises:
        SourceError: the plan file is not the one that plan.json names.
    """
    [sha256] = [file["sha256"] for file in plan.files if file["path"] == shard.path]
    data = _read_plan_file(join(run_uri(output, plan.run_id), shard.path), sha256)
    return pq.ParquetFile(io.BytesIO(data)).read_row_group(shard.row_group)


@lru_cache(maxsize=2)
def _read_plan_file(uri: str, sha256: str) -> bytes:
    """Read a plan file; it never changes, and a worker's next shard is mostly in the same."""
    data = read(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SourceError(
            f"{uri}: not the bytes that plan.json names; start a new run, this one cannot be done"
        )
    return data


def write_plan(
    output: str,
    staging: Staging,
    *,
    run_id: str,
    date: str,
    source: str,
    model: str,
    model_uri: str,
    digests: ModelDigests,
    config: dict[str, Any],
    row_options: RowOptions | None = None,
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
        model_digest=digests.model,
        spec_digest=digests.spec,
        network_digest=digests.network,
        calibration_digest=digests.calibration,
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
        num_not_listed=staging.num_not_listed,
        not_listed=staging.not_listed,
        row_options=row_options or RowOptions(),
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
