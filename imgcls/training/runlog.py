"""Every step and epoch of a run as JSON lines, beside its checkpoints.

In: numbers of steps and epochs, from rank 0. Out: RUN/log/<run_id>/epoch-00001.jsonl, one file per
epoch. Invariant: a line of a step occurs once, however often the run was killed and resumed: a
resumed epoch keeps the lines up to its checkpoint and writes the rest anew. A log that cannot be
written is a warning; it stops no training.
"""

import json
import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from imgcls.errors import ImgclsError, ObjectMissingError
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join

log = logging.getLogger(__name__)


class RunLog:
    """The log of one run, written by a thread of its own.

    Args:
        run_uri: prefix of the run.
        run_id: of the run; another run in the same place has another log.
        epoch: the epoch to go on with, 0-based.
        step: steps of it that are done.
    """

    def __init__(self, run_uri: str, run_id: str, *, epoch: int, step: int) -> None:
        self._folder = join(run_uri, "log", run_id)
        self._epoch = epoch
        self._thread = ThreadPoolExecutor(1, "imgcls-runlog")
        self._writes: list[Future[None]] = []
        self._lines = self._earlier_lines(step) if step else []

    def __enter__(self) -> Self:
        return self

    def add_step(self, **values: Any) -> None:  # noqa: ANN401  # JSON values
        """Add a line for a step; it is written with the next epoch or flush."""
        self._lines.append(json.dumps({"kind": "step", **values}))

    def add_epoch(self, numbers: dict[str, Any]) -> None:
        """Add the epoch's line and write its file."""
        self._lines.append(json.dumps({"kind": "epoch", **numbers}))
        self.flush()
        self._epoch, self._lines = self._epoch + 1, []

    def flush(self) -> None:
        """Write what there is of this epoch; called before each checkpoint."""
        self._writes.append(self._thread.submit(self._put, self._uri(), list(self._lines)))

    def _uri(self) -> str:
        return join(self._folder, f"epoch-{self._epoch + 1:05d}.jsonl")

    def _put(self, uri: str, lines: Iterable[str]) -> None:
        put(uri, "".join(f"{line}\n" for line in lines).encode())

    def _earlier_lines(self, num_steps: int) -> list[str]:
        try:
            lines = read(self._uri()).decode().splitlines()
        except ObjectMissingError:
            return []
        return [line for line in lines[:num_steps] if json.loads(line)["kind"] == "step"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        for write in self._writes:
            try:
                write.result()
            except ImgclsError as failure:
                log.warning("the log of this run is incomplete: %s", failure)
                return
