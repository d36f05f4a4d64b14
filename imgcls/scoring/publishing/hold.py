"""Hold a night whose pictures have changed; release it when a person has looked.

In: a run whose shards are all committed. Out: held.json, or a published night. Invariant: a run
that is held is published by `release` alone; kill -9 of either, anywhere, and the same command
again ends in the same.
"""

import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from imgcls.config.choices import check_name
from imgcls.config.scoring import ReleaseConfig, ScoreConfig, VerifyConfig
from imgcls.drift.nights import judge_run, tell
from imgcls.drift.record import read_judged
from imgcls.errors import ConfigError, ObjectExistsError
from imgcls.report.changes import write_held_page
from imgcls.runs.commits import Commit, read_commits
from imgcls.runs.held import Held, read_held, refuse_held
from imgcls.runs.plan import Plan, read_planned
from imgcls.runs.published import list_published
from imgcls.scoring.planning.decoders import record_of_run
from imgcls.scoring.publishing.after_night import after_night
from imgcls.scoring.publishing.publish import find_published, publish
from imgcls.scoring.publishing.retention import refuse_rolled_back
from imgcls.scoring.publishing.verify import verify
from imgcls.scoring.reporting.result import describe_run
from imgcls.storage.objects import put_first, put_new
from imgcls.storage.records import record_text
from imgcls.storage.uri import canonical

log = logging.getLogger(__name__)


def hold_if_changed(plan: Plan, commits: Iterable[Commit], *, delta: bool) -> None:
    """Judge a run before it is published, and hold it if its pictures have changed.

    Args:
        plan: of the run.
        commits: of all its shards.
        delta: whether a Delta table is to be kept of it, once it is released.

    Raises:
        NightHeldError: it is held now.
    """
    judged = judge_run(plan, list(list_published(plan.output)))
    tell(judged)
    if judged.state != "changed":
        return
    held = Held(
        sentence=judged.sentence,
        held_at=_now(),
        decoders=record_of_run(commit.decoders for commit in commits),
        delta=delta,
    )
    # For the person who decides, so it is there first.
    write_held_page(plan.run, plan.date, judged)
    put_first(plan.run.held, record_text(held, indent=1))
    refuse_held(plan.run)


def release(config: ReleaseConfig) -> dict[str, Any]:
    """Run `imgcls release`: publish a run that was held.

    Returns:
        As `imgcls score`, and `released`: the sentence that the run was held for.

    Raises:
        SourceError: there is no such run.
        ConfigError: it is not held, or was rolled back.
    """
    check_name(config.run_id, "--run-id")
    output = canonical(config.output)
    plan = read_planned(output, config.run_id)
    run = plan.run
    refuse_rolled_back(run)
    held = read_held(run)
    if held is None:
        raise ConfigError(f"{output}: run {config.run_id} is not held; there is nothing to release")
    # First: from here on its changes count as accepted, and nothing but this command goes on.
    try:
        put_new(run.released, json.dumps({"released_at": _now()}).encode())
    except ObjectExistsError:
        log.info("run %s was released before; finishing that", config.run_id)
    # One that was killed behind the manifest: its attempts may be gone by now.
    manifest = find_published(plan)
    manifest = manifest or publish(plan, {c.shard_id: c for c in read_commits(run)})
    log.info("released: %s", held.sentence)
    verify(VerifyConfig(output, config.run_id))
    result = describe_run(plan, manifest)
    result |= after_night(ScoreConfig(plan.source, plan.model, output, delta=held.delta))
    judged = read_judged(run)
    if judged is not None:
        write_held_page(run, plan.date, judged)  # whoever is sent there reads how it ended
    return result | {"released": held.sentence, "verified": True}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
