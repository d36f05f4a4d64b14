"""What a night would score: what is listed, less what is published as this imgcls would publish it.

In: a source, a model, an output. Out: the difference, staged and counted. Invariant: a night and
`imgcls plan` take the same; neither torch nor Ray is imported for it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from imgcls.config.scoring import NightlyConfig
from imgcls.errors import ConfigError
from imgcls.image.formats.abilities import Abilities
from imgcls.runs.ledger import Outdated, published_keys
from imgcls.runs.plan import ModelDigests
from imgcls.runs.published import Manifest, list_published
from imgcls.scoring.planning.listing import list_source
from imgcls.scoring.planning.planned_model import PlannedModel, digests_of_published
from imgcls.scoring.planning.staging import Staging, stage
from imgcls.sources.containers import Entry
from imgcls.sources.members import Member
from imgcls.storage.info import UNVERSIONED, ObjectInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """What is listed and not yet published as this imgcls would publish it."""

    staging: Staging
    counts: dict[str, int]
    outdated: Outdated

    def again(self) -> dict[str, Any]:
        """Return what is scored again although it is published, as a result tells it."""
        return {
            "planned_again": self.staging.planned_again,
            "rescored_formats": sorted(self.outdated.moved_formats),
            "rows_of_unknown_format": self.outdated.num_untold,
            "older_thresholds": self.staging.num_with_older_thresholds,
        }

    def skipped(self) -> dict[str, Any]:
        """Return what was listed, or should have been, and is not planned, as a result tells it."""
        return {
            "skipped": self.staging.num_skipped,
            "num_not_listed": self.staging.num_not_listed,
            "not_listed": self.staging.not_listed,
        }

    def log(self) -> None:
        """Say what was found."""
        log.info("difference: %s", ", ".join(f"{n} {name}" for name, n in self.counts.items()))
        again, formats = self.staging.planned_again, ", ".join(sorted(self.outdated.moved_formats))
        if again["failed_before"]:
            log.info("%d that failed before are tried again", again["failed_before"])
        if formats:
            log.warning(
                "%d published images of %s are scored again: their pixels have moved since",
                again["pixels_moved"],
                formats,
            )
        if self.staging.num_with_older_thresholds:
            log.warning(
                "%d published images were decided by older thresholds of this model, and stay so: "
                "its network is the same, and nothing is scored again. To have the new thresholds "
                "decide on them too, roll their runs back",
                self.staging.num_with_older_thresholds,
            )
        if self.outdated.num_untold:
            log.warning(
                "of %d published rows neither a column nor a suffix tells the format: they stay, "
                "although pixels of some formats have moved since. To score them again, roll their "
                "runs back",
                self.outdated.num_untold,
            )


@contextmanager
def stage_difference(
    config: NightlyConfig, model: PlannedModel, abilities: Callable[[], Abilities]
) -> Iterator[Difference]:
    """Stage what is listed and not yet published with this model and spec."""
    outdated = Outdated()
    was_there = partial(_was_read_before, config.output, config.source)
    with stage(_versioned(list_source(config.source, config, was_there=was_there))) as staging:
        counts = exclude_published(config, model, staging, abilities, outdated)
        found = Difference(staging, counts, outdated)
        found.log()
        yield found


def exclude_published(
    config: NightlyConfig,
    model: PlannedModel,
    staging: Staging,
    abilities: Callable[[], Abilities],
    outdated: Outdated,
) -> dict[str, int]:
    """Drop from what is staged what is published as this imgcls would publish it; count both."""
    found: dict[tuple[str, str], ModelDigests] = {}

    def digests_of(manifest: Manifest) -> ModelDigests:
        key = (manifest.model_uri, manifest.model_digest)
        if key not in found:
            found[key] = digests_of_published(manifest)
        return found[key]

    published = published_keys(
        config.output,
        model.digests,
        abilities=abilities,
        outdated=outdated,
        digests_of=digests_of,
    )
    return staging.exclude(published, retry_failed=config.retry_failed)


def _was_read_before(output: str, source: str) -> bool:
    """Tell whether a published run read this very source: then its name is right, though empty."""
    return any(manifest.source == source for _, manifest in list_published(output))


def _versioned(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Pass a listing on; refuse an object whose change a night could not see."""
    for entry in entries:
        info = entry.container if isinstance(entry, Member) else entry
        if isinstance(info, ObjectInfo) and info.etag.startswith(UNVERSIONED):
            raise ConfigError(
                f"{info.uri}: its server tells neither a version nor a time of change, so a night "
                "cannot see what changed; score it once by `imgcls score`, or copy it to a store"
            )
        yield entry
