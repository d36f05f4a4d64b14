"""What a run tells at its end: as a result, in the log and beside the run.

In: summaries of shards, and the manifest. Out: plain values, lines, report.json. Invariant: counts
of the published run are the manifest's, whoever scored it; what this start did is told apart.
"""

import json
import logging
from dataclasses import dataclass, field
from typing import Any, Final

from imgcls.image.versions import describe_moved
from imgcls.runs.plan import Plan
from imgcls.runs.published import Manifest
from imgcls.runs.run import Run
from imgcls.schema import Status
from imgcls.scoring.reporting.best_effort import put_within
from imgcls.scoring.reporting.node_report import NodeReport
from imgcls.scoring.shard.stage_clock import StageDicts, add_stages, describe_bottleneck
from imgcls.scoring.shard.worker import ShardSummary
from imgcls.storage.uri import join

log = logging.getLogger(__name__)
_NEW_BITS: Final = "new_bits_"


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


def describe_run(plan: Plan, manifest: Manifest) -> dict[str, Any]:
    """Return the published run as its result tells it."""
    num_rows = manifest.counts["rows"]
    num_ok = manifest.status_counts.get(Status.OK, 0)
    return {
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
