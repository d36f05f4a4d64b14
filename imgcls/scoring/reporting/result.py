"""What a run tells at its end: as a result, in the log and beside the run.

In: summaries of shards, the manifest, and a few columns of the published rows. Out: plain values,
lines, report.json. Whoever finds out more adds a sentence by `add_line`. Invariant: counts
of the published run are the manifest's, whoever scored it; what this start did is told apart.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from imgcls.image.versions import describe_moved
from imgcls.logs import tell
from imgcls.report.sentence import sentence_of
from imgcls.runs.plan import Plan
from imgcls.runs.published import Manifest, read_columns
from imgcls.runs.run import Run
from imgcls.schema import Status, UnitStatus
from imgcls.scoring.reporting.best_effort import put_within
from imgcls.scoring.reporting.node_report import NodeReport
from imgcls.scoring.shard.stage_clock import StageDicts, add_stages, describe_bottleneck
from imgcls.scoring.shard.worker import ShardSummary
from imgcls.storage.uri import join

log = logging.getLogger(__name__)
_NEW_BITS: Final = "new_bits_"
_NUM_EXAMPLES: Final = 2
_MAX_CLASSES_TOLD: Final = 8
_MAX_CLASSES: Final = 50


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

    def tell(self, run: Run, within_s: float) -> None:
        """Tell who did what in the log, and beside the run if its store takes it."""
        if not self.report.to_dict():
            return
        for line in self.report.lines():
            log.info("%s", line)
        if self.stages:
            log.info("%s", describe_bottleneck(self.stages))
        put_within(run.report, json.dumps(self.to_dict(), indent=1).encode(), within_s)


def log_published(manifest: Manifest) -> None:
    """Say which files were none, which images nobody saw, and which the model saw otherwise."""
    if manifest.num_not_listed:
        log.warning(
            "%d folders or files could not be listed, such as %s: their images are not scored",
            manifest.num_not_listed,
            next(iter(manifest.not_listed)),
        )
    for kind, count in manifest.not_an_image.items():
        log.info("not an image: %d x %s", count, kind)
    for line in describe_greys(manifest.greys):
        log.warning("%s", line)
    if manifest.moved_formats:
        log.warning("%s", describe_moved(manifest.moved_formats))


def describe_units(manifest: Manifest) -> Iterator[str]:
    """Yield what is to say of units, first of those that nobody may take for a whole answer."""
    counts = manifest.unit_counts
    if not manifest.unit:
        return
    whole = counts.get(UnitStatus.OK, 0)
    yield f"Units (--unit {manifest.unit}), of which every image gave an answer: {whole:,}."
    if manifest.unit_decisions:
        told = (f"{name} ({count:,})" for name, count in manifest.unit_decisions.items())
        yield f"Units by decision: {', '.join(told)}."
    if count := counts.get(UnitStatus.INCOMPLETE, 0):
        yield (
            f"Units that are incomplete: {count:,}. Some of their images failed, so none of these "
            "is called negative before somebody has looked."
        )
    if count := counts.get(UnitStatus.FAILED, 0):
        yield f"Units without an answer: {count:,}. All of their images failed."
    if count := counts.get("images_without_unit", 0):
        yield (
            f"Images of no unit: {count:,}. Each answers for itself, in a row whose unit is empty."
        )
    if count := counts.get("replaced", 0):
        yield f"Units of which earlier nights had images, too: {count:,}; the new row counts."


def describe_greys(greys: dict[str, int]) -> list[str]:
    """Say which images' greys the model may see otherwise than those of its training."""
    lines = [
        f"{count} images have {name.removeprefix(_NEW_BITS)} bits a sample, which training never "
        "saw: look at some of them before you trust their rows"
        for name, count in greys.items()
        if name.startswith(_NEW_BITS)
    ]
    if count := greys.get("pooled", 0):
        lines.append(
            f"{count} images have greys of a modality that training never saw: their black and "
            "white are those of all training images together"
        )
    if count := greys.get("few_levels", 0):
        lines.append(
            f"{count} images use fewer than 32 of 256 grey levels and less than a quarter of those "
            "in their files: they are nearly flat to the model"
        )
    return lines


