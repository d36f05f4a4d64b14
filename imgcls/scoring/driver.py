"""The scoring flow from top to bottom: model -> plan -> shards -> commits -> published night.

In: a ScoreConfig. Out: the result of the run as plain values. Invariant: this file alone knows all
stages; every effect they have is safe to repeat, so the same command again finishes what was
stopped anywhere.
"""

import json
import logging
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from imgcls.config.choices import check_name
from imgcls.config.paths import canonical_value
from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ConfigError, DeviceFailedError, ShardFailedError, StorageError
from imgcls.image.versions import describe_moved
from imgcls.logs import Progress
from imgcls.model.bundle import read_bundle
from imgcls.runs.published import Manifest, published_uri, read_manifest
from imgcls.runs.row_options import RowOptions
from imgcls.schema import Status
from imgcls.scoring.executors.executor import Workers
from imgcls.scoring.planning.listing import covers, list_source
from imgcls.scoring.planning.plan import Plan, Shard, read_plan, run_uri, write_plan
from imgcls.scoring.planning.planned_model import PlannedModel, name_model
from imgcls.scoring.planning.shard_sizes import MAX_SHARD_SIZE, MIN_SHARD_SIZE, shard_sizes
from imgcls.scoring.planning.staging import Staging, stage
from imgcls.scoring.publishing.publish import publish
from imgcls.scoring.publishing.retention import refuse_rolled_back
from imgcls.scoring.reporting.best_effort import last_word_within_s, put_within
from imgcls.scoring.reporting.failure_budget import Budget
from imgcls.scoring.reporting.node_report import NodeReport
from imgcls.scoring.reporting.progress_file import RunProgress
from imgcls.scoring.reporting.run_log import RunLog
from imgcls.scoring.shard.commit import read_commits
from imgcls.scoring.shard.int8_run import check_can_calibrate
from imgcls.scoring.shard.stage_clock import StageDicts, add_stages, describe_bottleneck
from imgcls.scoring.shard.worker import ShardSummary
from imgcls.storage.probe import require_conditional_writes
from imgcls.storage.uri import is_inside, join

log = logging.getLogger(__name__)

# So many shards that the store failed, one after the other: it is down, not slow.
MAX_FAILED_IN_A_ROW = 8
_WITHOUT_DEVICE = "; where the device fails on the same shard again, add --device cpu."
_PLACES = ("source", "model")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score a source and publish its predictions.

    Raises:
        ConfigError: a flag, the source, the model or the store is wrong; nothing was planned.
        BudgetExceededError: too many images failed; commits are kept, nothing is published.
        ShardFailedError: some shards could not be finished; the same run id resumes.
    """
    start_s = time.monotonic()
    check_config(config)
    run_id = config.run_id or new_run_id()
    refuse_rolled_back(config.output, run_id)
    with RunLog() as run_log, Workers(config) as workers:
        plan = read_plan(config.output, run_id) or make_plan(config, run_id, workers.count())
        check_same_run(config, plan)
        # Of a plan that is resumed, perhaps one of an earlier version, nobody has asked yet.
        require_conditional_writes(config.output)
        result = finish_run(config, plan, workers, run_log)
    return result | {"elapsed_s": round(time.monotonic() - start_s, 3)}


def finish_run(
    config: ScoreConfig,
    plan: Plan,
    workers: Workers,
    run_log: RunLog,
    before_manifest: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do what is left of a planned run: uncommitted shards, then parts, then the manifest."""
    log.info(
        "run %s: %d images in %d shards", plan.run_id, plan.counts["planned"], len(plan.shard_rows)
    )
    scored = Scored()
    manifest = read_manifest(published_uri(config.output, plan.date, plan.run_id))
    if manifest is None:
        run = run_uri(config.output, plan.run_id)
        run_log.belongs_to(run)
        with RunProgress(config.output, plan) as progress:
            scored = score_plan(config, plan, workers, progress)
            progress.publishing()
            commits = {commit.shard_id: commit for commit in read_commits(run)}
            manifest = publish(config.output, plan, commits, before_manifest)
            _log_published(manifest)
    return describe_run(config.output, plan, manifest) | scored.to_dict()


def _log_published(manifest: Manifest) -> None:
    """Say which files were none, which images nobody saw, and which the model saw otherwise."""
    if manifest.num_not_listed:
        log.warning(
            "%d folders or files could not be listed, such as %s: their images are not scored",
            manifest.num_not_listed,
            next(iter(manifest.not_listed)),
        )
    for kind, count in manifest.not_an_image.items():
        log.info("not an image: %d x %s", count, kind)
    if manifest.moved_formats:
        log.warning("%s", describe_moved(manifest.moved_formats))


