"""The scoring flow from top to bottom: model -> plan -> shards -> commits -> published night.

In: a ScoreConfig. Out: the result of the run as plain values. Invariant: this file alone knows all
stages; every effect they have is safe to repeat, so the same command again finishes what was
stopped anywhere.
"""

import logging
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from imgcls.config.scoring import ScoreConfig
from imgcls.errors import DeviceFailedError, ShardFailedError, StorageError
from imgcls.model.bundle import read_bundle
from imgcls.progress import Progress
from imgcls.runs.commits import read_commits
from imgcls.runs.held import refuse_held
from imgcls.runs.plan import Plan, Shard, read_plan
from imgcls.runs.run import Run
from imgcls.scoring.executors.executor import Executor, open_executor
from imgcls.scoring.planning.carry import Carry
from imgcls.scoring.planning.checks import check_config, check_same_run
from imgcls.scoring.planning.listing import list_source
from imgcls.scoring.planning.plan import write_plan
from imgcls.scoring.planning.planned_model import PlannedModel, check_model, name_model
from imgcls.scoring.planning.shard_sizes import shard_sizes
from imgcls.scoring.planning.staging import Staging, stage
from imgcls.scoring.publishing.after_night import after_night
from imgcls.scoring.publishing.hold import hold_if_changed
from imgcls.scoring.publishing.publish import find_published, publish
from imgcls.scoring.publishing.retention import refuse_rolled_back
from imgcls.scoring.reporting.best_effort import last_word_within_s
from imgcls.scoring.reporting.failure_budget import Budget
from imgcls.scoring.reporting.progress_file import RunProgress
from imgcls.scoring.reporting.result import Scored, describe_run, log_published
from imgcls.scoring.reporting.run_log import RunLog
from imgcls.scoring.shard.worker import ShardSummary
from imgcls.storage.probe import require_conditional_writes

log = logging.getLogger(__name__)

# So many shards that the store failed, one after the other: it is down, not slow.
MAX_FAILED_IN_A_ROW = 8
_WITHOUT_DEVICE = "; where the device fails on the same shard again, add --device cpu."


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score a source and publish its predictions.

    Raises:
        ConfigError: a flag, the source, the model or the store is wrong; nothing was planned.
        BudgetExceededError: too many images failed; commits are kept, nothing is published.
        ShardFailedError: some shards could not be finished; the same run id resumes.
        NightHeldError: --drift hold, and the pictures have changed.
    """
    start_s = time.monotonic()
    check_config(config)
    run = Run(config.output, config.run_id or new_run_id())
    refuse_rolled_back(run)
    with RunLog() as run_log, open_executor(config) as executor:
        plan = read_plan(run) or make_plan(config, run, executor.count())
        check_same_run(config, plan)
        # Of a plan that is resumed, perhaps one of an earlier version, nobody has asked yet.
        require_conditional_writes(config.output)
        result = finish_run(config, plan, executor, run_log)
        result |= after_night(config)
    return result | {"elapsed_s": round(time.monotonic() - start_s, 3)}


def make_plan(config: ScoreConfig, run: Run, num_workers: int) -> Plan:
    """Resolve the model, list the source and write the plan."""
    model = resolve_model(config.model)
    check_model(config, model)
    with stage(list_source(config.source, config)) as staging:
        # The first thing written: a wrong source or model leaves nothing.
        require_conditional_writes(config.output)
        return write_run_plan(config, run, model, staging, {}, num_workers)


def resolve_model(reference: str) -> PlannedModel:
    """Resolve the model and read its bundle whole: a damaged one is found before the plan."""
    model = name_model(reference)
    read_bundle(model.uri)
    return model


def write_run_plan(
    config: ScoreConfig,
    run: Run,
    model: PlannedModel,
    staging: Staging,
    difference: dict[str, int],
    num_workers: int,
) -> Plan:
    """Write the plan of the staged objects for this model, in shards for so many workers."""
    num_images = staging.count()
    return write_plan(
        run,
        staging,
        date=config.date or f"{datetime.now(UTC):%Y-%m-%d}",
        source=config.source,
        model=model,
        config=vars(config),
        shard_sizes=shard_sizes(num_images, config.shard_size, num_workers),
        difference=difference,
        carry=Carry.of(config),
    )


def new_run_id() -> str:
    """Return a readable run id that no other run has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def finish_run(
    config: ScoreConfig,
    plan: Plan,
    executor: Executor,
    run_log: RunLog,
    before_manifest: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do what is left of a planned run: uncommitted shards, then parts, then the manifest."""
    log.info(
        "run %s: %d images in %d shards", plan.run_id, plan.counts["planned"], len(plan.shard_rows)
    )
    scored = Scored()
    manifest = find_published(plan)
    if manifest is None:
        refuse_held(plan.run)
        run_log.belongs_to(plan.run)
        with RunProgress(plan) as progress:
            scored = score_plan(config, plan, executor, progress)
            progress.publishing()
            commits = {commit.shard_id: commit for commit in read_commits(plan.run)}
            if config.drift == "hold":
                hold_if_changed(plan, commits.values(), delta=config.delta)
            manifest = publish(plan, commits, before_manifest)
            log_published(manifest)
    return describe_run(plan, manifest) | scored.to_dict()


def score_plan(
    config: ScoreConfig, plan: Plan, executor: Executor, progress: RunProgress
) -> Scored:
    """Score and commit every shard that has no commit yet."""
    budget, scored = Budget(config.max_failed_fraction), Scored()
    committed = set()
    for commit in read_commits(plan.run):
        committed.add(commit.shard_id)
        budget.add(commit.status_counts, commit.num_failed_again)
        progress.start_from(commit.shard_id, commit.num_rows, commit.status_counts)
    todo = [shard for shard in plan.shards() if shard.shard_id not in committed]
    if committed:
        log.info("%d shards are committed already, %d to do", len(committed), len(todo))
    budget.check(at_end=not todo)
    if not todo:
        return scored
    try:
        _score_shards(plan, todo, executor, progress, budget, scored)
    finally:
        scored.tell(plan.run, last_word_within_s(sys.exception()))
    return scored


def _score_shards(
    plan: Plan,
    todo: list[Shard],
    executor: Executor,
    progress: RunProgress,
    budget: Budget,
    scored: Scored,
) -> None:
    failed: list[ShardSummary] = []
    failed_in_a_row = num_done = 0
    num_images = sum(shard.num_images for shard in todo)
    with (
        closing(executor.run(plan, todo)) as summaries,
        Progress("scoring", num_images, "images") as shown,
    ):
        for summary in summaries:
            for line in summary.log_lines:
                log.warning("%s actor %s: %s", summary.node, summary.actor, line)
            scored.report.add(plan.shard_rows[int(summary.shard_id)], summary, time.monotonic())
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
    if failed:
        raise ShardFailedError(
            f"{len(todo) - num_done} of {len(todo)} shards could not be finished, the first "
            f"({failed[0].shard_id}) because: {failed[0].error_message}. Start the same command "
            f"with --run-id {plan.run_id} to do only those"
            + (_WITHOUT_DEVICE if any(map(_has_device_failed, failed)) else ".")
        )
    budget.check(at_end=True)


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
