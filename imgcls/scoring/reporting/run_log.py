"""The log of a run beside the run: a cluster's own logs end with its head.

In: what imgcls logs while a run continues, in this process; workers send theirs along. Out:
OUT/_runs/<run_id>/logs/<start>.log, when the run ends, however it ends (but for a kill). Invariant:
as for progress.json: a store that refuses it neither ends a run nor holds it up.
"""

import logging
import tempfile
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from imgcls.logs import InertFormatter
from imgcls.runs.run import Run
from imgcls.scoring.reporting.best_effort import last_word_within_s, put_within

_LOGGER = "imgcls"


class RunLog:
    """Keeps the log of a `with` block in a local file, and copies it to the run at the end."""

    def __init__(self) -> None:
        self._start = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        self._run: Run | None = None

    def belongs_to(self, run: Run) -> None:
        """Name the run; without one, nothing is copied."""
        self._run = run

    def __enter__(self) -> Self:
        # Without a name, so that a kill leaves nothing behind.
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")
        self._handler = logging.StreamHandler(self._file)
        self._handler.setFormatter(InertFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logging.getLogger(_LOGGER).addHandler(self._handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.getLogger(_LOGGER).removeHandler(self._handler)
        if error is not None:
            words = f"{type(error).__name__}: {error}"
            record = logging.LogRecord(_LOGGER, logging.ERROR, "", 0, words, None, None)
            self._handler.emit(record)
        if self._run is not None:
            self._copy(self._run.log(self._start), last_word_within_s(error))
        self._file.close()

    def _copy(self, uri: str, within_s: float) -> None:
        self._file.seek(0)
        data = self._file.read().encode()
        put_within(uri, data, within_s)


class KeptLines(logging.Handler):
    """The last warnings of a worker process, to be sent along with its next summary."""

    MAX_LINES = 100

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; the first MAX_LINES since the last `take`."""
        if len(self._lines) < self.MAX_LINES:
            self._lines.append(f"{record.levelname} {record.name} {record.getMessage()}")

    def take(self) -> tuple[str, ...]:
        """Return what was kept, and forget it."""
        with self.lock or threading.RLock():
            lines, self._lines = self._lines, []
        return tuple(lines)
