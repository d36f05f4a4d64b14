"""The run in Ray's metrics, for Prometheus.

In: the summary of each shard. Out: counters, served by every node's metrics endpoint; Ray puts
`ray_` before and `_total` behind their names. Invariant: counted by the driver when a shard is
committed, so that an actor's death loses no count and no retry counts twice.
"""

from ray.util.metrics import Counter, Histogram

from imgcls.scoring.shard.worker import ShardSummary

_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class RayMetrics:
    """Counters of one run, with its id as the tag run_id."""

    def __init__(self, run_id: str) -> None:
        tags = ("run_id", "node", "actor")
        self._tags = {"run_id": run_id}
        self._images = Counter("imgcls_images", "Images of committed shards", tags)
        self._rows = Counter("imgcls_rows", "Committed rows, by status", (*tags, "status"))
        self._bytes = Counter("imgcls_bytes", "Bytes of images that were read", tags)
        self._shards = Counter("imgcls_failed_shards", "Shards that the store failed", tags)
        self._seconds = Histogram("imgcls_shard_seconds", "Time of a shard", _SECONDS, tags)
        self._stages = Counter(
            "imgcls_stage_seconds",
            "Seconds that a stage was busy, waited for input, or waited for room",
            (*tags, "stage", "doing"),
        )

    def add(self, num_images: int, summary: ShardSummary) -> None:
        """Count one shard."""
        tags = self._tags | {"node": summary.node, "actor": summary.actor}
        if summary.error_kind:
            self._shards.inc(1, tags)
            return
        self._images.inc(num_images, tags)
        self._seconds.observe(summary.seconds, tags)
        if summary.num_bytes:
            self._bytes.inc(summary.num_bytes, tags)
        for status, count in summary.status_counts.items():
            self._rows.inc(count, tags | {"status": status})
        for stage, times in summary.stages.items():
            for name, seconds in times.items():
                if name.endswith("_s") and seconds > 0:
                    doing = name.removesuffix("_s")
                    self._stages.inc(seconds, tags | {"stage": stage, "doing": doing})
