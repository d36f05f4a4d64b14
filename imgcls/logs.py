"""Logs on stderr; stdout belongs to the result.

In: records. Out: lines, inert whatever names are in them. Invariant: nothing here writes to stdout.
"""

import logging
import sys
from typing import Any, TextIO

from imgcls.inert import in_log, in_log_lines

_IS_TOLD = "is_told_by_the_result"

log = logging.getLogger("imgcls")


def configure(level: int = logging.INFO, *, result_is_shown: bool = False) -> None:
    """Send the log of imgcls to stderr, with a time, and leave other libraries at warnings.

    Args:
        level: the lowest that is shown.
        result_is_shown: the result will stand below the log, on the same terminal, in sentences.
    """
    handler = _ToStderr(sys.stderr)
    if result_is_shown:
        handler.addFilter(_is_not_told)
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


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr now: a live bar stands in for it, and prints lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


def tell(line: str) -> None:
    """Log a sentence that the result has too: one terminal shows it once."""
    log.info("%s", line, extra={_IS_TOLD: True})


def _is_not_told(record: logging.LogRecord) -> bool:
    return not hasattr(record, _IS_TOLD)
