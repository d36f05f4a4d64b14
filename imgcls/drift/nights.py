"""A night and the nights before it, as the gate sees them.

In: the plan of a run whose shards are all committed, and the published runs of its output. Out:
observed.zip and drift.json beside the run. Invariant: it reads what the run left, no image; and
what it leaves is for people and for later nights: no row depends on it.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa

from imgcls.data.keys import Key
from imgcls.drift.gate import judge
from imgcls.drift.observed import Observed, Observing, parse_observed
from imgcls.drift.record import Finding, Judged, read_judged
from imgcls.drift.reference import read_reference
from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.in_order import in_order
from imgcls.model.bundle import BundleFacts, read_facts
from imgcls.runs.commits import Commit, read_attempt, read_commits
from imgcls.runs.facts import read_facts as read_facts_of_shard
from imgcls.runs.ledger import is_same_network
from imgcls.runs.plan import Plan
from imgcls.runs.published import Manifest, Night, open_part, read_columns
from imgcls.runs.run import Run
from imgcls.schema import ROW_COLUMNS
from imgcls.storage.objects import exists, put, read
from imgcls.storage.records import record_text

# So many nights before are one side of the comparison; of small ones so many are looked through.
NUM_BEFORE: Final = 14
_MAX_SMALL: Final = 60
_COLUMNS: Final = ("status", "class_name", "confidence", "decision", "last_modified")
NO_REFERENCE: Final = (
    "this model has no reference: its nights are compared with the nights before alone. Give it "
    "one: imgcls reference --model REGISTRY/NAME@production --source IMAGES"
)

log = logging.getLogger(__name__)


def judge_run(plan: Plan, nights: Sequence[Night], manifest: Manifest | None = None) -> Judged:
    """Judge a run, and leave what was observed and found beside it.

    Args:
        plan: of the run; every shard has its commit.
        nights: the published runs of its output.
        manifest: of the run, where it is published.
    """
    facts = read_facts(plan.model_uri)
    until = manifest.published_at if manifest is not None else "9999"
    earlier = [m for _, m in nights if _is_before(plan, m, until)]
    earlier.sort(key=lambda one: (one.published_at, one.run_id), reverse=True)
    night = observe_run(plan, facts, manifest)
    put(plan.run.observed, night.to_bytes(), is_private=True)
    small, before, accepted, has_said = _read_before(plan.output, earlier)
    calibration = facts.calibration.to_dict() if facts.calibration is not None else None
    reference = read_reference(plan.model_uri, calibration)
    judged = judge(plan.run_id, night, reference, before, small=small, accepted=accepted)
    put(plan.run.drift, record_text(judged, indent=1), is_private=True)
    if reference is None and not has_said:
        log.info("%s", NO_REFERENCE)
    return judged


def tell(judged: Judged) -> None:
    """Say what was found in the log."""
    if judged.state == "changed":
        for finding in judged.findings:
            log.warning("the pictures have changed: %s", finding.sentence)
        return
    log.info("%s", judged.sentence)
    for finding in judged.accepted:
        log.info("as in a night that was released: %s", finding.sentence)


def observe_run(plan: Plan, facts: BundleFacts, manifest: Manifest | None) -> Observed:
    """Return a sample of what a run saw."""
    commits = list(read_commits(plan.run))
    tables = _rows_by_shard(plan, commits, manifest)
    first = next(tables, None)
    carried: list[str] = []
    if first is not None:
        carried = [name for name in first.column_names if name not in ROW_COLUMNS]
        tables = itertools.chain([first], tables)
    observing = Observing(carried, _unit_of(facts))
    for rows, commit in zip(tables, commits, strict=True):
        try:
            seen = read_facts_of_shard(plan.run, commit, pictures=False)
        except ObjectMissingError:
            continue  # somebody removed it
        if seen.num_rows == rows.num_rows:
            observing.add(rows, seen)
    return observing.done({"run_id": plan.run_id, "date": plan.date})


def _rows_by_shard(
    plan: Plan, commits: Sequence[Commit], manifest: Manifest | None
) -> Iterator[pa.Table]:
    """Yield the rows of each shard, of what is watched: from the parts, or from the attempts."""
    if manifest is None:
        for commit in commits:
            rows = read_attempt(plan.run, commit)
            yield rows.select(_watched(rows.column_names))
        return
    sizes = (commit.num_rows for commit in commits)
    for part in manifest.parts:
        names = _watched(open_part(plan.published, part).schema_arrow.names)
        rows, start = read_columns(plan.published, part, names), 0
        for num_rows in itertools.islice(sizes, part.num_shards):
            yield rows.slice(start, num_rows)
            start += num_rows


def _watched(names: Iterable[str]) -> list[str]:
    return [name for name in names if name in _COLUMNS or name not in ROW_COLUMNS]


def _unit_of(facts: BundleFacts) -> str:
    """Return the column that tells what belongs together, as the training of the model had it."""
    group = str((facts.training.get("config") or {}).get("group") or "")
    try:
        return Key.parse(group, "--group").column if group else ""
    except ConfigError:
        return ""


def _is_before(plan: Plan, other: Manifest, until: str) -> bool:
    """Tell whether another run is an earlier one of the same network."""
    if other.run_id == plan.run_id or other.published_at > until:
        return False
    return is_same_network(plan.digests, other.digests)


def _read_before(
    output: str, earlier: Sequence[Manifest]
) -> tuple[list[tuple[str, Observed]], list[Observed], list[Finding], bool]:
    """Read earlier nights, the latest first.

    Returns:
        Those just before that were too small to be judged, the others, what was accepted in all of
        them, and whether any of them was looked at.
    """
    small: list[tuple[str, Observed]] = []
    before: list[Observed] = []
    accepted: list[Finding] = []
    has_said = False
    runs = [Run(output, manifest.run_id) for manifest in earlier[: NUM_BEFORE + _MAX_SMALL]]
    for run, judged in zip(runs, in_order(read_judged, runs), strict=True):
        if judged is None:
            continue
        has_said = True
        # No other was ever held.
        if judged.state == "changed" and exists(run.released):
            accepted += [*judged.findings, *judged.accepted]
        if len(before) == NUM_BEFORE:
            continue
        try:
            observed = parse_observed(read(run.observed))
        except (ObjectMissingError, ValueError):
            continue
        if judged.state == "accumulates" and not before:
            small.append((run.run_id, observed))
        else:
            before.append(observed)
    return small[::-1], before[::-1], accepted, has_said
