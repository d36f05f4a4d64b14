"""progress.json: how far a run is, for anyone who can read the output and not the cluster.

In: what became of each shard. Out: OUT/_runs/<run_id>/progress.json, overwritten at most every
WRITE_EVERY_S. Invariant: it is for eyes only: no start of a run reads it, and a store that refuses
it or stalls neither ends a run nor holds it up.

A run that was killed cannot say so: `running`, and an `updated_at` of some minutes ago, is dead.
"""

import json
import logging
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self

from imgcls.errors import NightHeldError
from imgcls.runs.plan import Plan
from imgcls.scoring.reporting.best_effort import is_stop, last_word_within_s
from imgcls.scoring.shard.worker import ShardSummary
from imgcls.storage.objects import put

log = logging.getLogger(__name__)

State = Literal["running", "publishing", "published", "stopped", "held", "failed"]
WRITE_EVERY_S = 10.0


class RunProgress:
    """Writes progress.json in a thread, from entering the `with` block until leaving it.

    Leaving without an error says `published`, with RunStoppedError or Ctrl-C `stopped`, with
    NightHeldError `held`, else `failed`.
    """

    def __init__(self, plan: Plan) -> None:
        self._uri = plan.run.progress
        self._plan = plan
        self._state: State = "running"
        self._message = ""
        self._start_s, self._started_at = time.monotonic(), _now()
        self._num_shards = self._num_images = self._num_images_before = self._num_rows = 0
        self._status_counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="progress", daemon=True)
        self._has_failed = False

    def start_from(self, shard_id: str, num_rows: int, status_counts: dict[str, int]) -> None:
        """Count a shard that an earlier start committed."""
        with self._lock:
            self._num_images_before += self._plan.shard_rows[int(shard_id)]
        self._count(shard_id, num_rows, status_counts)

    def add(self, summary: ShardSummary) -> None:
        """Count a shard that was committed now."""
        self._count(summary.shard_id, summary.num_rows, summary.status_counts)

    def publishing(self) -> None:
        """Say that every shard is committed."""
        self._state = "publishing"

    def snapshot(self) -> dict[str, Any]:
        """Return what progress.json says at this moment; JSON-able."""
        with self._lock:
            num_planned = self._plan.counts["planned"]
            elapsed_s = max(time.monotonic() - self._start_s, 1e-9)
            images_per_s = (self._num_images - self._num_images_before) / elapsed_s
            is_running = self._state == "running" and images_per_s > 0
            num_left = num_planned - self._num_images
            return {
                "run_id": self._plan.run_id,
                "state": self._state,
                "message": self._message,
                "images": num_planned,
                "images_done": self._num_images,
                "rows": self._num_rows,
                "shards": len(self._plan.shard_rows),
                "shards_done": self._num_shards,
                "status_counts": dict(self._status_counts),
                "images_per_s": round(images_per_s, 2),
                "eta_s": round(num_left / images_per_s) if is_running else None,
                "started_at": self._started_at,
                "updated_at": _now(),
            }

    def _count(self, shard_id: str, num_rows: int, status_counts: dict[str, int]) -> None:
        with self._lock:
            self._num_shards += 1
            self._num_images += self._plan.shard_rows[int(shard_id)]
            self._num_rows += num_rows
            self._status_counts.update(status_counts)

    def _write_on(self) -> None:
        self._write()
        while not self._ended.wait(WRITE_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            put(self._uri, json.dumps(self.snapshot(), indent=1).encode())
        except Exception as error:  # noqa: BLE001 - for eyes only: whatever it is, the run continues
            if not self._has_failed:
                log.warning("%s cannot be written; the run continues: %s", self._uri, error)
            self._has_failed = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._message = str(error) or type(error).__name__
            is_held = isinstance(error, NightHeldError)
            self._state = "held" if is_held else "stopped" if is_stop(error) else "failed"
        else:
            self._state = "published"
        self._ended.set()
        self._thread.join(last_word_within_s(error))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
