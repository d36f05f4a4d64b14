"""Logs and progress on stderr; stdout belongs to the one JSON line of the result.

In: counts from a driver. Out: a live bar on a terminal, a line every few seconds in a log.
Invariant: nothing here writes to stdout but `print_result`.
"""

import json
import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from imgcls.inert import in_log, in_log_lines

LINE_EVERY_S = 5.0


def configure(level: int = logging.INFO) -> None:
    """Send the log of imgcls to stderr, with a time, and leave other libraries at warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(InertFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("imgcls")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


class InertFormatter(logging.Formatter):
    """Formats records so that names of files and classes in them cannot steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (of logging)
        """Return the record's line."""
        record.message = in_log(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401  (of logging)
        """Return the traceback, whose last line may hold such names too."""
        return in_log_lines(super().formatException(ei))


def print_result(result: dict[str, Any]) -> None:
    """Print the job's one JSON object as the last line of stdout."""
    sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    sys.stdout.flush()


class Progress:
    """Counts towards a total, shown on stderr.

    On a terminal a rich bar; elsewhere a log line at most every LINE_EVERY_S seconds and one at the
    end.
    """

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done, self._note = 0, ""
        self._start_s = self._last_line_s = time.monotonic()
        self._log = logging.getLogger("imgcls.progress")
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, note="")
        return self

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` units; `note` is a short remark such as the current loss."""
        self._done += count
        self._note = note or self._note
        now_s = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            self._log.info("%s", self._line())

    def _line(self) -> str:
        elapsed_s = max(time.monotonic() - self._start_s, 1e-9)
        of_total = f"/{self._total}" if self._total is not None else ""
        line = f"{self._name}: {self._done}{of_total} {self._unit}, {self._done / elapsed_s:.1f}/s"
        return f"{line}, {self._note}" if self._note else line

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._log.info("%s", self._line())