def check_config(config: ScoreConfig) -> None:
    """Refuse flags that cannot work, before anything is read or written."""
    if config.run_id:
        check_name(config.run_id, "--run-id")
    if config.date:
        try:
            written = date.fromisoformat(config.date).isoformat()
        except ValueError:
            written = ""
        if written != config.date:
            raise ConfigError(f"--date {config.date}: not a date; write it as 2026-11-22")
    if config.shard_size and not MIN_SHARD_SIZE <= config.shard_size <= MAX_SHARD_SIZE:
        raise ConfigError(
            f"--shard-size {config.shard_size}: must be {MIN_SHARD_SIZE} to {MAX_SHARD_SIZE}"
        )
    if config.top_k < 1:
        raise ConfigError(f"--top-k {config.top_k}: must be at least 1")
    if config.batch_size < 0:
        raise ConfigError(f"--batch-size {config.batch_size}: must be 1 or more, or 0 to derive it")
    if not 0 <= config.max_failed_fraction <= 1:
        raise ConfigError(f"--max-failed-fraction {config.max_failed_fraction}: must be 0 to 1")
    is_inside_links = "*" not in config.source and is_inside(config.output, config.source)
    if is_inside_links or covers(config.source, join(config.output, "part-00000.parquet")):
        raise ConfigError(
            f"--output {config.output} lies inside --source {config.source}: predictions would "
            "be scored as images. Choose an output beside the source."
        )


def new_run_id() -> str:
    """Return a readable run id that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def resolve_model(reference: str) -> PlannedModel:
    """Resolve a reference and read its bundle whole: a damaged one is found before the plan."""
    model = name_model(reference)
    read_bundle(model.uri)
    return model


def make_plan(config: ScoreConfig, run_id: str, num_workers: int) -> Plan:
    """Resolve the model, list the source and write the plan."""
    model = resolve_model(config.model)
    with stage(list_source(config.source)) as staging:
        # The first thing written: a wrong source or model leaves nothing.
        require_conditional_writes(config.output)
        return write_run_plan(config, run_id, model, staging, {}, num_workers)


def write_run_plan(
    config: ScoreConfig,
    run_id: str,
    model: PlannedModel,
    staging: Staging,
    difference: dict[str, int],
    num_workers: int,
) -> Plan:
    """Write the plan of the staged objects for this model, in shards for so many workers."""
    num_images = staging.count()
    if config.precision == "int8":
        check_can_calibrate(config.output, model.digest, num_images)
    return write_plan(
        config.output,
        staging,
        run_id=run_id,
        date=config.date or today(),
        source=config.source,
        model=model.reference,
        model_uri=model.uri,
        digests=model.digests,
        config=asdict(config),
        row_options=RowOptions.of(config),
        shard_sizes=shard_sizes(num_images, config.shard_size, num_workers),
        difference=difference,
    )


def today() -> str:
    """Return the date in UTC, as partitions write it."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def check_same_run(config: ScoreConfig, plan: Plan) -> None:
    """Refuse to resume a night, or a run with flags that would change its rows."""
    if plan.is_night:
        raise ConfigError(
            f"run {plan.run_id} is a night: go on with it by nightly, which holds the lease of "
            "the output and knows what other nights published"
        )
    # Plans of before flags were made canonical have places as they were typed.
    planned = {name: canonical_value(ScoreConfig, name, getattr(plan, name)) for name in _PLACES}
    changed = next((name for name in _PLACES if planned[name] != getattr(config, name)), "")
    asked = RowOptions.of(config)
    changed = changed or plan.row_options.difference(asked)
    if changed:
        before = planned.get(changed) or getattr(plan.row_options, changed)
        raise ConfigError(
            f"run {plan.run_id} was planned with --{changed.replace('_', '-')} {before}, not "
            f"{getattr(config, changed)}: resume it with the same flags, or choose another --run-id"
        )
    if config.date and config.date != plan.date:
        raise ConfigError(
            f"run {plan.run_id} was planned with --date {plan.date}, not {config.date}: its rows "
            f"are those of {plan.date}. For another day choose another --run-id."
        )


