"""Write the plan of a run: which objects, cut into which shards, for which model.

In: a stream of listed objects. Out: plan files (Parquet, one row group per shard) and plan.json, in
that order. Invariant: plan.json is written once, by put_new, after the files it names; from then on
every start of this run id works through exactly these rows. Two planners cannot mix: each writes
files of its own names.
"""

import hashlib
import io
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ObjectExistsError, SourceError
from imgcls.runs.plan import Plan, PlanFile, read_plan
from imgcls.runs.row_options import RowOptions
from imgcls.runs.run import Run, plan_path, skipped_path
from imgcls.scoring.planning.carry import Carry
from imgcls.scoring.planning.planned_model import PlannedModel
from imgcls.scoring.planning.staging import Staging
from imgcls.storage.objects import put, put_new

ROWS_PER_PLAN_FILE: Final = 131_072


def write_plan(
    run: Run,
    staging: Staging,
    *,
    date: str,
    source: str,
    model: PlannedModel,
    config: Mapping[str, Any],
    shard_sizes: Iterable[int],
    difference: Mapping[str, int],
    carry: Carry,
) -> Plan:
    """Write the plan files, then plan.json; return the plan that counts: the first one there.

    Args:
        run: the run.
        staging: what it is to score.
        date: of the partition that it publishes to.
        source: that was listed.
        model: that scores.
        config: the flags of the command; those that decide rows become the row options.
        shard_sizes: images of each shard, in order.
        difference: counts of what a night found, for plan.json.
        carry: what is carried from the source into the rows.

    Raises:
        SourceError: the source lists an object twice.
    """
    if twice := staging.duplicate():
        raise SourceError(f"{source} lists {twice} more than once: an image is scored once")
    files, shard_rows = _write_plan_files(run, staging, shard_sizes, carry)
    planned = sum(shard_rows)
    plan = Plan(
        run_id=run.run_id,
        output=run.output,
        date=date,
        source=source,
        model=model.reference,
        model_uri=model.uri,
        model_digest=model.digests.model,
        spec_digest=model.digests.spec,
        network_digest=model.digests.network,
        calibration_digest=model.digests.calibration,
        identity_mark=carry.identity_mark,
        config=dict(config),
        row_options=RowOptions.of_flags(config),
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
    )
    try:
        put_new(run.plan, plan.to_json())
    except ObjectExistsError:
        winner = read_plan(run)
        assert winner is not None, "plan.json exists, put_new said so"
        return winner
    return plan


def _write_plan_files(
    run: Run, staging: Staging, shard_sizes: Iterable[int], carry: Carry
) -> tuple[list[PlanFile], list[int]]:
    """Write the planned rows under names of this planner alone; return files and shard sizes."""
    planner = uuid.uuid4().hex[:8]
    files: list[PlanFile] = []
    shard_rows: list[int] = []
    if carry.cells is not None:
        staging.carry(carry.cells)
    schema = carry.schema(staging.plan_schema)
    writer = _PlanFileWriter(schema)
    for table in staging.sorted_tables(shard_sizes):
        writer.add(carry.added(table))
        shard_rows.append(table.num_rows)
        if writer.num_rows >= ROWS_PER_PLAN_FILE:
            files.append(writer.finish(run, plan_path(len(files), planner)))
            writer = _PlanFileWriter(schema)
    if writer.num_shards:
        files.append(writer.finish(run, plan_path(len(files), planner)))
    if staging.num_skipped:
        put(run.file(skipped_path(planner)), staging.skipped_lines())
    return files, shard_rows


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

    def finish(self, run: Run, path: str) -> PlanFile:
        self._parquet.close()
        data = self._buffer.getvalue()
        put(run.file(path), data)
        return PlanFile(path, hashlib.sha256(data).hexdigest(), self.num_shards)
