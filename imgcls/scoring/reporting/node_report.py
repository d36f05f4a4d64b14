"""Who did what in a run: images and rate per node and actor, and who lags behind.

In: the summaries of the shards of one start, as they arrive. Out: plain values for the result, the
log and OUT/_runs/<run_id>/report.json. Invariant: counts are of committed shards only; memory grows
with the actors, not with the images.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any

from imgcls.scoring.shard.worker import ShardSummary

# An actor is named that is slower than this share of the median actor.
STRAGGLER_FRACTION = 0.5


@dataclass
class Tally:
    """What one actor, or all of a node, did between its first and its last shard."""

    num_shards: int = 0
    num_images: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    num_failed_shards: int = 0
    first_s: float = float("inf")
    last_s: float = 0.0

    def add(self, num_images: int, summary: ShardSummary, now_s: float) -> None:
        """Count one shard that ended at `now_s`, on the driver's clock."""
        if summary.error_kind:
            self.num_failed_shards += 1
            return
        self.num_shards += 1
        self.num_images += num_images
        self.num_rows += summary.num_rows
        self.num_bytes += summary.num_bytes
        self.first_s = min(self.first_s, now_s - summary.seconds)
        self.last_s = max(self.last_s, now_s)

    @property
    def images_per_s(self) -> float:
        """Images over the time from its first shard's start to its last one's end."""
        return self.num_images / max(self.last_s - self.first_s, 1e-9) if self.num_images else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "images": self.num_images,
            "rows": self.num_rows,
            "bytes": self.num_bytes,
            "shards": self.num_shards,
            "failed_shards": self.num_failed_shards,
            "images_per_s": round(self.images_per_s, 2),
        }


@dataclass
class NodeReport:
    """Tallies by node, and by actor of a node."""

    _nodes: dict[str, Tally] = field(default_factory=dict)
    _actors: dict[tuple[str, str], Tally] = field(default_factory=dict)

    def add(self, num_images: int, summary: ShardSummary, now_s: float) -> None:
        """Count one shard that ended at `now_s`, on the driver's clock."""
        self._nodes.setdefault(summary.node, Tally()).add(num_images, summary, now_s)
        key = (summary.node, summary.actor)
        self._actors.setdefault(key, Tally()).add(num_images, summary, now_s)

    def stragglers(self) -> list[str]:
        """Name the actors far slower than the median one, the slowest first."""
        rates = {key: tally.images_per_s for key, tally in self._actors.items()}
        if len(rates) < 2:
            return []
        limit = STRAGGLER_FRACTION * statistics.median(rates.values())
        slow = sorted((rate, key) for key, rate in rates.items() if rate < limit)
        return [f"{node} actor {actor}" for _, (node, actor) in slow]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the nodes, each with its actors, as plain values."""
        return [
            {"node": node}
            | tally.to_dict()
            | {
                "actors": [
                    {"actor": actor} | of_actor.to_dict()
                    for (of_node, actor), of_actor in sorted(self._actors.items())
                    if of_node == node
                ]
            }
            for node, tally in sorted(self._nodes.items())
        ]

    def lines(self) -> list[str]:
        """Return a line per node for the log, and one per straggler."""
        lines = []
        for node, tally in sorted(self._nodes.items()):
            num_actors = sum(1 for of_node, _ in self._actors if of_node == node)
            lines.append(
                f"node {node}: {tally.num_images} images in {tally.num_shards} shards, "
                f"{tally.images_per_s:.1f}/s, {num_actors} actors"
            )
        lines += [
            f"straggler: {name}, below {STRAGGLER_FRACTION:g} of the median actor's rate"
            for name in self.stragglers()
        ]
        return lines
