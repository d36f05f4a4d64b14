"""The plan of a run, as every start of the run reads it.

In: a run. Out: plan.json as a value, and the planned rows of a shard. Invariant: a plan file is
believed only where its bytes are those that plan.json names.
"""

import hashlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ConfigError, ObjectMissingError, SourceError
from imgcls.runs.row_options import RowOptions
from imgcls.runs.run import Run
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import read
from imgcls.storage.records import record_of, record_text, refuse_other_version

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard's place: row group `row_group` of plan file `path`, of `num_images` rows."""

    shard_id: str
    path: str
    row_group: int
    num_images: int


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A Parquet file of planned rows: one row group is one shard."""

    path: str
    sha256: str
    num_shards: int


@dataclass(frozen=True, slots=True)
class ModelDigests:
    """What decides the rows of a model: two equal ones make equal rows of equal pixels."""

    model: str
    """Of the whole bundle."""
    spec: str
    """Of its decode and preprocess spec."""
    network: str = ""
    """Of all that decides probabilities; "" where a version of before knew none."""
    calibration: str = ""
    """Of temperature and thresholds; "" where it has none, or `network` is not known."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What plan.json, the manifest and the rows say alike: the run, its source and its model."""

    run_id: str
    date: str
    source: str
    model: str
    """The reference that was asked for."""
    model_uri: str
    model_digest: str
    spec_digest: str
    counts: dict[str, int]
    num_not_listed: int = 0
    """How many folders and files of the source could not be looked at, or were removed meanwhile:
    what they held is in no row."""
    not_listed: dict[str, str] = field(default_factory=dict)
    """The first of them, each with its reason; all are in plan/skipped-*.jsonl."""
    network_digest: str = ""
    """Of all that decides probabilities; "" in records of versions that had no such digest."""
    calibration_digest: str = ""
    """Of temperature and thresholds; "" where the model has none, or as above."""
    identity_mark: str = ""
    """Which secret key hashed ids of its rows; "" where none are, or as above."""

    @property
    def digests(self) -> ModelDigests:
        """Those of its model."""
        return ModelDigests(
            self.model_digest, self.spec_digest, self.network_digest, self.calibration_digest
        )

    def facts(self) -> dict[str, Any]:
        """Return these by name, to build another record of the same run."""
        return {each.name: getattr(self, each.name) for each in fields(RunFacts)}


# Columns that are the same in all rows of a run: the facts of the run that rows have.
OF_THE_RUN: Final = tuple(
    each.name for each in fields(RunFacts) if each.name in PREDICTION_SCHEMA.names
)


@dataclass(frozen=True, kw_only=True)
class Plan(RunFacts):
    """plan.json: everything a start of this run id needs to know."""

    config: dict[str, Any]
    """The flags of the command that planned it."""
    files: tuple[PlanFile, ...]
    shard_rows: tuple[int, ...]
    created_at: str
    row_options: RowOptions = field(default_factory=RowOptions)
    """What decides its rows, whatever the flags of a later start are."""
    output: str = ""
    """Where it was read from or written to; not in plan.json."""

    @property
    def run(self) -> Run:
        """The places of its run."""
        return Run(self.output, self.run_id)

    @property
    def published(self) -> str:
        """The folder that its run publishes to."""
        return self.run.published(self.date)

    @property
    def is_night(self) -> bool:
        """Whether `nightly` planned it, so that its images are those that no other night scores."""
        return "retry_failed" in self.config

    def shards(self) -> Iterator[Shard]:
        """Yield the shards in order of uri; the ids are their running numbers."""
        numbers = iter(enumerate(self.shard_rows))
        for file in self.files:
            for row_group in range(file.num_shards):
                number, num_images = next(numbers)
                yield Shard(f"{number:06d}", file.path, row_group, num_images)

    def to_json(self) -> bytes:
        """Return the text of plan.json."""
        return record_text(self, format_version=FORMAT_VERSION, indent=1, leave_out=("output",))


def read_plan(run: Run) -> Plan | None:
    """Read the plan of a run, or None when there is none yet.

    Raises:
        ConfigError: what is there is not a plan, or one of another format.
    """
    try:
        text = read(run.plan)
    except ObjectMissingError:
        return None
    found = parse_object(text, run.plan, ConfigError)
    refuse_other_version(found, run.plan, ConfigError, FORMAT_VERSION)
    # Plans of before there were row options have them among the flags.
    found.setdefault("row_options", found.get("config"))
    return replace(record_of(found, run.plan, ConfigError, Plan), output=run.output)


def read_planned(output: str, run_id: str) -> Plan:
    """Read the plan of a run that somebody names.

    Raises:
        SourceError: there is no such run.
        ConfigError: as for `read_plan`.
    """
    plan = read_plan(Run(output, run_id))
    if plan is None:
        raise SourceError(f"{output}: there is no run {run_id}")
    return plan


class PlannedRows:
    """The planned rows of a plan, shard by shard. Thread-safe.

    Holds the plan file that was read last, for the next shard is mostly in the same; let go of it
    when the shards are done.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._lock = threading.Lock()
        self._path, self._data = "", b""

    def of(self, shard: Shard) -> pa.Table:
        """Return the rows of one shard (PLAN_SCHEMA, or with more columns).

        Raises:
            SourceError: the plan file is not the one that plan.json names.
        """
        with self._lock:
            if shard.path != self._path:
                self._path, self._data = "", b""
                self._path, self._data = shard.path, self._read(shard.path)
            data = self._data
        return pq.ParquetFile(io.BytesIO(data)).read_row_group(shard.row_group)

    def _read(self, path: str) -> bytes:
        uri = self.plan.run.file(path)
        [sha256] = [file.sha256 for file in self.plan.files if file.path == path]
        data = read(uri)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SourceError(
                f"{uri}: not the bytes that plan.json names; start a new run, this one cannot be "
                "done"
            )
        return data
