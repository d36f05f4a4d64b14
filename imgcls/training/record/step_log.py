"""Every step and epoch of a run as JSON lines, beside its checkpoints.

In: numbers of steps and epochs, from rank 0. Out: RUN/log/<run_id>/epoch-00001.jsonl, one file per
epoch. Invariant: a line of a step occurs once, however often the run was killed and resumed: a
resumed epoch keeps the lines up to its checkpoint and writes the rest again. A log that cannot be
written, or a tracker that does not answer, is a warning; it stops no training, and what a tracker
holds up at the end has a limit.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join
from imgcls.training.record.trackers import Line, Tracker

# Trackers are told while the training continues, and while its model is measured; so long after
# that is enough for any that answers.
CLOSE_TRACKERS_WITHIN_S = 30.0

log = logging.getLogger(__name__)


class RunLog:
    """The log of one run, written by a thread of its own; each tracker has another.

    Args:
        run_uri: prefix of the run.
        run_id: of the run; another run in the same place has another log.
        epoch: the epoch to continue with, 0-based.
        step: steps of it that are done.
        make_trackers: gives those who are told each epoch, too; each is called in its own thread.
        close_trackers_within_s: how long they may take at the end, all of them together.
    """

    def __init__(
        self,
        run_uri: str,
        run_id: str,
        *,
        epoch: int,
        step: int,
        make_trackers: Sequence[Callable[[], Tracker]] = (),
        close_trackers_within_s: float = CLOSE_TRACKERS_WITHIN_S,
    ) -> None:
        self._folder = join(run_uri, "log", run_id)
        self._epoch = epoch
        self._thread = ThreadPoolExecutor(1, "imgcls-runlog")
        self._writes: list[Future[None]] = []
        self._trackers = [_TrackerThread(make) for make in make_trackers]
        self._close_trackers_within_s = close_trackers_within_s
        self._lines = self._earlier_lines(step) if step else []

    def __enter__(self) -> Self:
        return self

    def add_step(self, **values: Any) -> None:  # noqa: ANN401  # JSON values
        """Add a line for a step; it is written with the next epoch or flush."""
        self._lines.append({"kind": "step", **values, "time_s": round(time.time(), 3)})

    def add_epoch(self, numbers: dict[str, Any]) -> None:
        """Add the epoch's line, write its file and tell the trackers."""
        self._lines.append({"kind": "epoch", **numbers})
        self.flush()
        for tracker in self._trackers:
            tracker.tell(self._lines)
        self._epoch, self._lines = self._epoch + 1, []

    def flush(self) -> None:
        """Write what there is of this epoch; called before each checkpoint."""
        self._writes.append(self._thread.submit(self._put, self._uri(), list(self._lines)))

    def _uri(self) -> str:
        return join(self._folder, f"epoch-{self._epoch + 1:05d}.jsonl")

    def _put(self, uri: str, lines: list[Line]) -> None:
        put(uri, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def _earlier_lines(self, num_steps: int) -> list[Line]:
        try:
            found = read(self._uri()).decode().splitlines()
        except ObjectMissingError:
            return []
        lines = [parse_object(line, self._uri(), ConfigError) for line in found[:num_steps]]
        return [line for line in lines if line["kind"] == "step"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        failures = [write.exception() for write in self._writes]
        failures += self._close_trackers(has_ended=error is None)
        # Whatever a store or a tracking server raised: it is not a reason to lose a training.
        if (failure := next(filter(None, failures), None)) is not None:
            log.warning("the log of this run is incomplete: %s", failure)

    def _close_trackers(self, *, has_ended: bool) -> list[Exception | None]:
        """Let the trackers take what they were told, within the limit; return what they raised."""
        end_s = time.monotonic() + self._close_trackers_within_s
        for tracker in self._trackers:
            tracker.close(has_ended=has_ended)
        for tracker in self._trackers:
            if not tracker.wait(end_s - time.monotonic()):
                log.warning(
                    "%s does not answer: given up %g s after the end; what it lacks is in %s",
                    tracker.name,
                    self._close_trackers_within_s,
                    self._folder,
                )
        return [tracker.failure for tracker in self._trackers]


class _TrackerThread:
    """Tells one tracker. A daemon thread: the process ends although a server never answers."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self.name = "a tracker"
        self.failure: Exception | None = None  # the first
        self._calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, args=[make], name="imgcls-tracker", daemon=True)
        self._thread.start()

    def tell(self, lines: list[Line]) -> None:
        """Pass an epoch's lines on, some time."""
        self._calls.put(lambda tracker: tracker.add_epoch(lines))

    def close(self, *, has_ended: bool) -> None:
        """Take nothing more; where the run has ended, tell that last."""
        if has_ended:
            self._calls.put(lambda tracker: tracker.finish())
        self._calls.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Say whether all is told, which may take so long."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self, make: Callable[[], Tracker]) -> None:
        try:
            tracker = make()
        except Exception as error:  # noqa: BLE001  # whatever a server or its client raises
            self.failure = error
            log.warning("%s cannot be opened, so nothing is logged there: %s", self.name, error)
            return
        while (call := self._calls.get()) is not None:
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001  # as above; the next epoch may be taken
                self.failure = self.failure or error
