"""Data plane: many objects, whole or a span of each, many at a time.

In: an iterable of requests, pulled as there is room. Out: (index, bytes or error) in order of
completion.
Invariant: every request pulled gives exactly one result, or the generator raises; memory holds a
bounded number of bodies. A missing or changed object is a result, a failing store is an exception.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue

from imgcls.errors import (
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.bucket import Bucket, Span
from imgcls.storage.requests.adaptive_limit import AdaptiveLimit
from imgcls.storage.requests.background_loop import background_loop, on_background_loop, submit
from imgcls.storage.requests.retry import retried
from imgcls.storage.resolver import bucket_of
from imgcls.storage.stores import local
from imgcls.storage.uri import split_uri

Result = tuple[int, bytes | StorageError]

CANCEL_WITHIN_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GetRequest:
    """One object to read; `index` is the caller's name for it and comes back with the result."""

    index: int
    uri: str
    etag: str | None = None
    version_id: str | None = None
    span: Span | None = None
    """Read these bytes alone; default the whole object."""


def get_many(
    requests: Iterable[GetRequest], *, max_in_flight: int = 32, gives_unreadable: bool = False
) -> Generator[Result]:
    """Read many objects whole, in order of completion.

    Args:
        requests: what to read; pulled in the caller's thread as results are taken, never far ahead,
            so they must not wait for results. With an etag only that version is read, with a
            version id that one.
        max_in_flight: GETs at a time; fewer while the store asks to slow down. A quarter more may
            wait, read but not yet taken.
        gives_unreadable: an object that is refused is a result too; the caller must find out
            whether it alone is.

    Yields:
        (index, bytes), or (index, ObjectMissingError or ObjectChangedError), or where that is asked
        for (index, ObjectUnreadableError).

    Raises:
        AccessDeniedError, StorageError: the store did not give an object within the retry budget.
        ConfigError: no such bucket.
    """
    transfer = _Transfer(max_in_flight, gives_unreadable=gives_unreadable)
    pending = iter(requests)
    try:
        while True:
            if transfer.wants_more:
                transfer.start(list(islice(pending, transfer.room)))
            if transfer.num_outstanding == 0:
                return
            finished = transfer.take()
            while finished:
                yield finished.popleft()
    finally:
        transfer.close()


class _Transfer:
    """The two ends of one `get_many`: the caller's thread and the background loop."""

    def __init__(self, max_in_flight: int, *, gives_unreadable: bool) -> None:
        self._limit = AdaptiveLimit(max_in_flight)
        self._outcomes: tuple[type[StorageError], ...] = (ObjectMissingError, ObjectChangedError)
        if gives_unreadable:
            self._outcomes += (ObjectUnreadableError,)
        # To wake the loop costs a tenth of a small GET: requests go over a few at a time.
        self._step = max(1, max_in_flight // 8)
        self._max_outstanding = max_in_flight + 2 * self._step
        self._loop = background_loop()
        self._finished: SimpleQueue[Result | BaseException] = SimpleQueue()
        self._waiting: deque[GetRequest] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._readers: ThreadPoolExecutor | None = None
        self.num_outstanding = 0

    # From here on: the caller's thread.

    @property
    def room(self) -> int:
        """How many more requests may be started."""
        return self._max_outstanding - self.num_outstanding

    @property
    def wants_more(self) -> bool:
        """Tell whether it is worth while to start more requests."""
        return self.room >= self._step

    def start(self, batch: list[GetRequest]) -> None:
        """Hand requests to the loop."""
        if batch:
            self.num_outstanding += len(batch)
            self._loop.call_soon_threadsafe(self._enqueue, batch)

    def take(self) -> deque[Result]:
        """Wait for a result and return all there are.

        Raises:
            StorageError, ConfigError: a request failed for good.
        """
        results: deque[Result] = deque()
        while not results or not self._finished.empty():
            item = self._finished.get()
            if isinstance(item, BaseException):
                raise item
            results.append(item)
            self.num_outstanding -= 1
        return results

    def close(self) -> None:
        """Cancel what is in flight, and say so if the store had us slow down."""
        if self._limit.num_slow_downs:
            log.info("%s", self._limit)
        if self.num_outstanding and not sys.is_finalizing():
            cancelling = submit(self._cancel())
            # The collector may close a forgotten generator anywhere, even on the loop itself.
            if not on_background_loop():
                wait([cancelling], CANCEL_WITHIN_S)
        if self._readers is not None:
            self._readers.shutdown(wait=False)

    # From here on: the background loop.

    def _enqueue(self, batch: list[GetRequest]) -> None:
        self._waiting.extend(batch)
        self._hire()

    def _hire(self) -> None:
        """Have as many workers as there are requests, up to the limit."""
        for _ in range(min(self._limit.current - len(self._workers), len(self._waiting))):
            worker = self._loop.create_task(self._work())
            self._workers.add(worker)

    async def _work(self) -> None:
        """Fetch one request after the other while there are any and the limit allows it."""
        this = asyncio.current_task()
        assert this is not None
        try:
            while self._waiting and len(self._workers) <= self._limit.current:
                request = self._waiting.popleft()
                self._finished.put((request.index, await self._fetch(request)))
                if self._limit.has_grown():
                    self._hire()
        except Exception as error:  # noqa: BLE001  (crosses over to the caller, who raises it)
            self._finished.put(error)
        finally:
            # At once, not in a callback: whoever counts the workers next must not count this one.
            self._workers.discard(this)

    async def _fetch(self, request: GetRequest) -> bytes | StorageError:
        scheme, name, key = split_uri(request.uri)
        try:
            if not scheme:
                return await self._read_local(request, key)
            return await self._get(request, scheme, name, key)
        except self._outcomes as error:
            return error

    async def _get(self, request: GetRequest, scheme: str, name: str, key: str) -> bytes:
        bucket = self._buckets.get((scheme, name))
        if bucket is None:
            bucket = self._buckets[scheme, name] = bucket_of(scheme, name)
        fetched = await retried(
            lambda: f"read {request.uri!r} at {bucket.endpoint}",
            bucket.health,
            lambda: bucket.get(key, request.etag, request.version_id, request.span),
            renew=bucket.renew,
            on_slow_down=self._limit.slow_down,
        )
        self._limit.succeeded()
        return fetched.data

    async def _read_local(self, request: GetRequest, path: str) -> bytes:
        if self._readers is None:
            self._readers = ThreadPoolExecutor(self._limit.current, "imgcls-read")
        data, etag = await self._loop.run_in_executor(
            self._readers, local.read_with_etag, path, request.span
        )
        if request.etag is not None and local.without_inode(request.etag) != etag:
            raise ObjectChangedError(f"{path} is no longer version {request.etag}")
        return data

    async def _cancel(self) -> None:
        self._waiting.clear()
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
