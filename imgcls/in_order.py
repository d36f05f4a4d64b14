"""Several things at a time, their results in order.

In: a function, and what it is called with. Out: what it returns, in that order. Invariant: no more
than `ahead` results wait, so memory is bounded; what a call raises is raised at its turn.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

READS_IN_FLIGHT: Final = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], ahead: int = READS_IN_FLIGHT
) -> Iterator[Result]:
    """Yield the result of each call, in order; `ahead` of them run in threads at a time.

    `items` is pulled in the thread of the caller.
    """
    pool = ThreadPoolExecutor(ahead, "in-order")
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        # Not waited for: a run that is stopped must not sit out a store that stalls.
        pool.shutdown(wait=False, cancel_futures=True)