_COUNTED: Final = ("status", "class_name", "decision")
_NAMED: Final = ("uri", "member", "error")


@dataclass
class Found:
    """What the published rows say: decisions, classes, and examples of images without an answer."""

    decisions: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, rows: pa.Table, named: Callable[[], pa.Table]) -> None:
        """Count the rows of a part; an example is one of the first of its status.

        Args:
            rows: the columns that are counted.
            named: reads those that name an example: wide ones, which few parts are asked for.
        """
        for name, counts in (("decision", self.decisions), ("class_name", self.classes)):
            if name in rows.column_names:
                for entry in rows[name].drop_null().value_counts().to_pylist():
                    counts[entry["values"]] += entry["counts"]
        statuses = pc.cast(rows["status"], pa.string())
        failed = sorted(set(statuses.unique().to_pylist()) - {Status.OK})
        wanted = [each for each in failed if len(self.examples.get(each, ())) < _NUM_EXAMPLES]
        names = named() if wanted else rows
        for status in wanted:
            kept = self.examples.setdefault(status, [])
            left = _NUM_EXAMPLES - len(kept)
            some = names.filter(pc.equal(statuses, status)).slice(0, left)
            kept += [
                {"name": _name(row), "error": row.get("error") or ""} for row in some.to_pylist()
            ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as the run's result tells it: of many classes the commonest."""
        return {
            "decision_counts": dict(self.decisions.most_common()),
            "class_counts": dict(self.classes.most_common(_MAX_CLASSES)),
            "num_classes_seen": len(self.classes),
            "examples": self.examples,
        }

    def lines(self, status_counts: dict[str, int]) -> Iterator[str]:
        """Yield it as sentences."""
        yield f"{sentence_of(status_counts, self.decisions)}."
        if self.classes:
            shown = self.classes.most_common(_MAX_CLASSES_TOLD)
            told = ", ".join(f"{name} ({count:,})" for name, count in shown)
            left = len(self.classes) - len(shown)
            more = f", and {left:,} more class{'es' if left > 1 else ''}" if left else ""
            yield f"Most probable class: {told}{more}."
        worst = sorted(self.examples, key=lambda status: -status_counts.get(status, 0))
        for status in worst:
            yield f"{status_counts.get(status, 0):,} {status.replace('_', ' ')}, such as:"
            for example in self.examples[status]:
                because = f": {example['error']}" if example["error"] else ""
                yield f"  {example['name']}{because}"


def _name(row: dict[str, Any]) -> str:
    member = row.get("member")
    return f"{row['uri']}, {member}" if member else str(row["uri"])


def add_line(result: dict[str, Any], line: str) -> None:
    """Add a sentence to what a run tells in the end: on the terminal, in the log and as JSON.

    Args:
        result: of the run; the sentence goes to its `lines`.
        line: for people; names in it are made inert where it is printed.
    """
    result.setdefault("lines", []).append(line)
    tell(line)


def describe_run(plan: Plan, manifest: Manifest) -> dict[str, Any]:
    """Return the published run as its result tells it, and say it."""
    num_rows = manifest.counts["rows"]
    num_ok = manifest.status_counts.get(Status.OK, 0)
    found = Found()
    for part in manifest.parts:
        named = partial(read_columns, plan.published, part, _NAMED)
        found.add(read_columns(plan.published, part, _COUNTED), named)
    result = {
        "run_id": plan.run_id,
        "output": plan.published,
        "parts": [join(plan.published, part.path) for part in manifest.parts],
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
        "greys": manifest.greys,
    }
    result |= found.to_dict()
    if manifest.unit:
        result |= {"units": manifest.unit_counts, "unit_decisions": manifest.unit_decisions}
    for line in (*found.lines(manifest.status_counts), *describe_units(manifest)):
        add_line(result, line)
    return result
