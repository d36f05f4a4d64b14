"""A generator that runs in a thread of its own, some items ahead of who takes them.

In: a generator. Out: its items, in order. Invariant: what it raises is raised where the items are
taken, and it is closed, in its thread, when they are not wanted any more.
"""

import queue
import threading
from collections.abc import Generator
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")


def run_ahead(items: Generator[Item], depth: int) -> Generator[Item]:
    """Run a generator in a thread, at most `depth` items ahead; what it raises is raised here."""
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                _put(item)
                if stopped.is_set():
                    return
            _put(None)
        except BaseException as error:  # noqa: BLE001  # raised again by the consumer, below
            _put(error)
        finally:
            # In this thread, where the generator ran: it closes its GETs and its decoding.
            items.close()

    def _put(item: Item | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    thread = threading.Thread(target=produce, name="imgcls-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
