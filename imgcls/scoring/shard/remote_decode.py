"""Decode a shard here and elsewhere at a time: one list of requests, taken from both ends' need.

In: the requests of a shard, how to decode here, and a remote decoder. Out: one `Decoded` per
request, in order of completion. Invariant: every request comes out exactly once, whatever the
remote side does: what it fails at, leaves out or has not done when there is nothing else left to do
here, is read and decoded here, and its own answer is then ignored.

Nothing here ever waits for the remote side, so it may be slow, hang or be dead: the shard is never
later than it would be alone. Only pixels come from there. An image that gives none, and a store
that fails, are judged here, as in a run without help.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import Final, Protocol, Self

from imgcls.image.decoders.pool import Decoded
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.storage.bulk_get import GetRequest

# Requests per chunk. Small, for what is under way at the end of a shard may be done twice.
CHUNK_SIZE: Final = 16


class RemoteDecoder(Protocol):
    """Reads and decodes elsewhere. Thread-safe; several shards may share it."""

    def room(self) -> int:
        """Return how many more chunks it takes at the moment; 0 where nobody is there."""
        ...

    def submit(self, requests: list[GetRequest]) -> Future[list[Decoded]]:
        """Begin to read and decode a chunk; never raises.

        The result has those requests that gave crops, once each, and may leave any out. Whatever
        exception it has instead, the chunk is done by the caller.
        """
        ...


# How a worker gets a remote decoder once it wants one.
MakeRemoteDecoder = Callable[[DecodeSpec, PreprocessSpec], RemoteDecoder]


def decode_shared(
    requests: Iterable[GetRequest],
    decode_here: Callable[[Iterable[GetRequest]], Iterator[Decoded]],
    remote: RemoteDecoder | None,
) -> Generator[Decoded]:
    """Decode all requests, each wherever there is room for it first.

    Args:
        requests: of one shard, each with an index of its own.
        decode_here: reads and decodes all that it is given, in this process. It may pull requests
            ahead, in a thread of its own.
        remote: takes chunks of CHUNK_SIZE; None: all is done here.

    Raises:
        StorageError, ImgclsError: as `decode_here` does.
    """
    if remote is None:
        yield from decode_here(requests)
        return
    shared = _Requests(requests)
    with _Chunks(shared, remote) as chunks:
        # First, for what is there can be taken back, and what is pulled here stays here.
        chunks.hand_out()
        while True:
            for decoded in decode_here(shared):
                yield decoded
                yield from chunks.take_finished()
                chunks.hand_out()
            yield from chunks.take_finished()
            if not shared.was_given_back:
                if not chunks.are_running:
                    return
                yield from chunks.take_back_newest()


class _Requests:
    """Requests of a shard, each given out once until it is given back. Thread-safe."""

    def __init__(self, requests: Iterable[GetRequest]) -> None:
        self._new = iter(requests)
        self._given_back: deque[GetRequest] = deque()
        self._lock = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GetRequest:
        with self._lock:
            return self._given_back.popleft() if self._given_back else next(self._new)

    def take_new(self, count: int) -> list[GetRequest]:
        """Return the next ones that nobody had yet, at most `count`."""
        with self._lock:
            return list(islice(self._new, count))

    def give_back(self, requests: Iterable[GetRequest]) -> None:
        """Let whoever iterates have these; the iteration continues even if it had ended."""
        with self._lock:
            self._given_back.extend(requests)

    @property
    def was_given_back(self) -> bool:
        """Whether some were given back that nobody has taken since."""
        return bool(self._given_back)


class _Chunks:
    """Chunks that the remote decoder has; all but the callback belongs to the shard's thread."""

    def __init__(self, shared: _Requests, remote: RemoteDecoder) -> None:
        self._shared, self._remote = shared, remote
        self._running: dict[Future[list[Decoded]], list[GetRequest]] = {}
        self._finished: SimpleQueue[Future[list[Decoded]]] = SimpleQueue()

    @property
    def are_running(self) -> bool:
        return bool(self._running)

    def hand_out(self) -> None:
        """Hand out as much as the remote decoder has room for."""
        for _ in range(self._remote.room()):
            chunk = self._shared.take_new(CHUNK_SIZE)
            if not chunk:
                return
            future = self._remote.submit(chunk)
            self._running[future] = chunk
            future.add_done_callback(self._finished.put)

    def take_finished(self) -> Iterator[Decoded]:
        """Yield what has come, and give back what has not."""
        while not self._finished.empty():
            future = self._finished.get()
            if future in self._running:
                yield from self._take(future)

    def take_back_newest(self) -> Iterator[Decoded]:
        """Give back the chunk that is least likely to come soon, or yield it if it just came."""
        future = next(reversed(self._running))
        if future.cancel() or not future.done():
            self._shared.give_back(self._running.pop(future))
        else:
            yield from self._take(future)

    def _take(self, future: Future[list[Decoded]]) -> Iterator[Decoded]:
        chunk = self._running.pop(future)
        try:
            decoded_of = {decoded.index: decoded for decoded in future.result()}
        except Exception:  # noqa: BLE001 - whatever became of it elsewhere, it can be done here
            decoded_of = {}
        self._shared.give_back(request for request in chunk if request.index not in decoded_of)
        yield from decoded_of.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._running:
            future.cancel()
