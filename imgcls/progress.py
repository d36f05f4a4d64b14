"""How far a job is, on stderr: a live bar on a terminal, a line every few seconds in a log.

In: counts from a driver. Out: the bar, which stays below the lines of the log, or the lines.
Invariant: the time left comes from the rate since the start, so it falls steadily and does not jump
with every shard.
"""

import logging
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

LINE_EVERY_S: Final = 5.0
# Before this, or so little of the whole, the time left is anybody's guess.
_MIN_ELAPSED_S: Final = 3.0
_MIN_FRACTION: Final = 0.01


class TimeLeft:
    """How long a job still takes, by how long it took so far.

    Args:
        total: of what is counted; None where nobody knows.
        from_first: the first count stands for what an earlier start did, and for making ready: the
            rate is that of what comes after it. For work that comes in small steps.
    """

    def __init__(self, total: int | None, *, from_first: bool = False) -> None:
        self._total, self._from_first = total, from_first
        self._start_s = time.monotonic()
        self._before = self._done = 0
        self._left_s, self._at_s = 0.0, self._start_s

    def add(self, done: int, now_s: float) -> None:
        """Take in that so many are done by now."""
        if self._from_first and not self._done:
            self._before, self._start_s = done, now_s
        self._done, self._at_s = done, now_s
        if self._total is not None and done > self._before:
            each_s = (now_s - self._start_s) / (done - self._before)
            self._left_s = (self._total - done) * each_s

    def rate(self, now_s: float) -> str:
        """Return how many there were a second; "" where only the first count is known."""
        num_new = self._done - self._before
        if self._from_first and not num_new:
            return ""
        return f"{num_new / max(now_s - self._start_s, 1e-9):.1f}/s"

    def words(self, now_s: float) -> str:
        """Return it in round numbers; "" where it is not known."""
        num_new = self._done - self._before
        if self._total is None or self._done >= self._total or num_new <= 0:
            return ""
        is_early = now_s - self._start_s < _MIN_ELAPSED_S
        if is_early or num_new < _MIN_FRACTION * (self._total - self._before):
            return ""
        left_s = self._left_s - (now_s - self._at_s)
        return f"about {_rounded(left_s)} left" if left_s > 1 else "nearly done"


def _rounded(seconds: float) -> str:
    if seconds < 55:
        return f"{5 * max(1, round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{max(1, minutes)} min"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


class Progress:
    """Counts towards a total, shown on stderr.

    On a terminal a rich bar, which gives way to a line at its end; elsewhere a log line at most
    every LINE_EVERY_S seconds and one at the end.

    Args:
        name: of what is done.
        total: how many; None where nobody knows.
        unit: of what.
        from_first: see `TimeLeft`.
    """

    def __init__(
        self, name: str, total: int | None, unit: str, *, from_first: bool = False
    ) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._done, self._note = 0, ""
        self._last_line_s = time.monotonic()
        self._left = TimeLeft(total, from_first=from_first)
        self._log = logging.getLogger("imgcls.progress")
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._start_bar()
        return self

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        shown = Column(no_wrap=True, overflow="ellipsis")
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            _left_column(self._left),
            TextColumn("{task.fields[note]}", markup=False, table_column=shown),
            console=Console(stderr=True, highlight=False, markup=False),
            # A line of the log takes its place.
            transient=True,
            redirect_stdout=False,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._name, total=self._total, note="", unit=self._unit)

    def advance(self, count: int, note: str = "") -> None:
        """Add `count` units; `note` is a short remark such as the current loss."""
        self._done += count
        self._note = note or self._note
        now_s = time.monotonic()
        self._left.add(self._done, now_s)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            self._log.info("%s", self._line())

    def _line(self) -> str:
        now_s = time.monotonic()
        of_total = f"/{self._total}" if self._total is not None else ""
        parts = [f"{self._name}: {self._done}{of_total} {self._unit}", self._left.rate(now_s)]
        return ", ".join(filter(None, [*parts, self._left.words(now_s), self._note]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._log.info("%s", self._line())


def _left_column(left: TimeLeft) -> Any:  # noqa: ANN401  (rich is imported where it is needed)
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class LeftColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(left.words(time.monotonic()), style="dim")

    return LeftColumn()