@dataclass
class Scored:
    """What one start of a run scored: the sum of its summaries."""

    num_rows: int = 0
    backends: set[str] = field(default_factory=set)
    stages: StageDicts = field(default_factory=dict)
    report: NodeReport = field(default_factory=NodeReport)

    def add(self, summary: ShardSummary) -> None:
        """Count a shard that was committed now."""
        self.num_rows += summary.num_rows
        self.backends.add(summary.backend)
        self.stages = add_stages(self.stages, summary.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return it as the run's result tells it."""
        return {
            "rows_scored_now": self.num_rows,
            "engines": sorted(self.backends),
            "stages": self.stages,
            "bottleneck": describe_bottleneck(self.stages) if self.stages else "",
            "nodes": self.report.to_dict(),
            "stragglers": self.report.stragglers(),
        }


def score_plan(config: ScoreConfig, plan: Plan, workers: Workers, progress: RunProgress) -> Scored:
    """Score and commit every shard that has no commit yet."""
    budget, scored = Budget(config.max_failed_fraction), Scored()
    committed = set()
    for commit in read_commits(run_uri(config.output, plan.run_id)):
        committed.add(commit.shard_id)
        budget.add(commit.status_counts, commit.num_failed_again)
        progress.start_from(commit.shard_id, commit.num_rows, commit.status_counts)
    todo = [shard for shard in plan.shards() if shard.shard_id not in committed]
    if committed:
        log.info("%d shards are committed already, %d to do", len(committed), len(todo))
    budget.check(at_end=not todo)
    if not todo:
        return scored
    run = run_uri(config.output, plan.run_id)
    try:
        _score_shards(plan, todo, workers, progress, budget, scored)
    finally:
        _report(run, scored, last_word_within_s(sys.exception()))
    return scored


def _score_shards(
    plan: Plan,
    todo: list[Shard],
    workers: Workers,
    progress: RunProgress,
    budget: Budget,
    scored: Scored,
) -> None:
    failed: list[ShardSummary] = []
    failed_in_a_row = num_done = 0
    summaries = workers.run(plan, todo)
    try:
        with Progress("scoring", sum(shard.num_images for shard in todo), "images") as shown:
            for summary in summaries:
                for line in summary.log_lines:
                    log.warning("%s actor %s: %s", summary.node, summary.actor, line)
                num_images = plan.shard_rows[int(summary.shard_id)]
                scored.report.add(num_images, summary, time.monotonic())
                if summary.error_kind:
                    failed.append(_only_if_transient(summary))
                    failed_in_a_row += 1
                    if failed_in_a_row == MAX_FAILED_IN_A_ROW:
                        break
                    continue
                failed_in_a_row = 0
                num_done += 1
                scored.add(summary)
                progress.add(summary)
                budget.add(summary.status_counts, summary.num_failed_again)
                shown.advance(summary.num_rows, budget.note())
                budget.check()
    finally:
        summaries.close()
    if failed:
        raise ShardFailedError(
            f"{len(todo) - num_done} of {len(todo)} shards could not be finished, the first "
            f"({failed[0].shard_id}) because: {failed[0].error_message}. Start the same command "
            f"with --run-id {plan.run_id} to do only those"
            + (_WITHOUT_DEVICE if any(map(_has_device_failed, failed)) else ".")
        )
    budget.check(at_end=True)


def _report(run: str, scored: Scored, within_s: float) -> None:
    """Tell who did what in the log, and beside the run if its store takes it."""
    if not scored.report.to_dict():
        return
    for line in scored.report.lines():
        log.info("%s", line)
    if scored.stages:
        log.info("%s", describe_bottleneck(scored.stages))
    report = json.dumps(scored.to_dict(), indent=1).encode()
    put_within(join(run, "report.json"), report, within_s)


def _has_device_failed(summary: ShardSummary) -> bool:
    return summary.error_kind == DeviceFailedError.__name__


def _only_if_transient(summary: ShardSummary) -> ShardSummary:
    """Let a shard that the store or its device failed wait for the next start, else raise."""
    error = summary.error()
    is_of_store = isinstance(error, StorageError) and error.exit_code == 1
    if is_of_store or isinstance(error, DeviceFailedError):
        log.warning("shard %s failed: %s", summary.shard_id, error)
        return summary
    assert error is not None, "called for a failed shard"
    raise error


def describe_run(output: str, plan: Plan, manifest: Manifest) -> dict[str, Any]:
    """Return the published run as its result tells it; its counts are the manifest's."""
    folder = published_uri(output, plan.date, plan.run_id)
    num_rows = manifest.counts["rows"]
    num_ok = manifest.status_counts.get(Status.OK, 0)
    return {
        "run_id": plan.run_id,
        "output": folder,
        "parts": [join(folder, part["path"]) for part in manifest.parts],
        "model_digest": plan.model_digest,
        "listed": plan.counts["listed"],
        "skipped": plan.counts["skipped"],
        "num_not_listed": plan.num_not_listed,
        "not_listed": plan.not_listed,
        "rows": num_rows,
        "rows_ok": num_ok,
        "rows_not_ok": num_rows - num_ok,
        "status_counts": manifest.status_counts,
        "not_an_image": manifest.not_an_image,
        "moved_formats": list(manifest.moved_formats),
    }
