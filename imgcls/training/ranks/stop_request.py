"""Stop between two steps when somebody asks for it.

In: SIGTERM, as a scheduler sends it before it takes the machine away; or a notice that came another
way (ray_train.py). Out: `requested`. Invariant: the handler that was there before comes back, and a
second SIGTERM goes to it at once; outside the main thread nothing is installed.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """Watches for SIGTERM while it is entered; anybody may set `requested`."""

    def __init__(self) -> None:
        self.requested = False
        self._is_installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._is_installed = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        if self._is_installed:
            self._is_installed = False
            signal.signal(signal.SIGTERM, self._before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
