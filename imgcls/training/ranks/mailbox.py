"""Carry one worker's log lines and progress to the process that the user looks at.

In: log records and image counts of rank 0. Out: the same, on the driver's stderr. Invariant:
sending never waits: a training step does not depend on how fast somebody reads. Knows no Ray: the
actor handle comes from outside.
"""

import logging
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from imgcls.progress import Progress

SEND_EVERY_S = 0.5

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Post:
    """What came in since somebody looked."""

    num_images: int = 0
    note: str = ""
    silent_s: float = 0.0  # since a worker was last known to be at work
    lines: list[tuple[int, str]] = field(default_factory=list)  # log level, text

    def show(self, progress: Progress) -> None:
        """Advance the progress and log the lines, here."""
        if self.num_images:
            progress.advance(self.num_images, self.note)
        for level, text in self.lines:
            log.log(level, "%s", text)


class Mailbox:
    """An actor's class: collects until `take`; tells the worker when to stop."""

    def __init__(self) -> None:
        self._post = Post()
        self._is_stopping = self._is_done = False
        self._heard_s = time.monotonic()

    def beat(self, *, is_done: bool = False) -> None:
        """Hear that the first worker is at work, or has done all of it."""
        self._heard_s, self._is_done = time.monotonic(), is_done

    def stop(self) -> None:
        """Ask the worker to stop."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Whether the worker has been asked to stop."""
        return self._is_stopping

    def count(self, num_images: int, note: str) -> None:
        """Add images done."""
        self._post.num_images += num_images
        self._post.note = note

    def write(self, level: int, text: str) -> None:
        """Add a log line."""
        self._post.lines.append((level, text))

    def take(self) -> Post:
        """Return what there is and start from the beginning."""
        post, self._post = self._post, Post()
        post.silent_s = 0.0 if self._is_done else time.monotonic() - self._heard_s
        return post


class Sender(logging.Handler):
    """Rank 0's end: a log handler while it is entered; on the other ranks it sends warnings only.

    Args:
        mailbox: handle of a Mailbox actor.
        is_first: whether this is rank 0.
    """

    def __init__(self, mailbox: Any, *, is_first: bool) -> None:  # noqa: ANN401  # Ray has no types
        super().__init__(logging.INFO if is_first else logging.WARNING)
        self._mailbox, self._is_first = mailbox, is_first
        self._num_images, self._sent_s = 0, time.monotonic()

    def show(self, num_images: int, note: str) -> None:
        """Count images; sent now and then, not at every step."""
        if not self._is_first:
            return
        self._num_images += num_images
        if time.monotonic() - self._sent_s >= SEND_EVERY_S:
            self._send(note)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log record's text."""
        self._send("")
        self._mailbox.write.remote(record.levelno, record.getMessage())

    def _send(self, note: str) -> None:
        self._mailbox.count.remote(self._num_images, note)
        self._num_images, self._sent_s = 0, time.monotonic()

    def __enter__(self) -> Self:
        root = logging.getLogger("imgcls")
        root.addHandler(self)
        root.setLevel(logging.INFO)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._send("")
        logging.getLogger("imgcls").removeHandler(self)
