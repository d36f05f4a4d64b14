"""Tell an image that is refused from a store that refuses us.

In: what `get_many` gives. Out: the same, where a refusal of one image is its result. Invariant: a
refusal becomes a row only after others of the same run were read at the same time; else it is an
error of the infrastructure (expired credentials, a share that is gone) and ends the run.

After MAX_REFUSED_IN_A_ROW refusals in a row, and where a call ends with some, what was read last
is read again, or else images from all over the run. If they are refused too, so are we. A run is
here whatever reads many images: a night, an evaluation, a training.
"""

import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, repeat
from typing import Final, Protocol

from imgcls.errors import (
    AccessDeniedError,
    DecodeError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import ObjectInfo, head

log = logging.getLogger(__name__)

MAX_REFUSED_IN_A_ROW: Final = 20
_HEADS_IN_FLIGHT: Final = 32
_HEADS_AT_A_TIME: Final = 1000

ImageResult = tuple[int, bytes | StorageError | DecodeError]


class Read(Protocol):
    """Reads as `get_many`."""

    def __call__(
        self, requests: Iterable[GetRequest], *, gives_unreadable: bool = False
    ) -> Generator[ImageResult]:
        """Yield (index, bytes or error) for each request."""
        ...


Head = ObjectInfo | ObjectMissingError | ObjectUnreadableError


def spread(uris: Sequence[str]) -> list[GetRequest]:
    """Return requests for MAX_REFUSED_IN_A_ROW of these or fewer, from all over them."""
    step = max(1, -(-len(uris) // MAX_REFUSED_IN_A_ROW))
    return [GetRequest(index, uri) for index, uri in enumerate(uris[::step])]


def head_many(uris: Sequence[str]) -> Iterator[Head]:
    """Describe objects, in their order, without their content.

    Yields:
        ObjectInfo, or why there is none: ObjectMissingError, or ObjectUnreadableError for one that
        is refused while others are not.

    Raises:
        AccessDeniedError: the store refuses us, not one object.
        ConfigError, StorageError: as for `head`.
    """
    rest, is_any_given = iter(uris), False
    with ThreadPoolExecutor(_HEADS_IN_FLIGHT) as pool:
        # One wave first: a store that refuses us is not asked a thousand times.
        for size in chain([_HEADS_IN_FLIGHT], repeat(_HEADS_AT_A_TIME)):
            batch = list(islice(rest, size))
            if not batch:
                return
            heads = list(pool.map(_head, batch))
            if not is_any_given and _refusal_of_all(heads):
                others = list(pool.map(_head, [request.uri for request in spread(uris)]))
                if refusal := _refusal_of_all(others):
                    raise refusal
            is_any_given = True
            yield from heads


def _refusal_of_all(heads: list[Head]) -> ObjectUnreadableError | None:
    """Return one of the refusals, or None where not all are refused."""
    refusals = [head for head in heads if isinstance(head, ObjectUnreadableError)]
    return refusals[0] if len(refusals) == len(heads) else None


def _head(uri: str) -> Head:
    try:
        return head(uri)
    except (ObjectMissingError, ObjectUnreadableError) as error:
        return error


class Access:
    """What one worker knows of its run's images. Thread-safe: shards overlap.

    Args:
        from_all_over: gives requests for images from all over the run, MAX_REFUSED_IN_A_ROW or
            fewer.
        get: reads requests as `get_many` does; it may give other errors of an image too.
    """

    def __init__(
        self, from_all_over: Callable[[], Iterable[GetRequest]], get: Read = get_many
    ) -> None:
        self._from_all_over, self._get = from_all_over, get
        self._lock = threading.Lock()
        self._last_read: GetRequest | None = None
        self._num_refused = 0  # in a row

    def read(
        self, requests: Iterable[GetRequest], refused_before: Collection[str] = ()
    ) -> Iterator[ImageResult]:
        """Read images as `get_many` does, giving ObjectUnreadableError for one that is refused.

        Args:
            requests: what to read.
            refused_before: uris that failed in an earlier night already: a refusal is not news.

        Raises:
            AccessDeniedError: the store refuses us, not one image.
            StorageError, ConfigError: as for `get_many`.
        """
        asked: dict[int, GetRequest] = {}

        def noted() -> Iterator[GetRequest]:
            for request in requests:
                asked[request.index] = request
                yield request

        results = self._get(noted(), gives_unreadable=True)
        try:
            for index, body in results:
                request = asked.pop(index)
                if isinstance(body, bytes):
                    self._note_read(request)
                elif isinstance(body, ObjectUnreadableError) and request.uri not in refused_before:
                    self._note_refused(body)
                yield index, body
        finally:
            results.close()
        with self._lock:
            if self._num_refused:
                self.prove(None)

    def _note_read(self, request: GetRequest) -> None:
        self._last_read = request
        self._num_refused = 0

    def _note_refused(self, error: ObjectUnreadableError) -> None:
        with self._lock:
            self._num_refused += 1
            if self._num_refused % MAX_REFUSED_IN_A_ROW == 0:
                self.prove(error)

    def prove(self, error: ObjectUnreadableError | None) -> None:
        """Read an image that was read before, or others of the run.

        Raises:
            AccessDeniedError: none is given, so `error` is not about its image.
        """
        last_read = self._last_read
        if last_read is not None and self._is_any_read([last_read]):
            return
        refused: list[ObjectUnreadableError] = []
        if self._is_any_read(self._from_all_over(), refused):
            return
        reason = error or next(iter(refused), None)
        raise AccessDeniedError(
            f"{max(1, self._num_refused)} images in a row could not be read, nor could others from "
            f"all over the run; one of them: {reason}"
        ) from reason

    def _is_any_read(
        self, requests: Iterable[GetRequest], refused: list[ObjectUnreadableError] | None = None
    ) -> bool:
        for _, body in self._get(requests, gives_unreadable=True):
            if not isinstance(body, ObjectUnreadableError):
                return True
            if refused is not None:
                refused.append(body)
        return False
