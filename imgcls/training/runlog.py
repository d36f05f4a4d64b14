"""Every step and epoch of a run as JSON lines, beside its checkpoints.

In: numbers of steps and epochs, from rank 0. Out: RUN/log/<run_id>/epoch-00001.jsonl, one file per
epoch. Invariant: a line of a step occurs once, however often the run was killed and resumed: a
resumed epoch keeps the lines up to its checkpoint and writes the rest anew. A log that cannot be
written, or a tracker that does not answer, is a warning; it stops no training.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from imgcls.errors import ObjectMissingError
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join
from imgcls.training.tracking import Line, Tracker

log = logging.getLogger(__name__)


class RunLog:
    """The log of one run, written by a thread of its own.

    Args:
        run_uri: prefix of the run.
        run_id: of the run; another run in the same place has another log.
        epoch: the epoch to go on with, 0-based.
        step: steps of it that are done.
        make_trackers: gives those who are told each epoch, too; called in the log's thread.
    """

    def __init__(
        self,
        run_uri: str,
        run_id: str,
        *,
        epoch: int,
        step: int,
        make_trackers: Sequence[Callable[[], Tracker]] = (),
    ) -> None:
        self._folder = join(run_uri, "log", run_id)
        self._epoch = epoch
        self._thread = ThreadPoolExecutor(1, "imgcls-runlog")
        self._writes: list[Future[None]] = []
        self._trackers = [self._thread.submit(make) for make in make_trackers]
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
            self._writes.append(self._thread.submit(_tell, tracker, self._lines))
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
            lines = [json.loads(line) for line in read(self._uri()).decode().splitlines()]
        except ObjectMissingError:
            return []
        return [line for line in lines[:num_steps] if line["kind"] == "step"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._writes += [self._thread.submit(_finish, tracker) for tracker in self._trackers]
        self._thread.shutdown(wait=True)
        for write in self._writes:
            # Whatever a store or a tracking server raised: it is no reason to lose a training.
            if (failure := write.exception()) is not None:
                log.warning("the log of this run is incomplete: %s", failure)
                return


def _tell(tracker: Future[Tracker], lines: list[Line]) -> None:
    tracker.result().add_epoch(lines)


def _finish(tracker: Future[Tracker]) -> None:
    tracker.result().finish()
