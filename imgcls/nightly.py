"""A night: lease -> plan the difference -> score -> publish -> verify -> what comes after.

In: a NightlyConfig. Out: the night's result as plain values. Invariant: under the lease, an image
of one (uri, etag) is published once per model and decode spec, however often the night is started
or killed.
"""

import logging
import time
from typing import Any

from imgcls.config.scoring import NightlyConfig, VerifyConfig
from imgcls.scoring.driver import finish_run, resolve_model, write_run_plan
from imgcls.scoring.executors.executor import Executor, open_executor
from imgcls.scoring.next_night import DIFFERENCE, unfinished_or_next
from imgcls.scoring.planning.checks import check_config
from imgcls.scoring.planning.difference import stage_difference
from imgcls.scoring.planning.planned_model import check_model
from imgcls.scoring.publishing.after_night import after_night
from imgcls.scoring.publishing.lease import Lease
from imgcls.scoring.publishing.verify import verify
from imgcls.scoring.reporting.run_log import RunLog
from imgcls.storage.probe import require_conditional_writes

log = logging.getLogger(__name__)


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
    with (
        RunLog() as run_log,
        Lease(config.output, name) as lease,
        open_executor(config) as executor,
    ):
        result = _publish_what_is_new(config, executor, run_log, lease)
        result |= after_night(config)
    return result | {"elapsed_s": round(time.monotonic() - start_s, 3)}


def _publish_what_is_new(
    config: NightlyConfig, executor: Executor, run_log: RunLog, lease: Lease
) -> dict[str, Any]:
    model = resolve_model(config.model)
    plan, run = unfinished_or_next(config, model, executor.abilities)
    again: dict[str, Any] = {}
    if plan is None:
        with stage_difference(config, model, executor.abilities) as found:
            staging, counts, again = found.staging, found.counts, found.again()
            if staging.count() == 0:
                log.info("nothing new: %s", counts)
                return _nothing_new(config, counts) | again | found.skipped()
            check_model(config, model)
            plan = write_run_plan(config, run, model, staging, counts, executor.count())
    result = finish_run(config, plan, executor, run_log, before_manifest=lease.renew)
    verify(VerifyConfig(config.output, plan.run_id))
    difference = {name: plan.counts[name] for name in DIFFERENCE}
    return result | again | {"difference": difference, "verified": True}


def _nothing_new(config: NightlyConfig, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "run_id": None,
        "output": config.output,
        "rows": 0,
        "rows_ok": 0,
        "difference": counts,
    }
