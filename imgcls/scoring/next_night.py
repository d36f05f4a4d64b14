"""Which night is next: an unfinished one that may still be continued, or a new one.

In: the flags of a night. Out: its plan where there is one, or a free run. Invariant: `nightly` and
`plan` ask the same, so that `plan` counts exactly what the night would do; neither torch nor Ray is
imported for it.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from imgcls.config.scoring import NightlyConfig, PlanConfig
from imgcls.config.source_options import listing_flags
from imgcls.errors import BudgetExceededError
from imgcls.image.formats.abilities import AT_27535E0, Abilities, grown
from imgcls.runs.commits import read_commits
from imgcls.runs.held import read_held
from imgcls.runs.ledger import Outdated
from imgcls.runs.plan import Plan, PlannedRows, Shard, read_plan
from imgcls.runs.row_options import RowOptions
from imgcls.runs.run import Run
from imgcls.scoring.executors.executor import Executor, open_executor
from imgcls.scoring.planning.checks import check_config
from imgcls.scoring.planning.decoders import record_of_run
from imgcls.scoring.planning.difference import exclude_published, stage_difference
from imgcls.scoring.planning.planned_model import PlannedModel, check_model, name_model
from imgcls.scoring.planning.shard_sizes import derive_shard_size, shard_sizes
from imgcls.scoring.planning.staging import stage_again
from imgcls.scoring.publishing.retention import is_published
from imgcls.scoring.reporting.failure_budget import Budget

log = logging.getLogger(__name__)

DIFFERENCE = ("new", "changed", "failed_before", "unchanged")


def show_plan(config: PlanConfig) -> dict[str, Any]:
    """Count what a nightly run with the same flags would score, without writing anything.

    Raises:
        ConfigError: as for the night.
    """
    check_config(config)
    model = name_model(config.model)
    with open_executor(config) as executor:
        unfinished, _ = unfinished_or_next(config, model, executor.abilities)
        if unfinished is not None:
            return {"source": config.source, "output": config.output} | _what_is_left(unfinished)
        return _what_is_next(config, model, executor)


def _what_is_next(config: PlanConfig, model: PlannedModel, executor: Executor) -> dict[str, Any]:
    """Return what a new night would do."""
    with stage_difference(config, model, executor.abilities) as found:
        staging, counts = found.staging, found.counts
        num_images = staging.count()
        num_workers = 1
        if num_images:
            check_model(config, model)
            num_workers = executor.count()
        sizes = list(shard_sizes(num_images, config.shard_size, num_workers))
        return {
            "source": config.source,
            "output": config.output,
            "continues": None,
            **counts,
            **found.again(),
            "to_score": num_images,
            **found.skipped(),
            "size_bytes": staging.size_bytes(),
            "shards": len(sizes),
            "shard_size": derive_shard_size(num_images, config.shard_size, num_workers),
        }


def _what_is_left(plan: Plan) -> dict[str, Any]:
    """Return what is left to do of an unfinished night; what came since is the next night's."""
    log.info("the night would continue run %s; what is new since waits for the next", plan.run_id)
    committed = {commit.shard_id for commit in read_commits(plan.run)}
    left = [shard for shard in plan.shards() if shard.shard_id not in committed]
    return {
        "continues": plan.run_id,
        **{name: plan.counts[name] for name in DIFFERENCE},
        "to_score": sum(shard.num_images for shard in left),
        "skipped": plan.counts["skipped"],
        "num_not_listed": plan.num_not_listed,
        "not_listed": plan.not_listed,
        "size_bytes": sum(_sizes(plan, left)),
        "shards": len(left),
        "shard_size": max(plan.shard_rows),
    }


def _sizes(plan: Plan, shards: list[Shard]) -> Iterator[int]:
    planned = PlannedRows(plan)
    for shard in shards:
        yield from planned.of(shard)["size_bytes"].to_pylist()


def unfinished_or_next(
    config: NightlyConfig, model: PlannedModel, abilities: Callable[[], Abilities]
) -> tuple[Plan | None, Run]:
    """Return the plan of an unfinished night to continue, or None and the next free run."""
    free = Run(config.output, "")
    for name in _names(config):
        for number in itertools.count(1):
            free = Run(config.output, name if number == 1 else f"{name}-{number}")
            plan = read_plan(free)
            if plan is None and not free.is_rolled_back():
                break
            if (
                plan is not None
                and _may_continue(config, plan, model)
                and not _would_read_more(config, plan, abilities)
                and not _is_overtaken(config, plan, model, abilities)
            ):
                log.info("continuing run %s", plan.run_id)
                return plan, free
    return None, free


def _names(config: NightlyConfig) -> list[str]:
    """Return the names a night may have: yesterday's too, if it began before midnight (UTC)."""
    if config.run_id:
        return [config.run_id]
    if config.date:
        return [f"nightly-{config.date}"]
    now = datetime.now(UTC)
    return [f"nightly-{day:%Y-%m-%d}" for day in (now - timedelta(days=1), now)]


def _may_continue(config: NightlyConfig, plan: Plan, model: PlannedModel) -> bool:
    """Return whether an earlier plan still is what this night should do."""
    if is_published(plan) or plan.run.is_rolled_back() or read_held(plan.run) is not None:
        return False
    same_model = (plan.model_digest, plan.spec_digest) == (model.digest, model.spec_digest)
    same_images = plan.source == config.source
    same_images &= plan.config.get("retry_failed") == config.retry_failed
    same_images &= listing_flags(plan.config) == listing_flags(vars(config))
    return same_model and same_images and plan.row_options == RowOptions.of(config)


def _is_overtaken(
    config: NightlyConfig, plan: Plan, model: PlannedModel, abilities: Callable[[], Abilities]
) -> bool:
    """Tell whether another night published images of a plan, whatever the clocks of both said.

    They would be there twice. The plan is left alone then, and what is left of it planned again.
    """
    planned = PlannedRows(plan)
    with stage_again(planned.of(shard) for shard in plan.shards()) as staging:
        exclude_published(config, model, staging, abilities, Outdated())
        if staging.num_excluded:
            log.info(
                "run %s is not continued: %d of its images are published by now",
                plan.run_id,
                staging.num_excluded,
            )
        return staging.num_excluded > 0


def _would_read_more(config: NightlyConfig, plan: Plan, abilities: Callable[[], Abilities]) -> bool:
    """Tell whether a night that ended at its failure budget might not, as more is read now."""
    commits = list(read_commits(plan.run))
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
