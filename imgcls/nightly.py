"""A night: lease -> plan the difference -> score -> publish -> verify -> report.

In: a NightlyConfig. Out: the night's result as plain values. Invariant: under the lease, an image
of one (uri, etag) is published once per model and decode spec, however often the night is started
or killed.
"""

import itertools
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from imgcls.config.scoring import NightlyConfig, VerifyConfig
from imgcls.errors import BudgetExceededError
from imgcls.image.formats.abilities import AT_27535E0, Abilities, grown
from imgcls.runs.ledger import Outdated
from imgcls.runs.row_options import RowOptions
from imgcls.scoring.driver import (
    check_config,
    finish_run,
    resolve_model,
    write_run_plan,
)
from imgcls.scoring.executors.executor import Workers
from imgcls.scoring.planning.decoders import record_of_run
from imgcls.scoring.planning.difference import exclude_published, show_plan, stage_difference
from imgcls.scoring.planning.plan import (
    Plan,
    is_rolled_back,
    read_plan,
    read_shard_rows,
    run_uri,
)
from imgcls.scoring.planning.planned_model import PlannedModel
from imgcls.scoring.planning.staging import stage_again
from imgcls.scoring.publishing.lease import Lease
from imgcls.scoring.publishing.retention import is_published
from imgcls.scoring.publishing.verify import verify
from imgcls.scoring.reporting.failure_budget import Budget
from imgcls.scoring.reporting.run_log import RunLog
from imgcls.scoring.shard.commit import read_commits
from imgcls.storage.probe import require_conditional_writes

log = logging.getLogger(__name__)

__all__ = ["nightly", "show_plan"]

DIFFERENCE = ("new", "changed", "failed_before", "unchanged")


def nightly(config: NightlyConfig) -> dict[str, Any]:
    """Score and publish what is new or changed since the last published run.

    Raises:
        LeaseHeldError: another run writes to this output.
        ConfigError, BudgetExceededError, ShardFailedError: as for `score`.
    """
    start_s = time.monotonic()
    check_config(config)
    name = config.run_id or "nightly"
    # The lease is the first thing that rests on it.
    require_conditional_writes(config.output)
    with RunLog() as run_log, Lease(config.output, name) as lease, Workers(config) as workers:
        model = resolve_model(config.model)
        plan, run_id = _unfinished_or_next(config, model, workers.abilities)
        again: dict[str, Any] = {}
        if plan is None:
            with stage_difference(config, model, workers.abilities) as found:
                staging, counts, again = found.staging, found.counts, found.again()
                if staging.count() == 0:
                    log.info("nothing new: %s", counts)
                    again |= found.skipped()
                    return _nothing_new(config, counts, time.monotonic() - start_s) | again
                plan = write_run_plan(config, run_id, model, staging, counts, workers.count())
        result = finish_run(config, plan, workers, run_log, before_manifest=lease.renew)
        verify(VerifyConfig(config.output, plan.run_id))
    difference = {name: plan.counts[name] for name in DIFFERENCE}
    elapsed_s = round(time.monotonic() - start_s, 3)
    result |= again
    return result | {"difference": difference, "verified": True, "elapsed_s": elapsed_s}


def _nothing_new(config: NightlyConfig, counts: dict[str, int], elapsed_s: float) -> dict[str, Any]:
    return {
        "run_id": None,
        "output": config.output,
        "rows": 0,
        "rows_ok": 0,
        "difference": counts,
        "elapsed_s": round(elapsed_s, 3),
    }


def _unfinished_or_next(
    config: NightlyConfig, model: PlannedModel, abilities: Callable[[], Abilities]
) -> tuple[Plan | None, str]:
    """Return the plan of an unfinished night to go on with, or the next free run id."""
    free = ""
    for name in _names(config):
        for number in itertools.count(1):
            free = name if number == 1 else f"{name}-{number}"
            plan = read_plan(config.output, free)
            if plan is None and not is_rolled_back(config.output, free):
                break
            if (
                plan is not None
                and _may_go_on(config, plan, model)
                and not _would_read_more(config, plan, abilities)
                and not _is_overtaken(config, plan, model, abilities)
            ):
                log.info("going on with run %s", plan.run_id)
                return plan, plan.run_id
    return None, free


def _names(config: NightlyConfig) -> list[str]:
    """Return the names a night may have: yesterday's too, if it began before midnight (UTC)."""
    if config.run_id:
        return [config.run_id]
    if config.date:
        return [f"nightly-{config.date}"]
    now = datetime.now(UTC)
    return [f"nightly-{day:%Y-%m-%d}" for day in (now - timedelta(days=1), now)]


def _may_go_on(config: NightlyConfig, plan: Plan, model: PlannedModel) -> bool:
    """Return whether an earlier plan still is what this night should do."""
    if is_published(config.output, plan) or is_rolled_back(config.output, plan.run_id):
        return False
    same_model = (plan.model_digest, plan.spec_digest) == (model.digest, model.spec_digest)
    same_images = plan.source == config.source
    same_images &= plan.config.get("retry_failed") == config.retry_failed
    return same_model and same_images and plan.row_options == RowOptions.of(config)


def _is_overtaken(
    config: NightlyConfig, plan: Plan, model: PlannedModel, abilities: Callable[[], Abilities]
) -> bool:
    """Tell whether another night published images of a plan, whatever the clocks of both said.

    They would be there twice. The plan is left alone then, and what is left of it planned again.
    """
    planned = (read_shard_rows(config.output, plan, shard) for shard in plan.shards())
    with stage_again(planned) as staging:
        exclude_published(config, model, staging, abilities, Outdated())
        if staging.num_excluded:
            log.info(
                "run %s is not gone on with: %d of its images are published by now",
                plan.run_id,
                staging.num_excluded,
            )
        return staging.num_excluded > 0


def _would_read_more(config: NightlyConfig, plan: Plan, abilities: Callable[[], Abilities]) -> bool:
    """Tell whether a night that ended at its failure budget might not, as more is read now."""
    commits = list(read_commits(run_uri(config.output, plan.run_id)))
    budget = Budget(config.max_failed_fraction)
    for commit in commits:
        budget.add(commit.status_counts, commit.num_failed_again)
    try:
        budget.check(at_end=len(commits) == len(plan.shard_rows))
    except BudgetExceededError:
        record = record_of_run(commit.decoders for commit in commits)
        then, now = (record or {"reads": AT_27535E0})["reads"], abilities()
        return any(grown(family, then, now) for family in now)
    return False
