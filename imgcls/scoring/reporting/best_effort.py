"""Last words: what a run writes for eyes only, and how long its end may wait for that.

In: bytes, and the error that a run ended with, if any. Out: an object beside the run. Invariant: no
start of a run reads it, and a store that refuses it or stalls neither ends a run nor holds it up.
"""

import logging
import threading

from imgcls.errors import RunStoppedError
from imgcls.storage.objects import put

log = logging.getLogger(__name__)

# A run that was told to stop has little time; another may wait for its last word.
_WITHIN_S, _OF_STOPPED_WITHIN_S = 10.0, 0.5


def is_stop(error: BaseException | None) -> bool:
    """Tell whether a run ended because it was told to, and not by a failure."""
    return isinstance(error, RunStoppedError | KeyboardInterrupt)


def last_word_within_s(error: BaseException | None) -> float:
    """Return for how long a run that ends with this error, or with none, waits for one write."""
    return _OF_STOPPED_WITHIN_S if is_stop(error) else _WITHIN_S


def put_within(uri: str, data: bytes, within_s: float) -> None:
    """Write an object, and wait for it no longer than that; a failure is but logged."""

    def write() -> None:
        try:
            put(uri, data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run continues
            log.warning("%s cannot be written: %s", uri, error)

    # In a thread: the retries of a store that is down may take minutes.
    thread = threading.Thread(target=write, name="put-within", daemon=True)
    thread.start()
    thread.join(within_s)
