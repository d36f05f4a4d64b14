"""One asyncio loop in one background thread per process, where every network client lives.

In: coroutines. Out: their results, in the calling thread. Invariant: clients are created, used and
closed on this loop only; a forked child finds none and starts its own.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
THREAD_NAME = "imgcls-storage"

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process, and start it at first use."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=THREAD_NAME, daemon=True).start()
            _loops[os.getpid()] = loop
        return loop


def on_background_loop() -> bool:
    """Tell whether this is the thread of the background loop, which must never wait for it."""
    return threading.current_thread().name == THREAD_NAME


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the background loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, background_loop())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for its result.

    An exception in the waiting thread, such as KeyboardInterrupt, cancels it.
    """
    future = submit(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _forget_lock_after_fork() -> None:
    """Replace the lock in a forked child: another thread may have held it in the parent."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock_after_fork)
