"""Read images wherever they lie: whole objects, and members of containers, several a request.

In: requests, as `get_many` takes them, and requests for members. Out: (index, bytes or error), as
from `get_many`. Invariant: every request gives exactly one result; a member's bytes are those that
a loose file would have; they are read under the etag of their container, and memory holds a bounded
part of it, whatever its size.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Final, cast

from imgcls.errors import (
    CorruptImageError,
    DecodeError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceError,
    StorageError,
)
from imgcls.sources import zip as zips
from imgcls.sources.members import MemberRequest, Method, error_of
from imgcls.sources.parquet import read_rows
from imgcls.sources.tar import stream_tar
from imgcls.storage.access import ImageResult
from imgcls.storage.bucket import Span
from imgcls.storage.bulk_get import GetRequest, get_many

# Members that lie close are read in one request: a GET costs about what a megabyte more does.
MAX_REQUEST_BYTES: Final = 4 << 20
_MAX_GAP_BYTES: Final = 128 << 10
_MAX_REQUESTS_IN_FLIGHT: Final = 8

# (number, bytes) of the members of a container, or why its bytes cannot be had.
Numbered = Iterator[tuple[int, bytes | DecodeError]]


def get_images(
    requests: Iterable[GetRequest], *, max_in_flight: int = 32, gives_unreadable: bool = False
) -> Generator[ImageResult]:
    """Read images whole.

    Args:
        requests: GetRequest for an object, MemberRequest for a member; those of one container
            should follow each other, in order of their places.
        max_in_flight: as for `get_many`.
        gives_unreadable: as for `get_many`.

    Yields:
        As `get_many`; of a member also a DecodeError, where its container does not give its bytes.

    Raises:
        AccessDeniedError, StorageError, ConfigError: as for `get_many`.
    """
    for (kind, _), group in groupby(requests, key=_kind_of):
        if kind == "object":
            results = get_many(
                group, max_in_flight=max_in_flight, gives_unreadable=gives_unreadable
            )
            with closing(results):
                yield from results
            continue
        members = cast(Iterator[MemberRequest], group)
        if kind == "problem":
            yield from ((one.index, error_of(one.place.problem)) for one in members)
        elif kind == "span":
            yield from _read_spans(members, gives_unreadable=gives_unreadable)
        else:
            yield from _read_in_order(members, gives_unreadable=gives_unreadable)


def _kind_of(request: GetRequest) -> tuple[str, str]:
    """Return how a request is read, and of which container where it is read from its start on."""
    if not isinstance(request, MemberRequest):
        return "object", ""
    if request.place.problem:
        return "problem", ""
    method = request.place.method
    if method in _IN_ORDER:
        return method, request.uri
    if method not in _BY_SPAN:
        raise SourceError(
            f"{request.uri}: the plan says that its members are read by {method!r}, which this "
            "version of imgcls cannot: continue with the version that planned the run"
        )
    return "span", ""


def _read_spans(
    members: Iterator[MemberRequest], *, gives_unreadable: bool
) -> Iterator[ImageResult]:
    """Read members that lie at places of their own."""
    jobs: dict[int, list[MemberRequest]] = {}

    def spans() -> Iterator[GetRequest]:
        for job in _together(members):
            first = job[0]
            jobs[first.index] = job
            yield GetRequest(
                first.index, first.uri, first.etag, first.version_id, span=_span_of(job)
            )

    results = get_many(
        spans(), max_in_flight=_MAX_REQUESTS_IN_FLIGHT, gives_unreadable=gives_unreadable
    )
    with closing(results):
        for number, body in results:
            job = jobs.pop(number)
            if isinstance(body, bytes):
                yield from _Opened(job[0].place.start, body).take(job)
            else:
                yield from ((request.index, body) for request in job)


def _together(members: Iterator[MemberRequest]) -> Iterator[list[MemberRequest]]:
    """Yield the members that one request reads."""
    job: list[MemberRequest] = []
    for request in members:
        if job and not _joins(job, request):
            yield job
            job = []
        job.append(request)
    if job:
        yield job


def _joins(job: list[MemberRequest], request: MemberRequest) -> bool:
    """Tell whether a member lies so close behind those of a job that one request reads both."""
    first, span = job[0], _span_of(job)
    end = request.place.start + request.place.num_bytes
    span_end = span.start + span.num_bytes
    is_near = span.start <= request.place.start <= span_end + _MAX_GAP_BYTES
    fits = end <= span_end or end - span.start <= MAX_REQUEST_BYTES
    return (first.uri, first.etag) == (request.uri, request.etag) and is_near and fits


def _span_of(job: list[MemberRequest]) -> Span:
    start = job[0].place.start
    end = max(request.place.start + request.place.num_bytes for request in job)
    return Span(start, max(1, end - start))


@dataclass
class _Opened:
    """Bytes of a container, from `start` on, and the inner zip that was opened last."""

    start: int
    body: bytes
    inner_start: int = -1
    inner: zips.InnerZip | DecodeError | None = None

    def take(self, job: list[MemberRequest]) -> Iterator[ImageResult]:
        """Yield the result of each member."""
        for request in job:
            try:
                yield request.index, self._bytes_of(request)
            except DecodeError as error:
                yield request.index, error

    def _bytes_of(self, request: MemberRequest) -> bytes:
        place = request.place
        start = place.start - self.start
        data = self.body[start : start + place.num_bytes]
        if place.method == "inner":
            return self._open_inner(data, request).read(place.inner_start)
        if place.crc32 is not None:
            return zips.unpack(data, place, request.size_bytes)
        if len(data) != place.num_bytes:
            raise CorruptImageError(f"its archive ends after {len(data)} of its bytes")
        return data

    def _open_inner(self, data: bytes, request: MemberRequest) -> zips.InnerZip:
        """Inflate a zip in a zip, once for all of its members that follow each other."""
        if self.inner_start != request.place.start:
            self.inner_start = request.place.start
            try:
                self.inner = zips.InnerZip(zips.unpack_inner(data, request.place))
            except DecodeError as error:
                self.inner = error
        if isinstance(self.inner, DecodeError):
            raise self.inner
        assert self.inner is not None, "opened above"
        return self.inner


def _read_in_order(
    members: Iterator[MemberRequest], *, gives_unreadable: bool
) -> Iterator[ImageResult]:
    """Read members of one container that are known by their numbers, in ascending order."""
    wanted = {request.place.start: request for request in members}
    first = next(iter(wanted.values()))
    error: StorageError | DecodeError = CorruptImageError("its container ends before it")
    try:
        for number, data in _IN_ORDER[first.place.method](first, sorted(wanted)):
            if number in wanted:
                yield wanted.pop(number).index, data
            if not wanted:
                return
    except (ObjectMissingError, ObjectChangedError) as gone:
        error = gone
    except ObjectUnreadableError as refused:
        if not gives_unreadable:
            raise
        error = refused
    yield from ((request.index, error) for request in wanted.values())


def _rows(first: MemberRequest, numbers: Sequence[int]) -> Numbered:
    return read_rows(first.container(), first.place.column, numbers)


def _of_compressed_tar(first: MemberRequest, _: Sequence[int]) -> Numbered:
    return ((number, data) for number, _, _, data in stream_tar(first.container()))


# What reads the members that are known by their numbers; others lie at places of their own.
_IN_ORDER: Final[dict[Method, Callable[[MemberRequest, Sequence[int]], Numbered]]] = {
    "row": _rows,
    "stream": _of_compressed_tar,
}
_BY_SPAN: Final[tuple[Method, ...]] = ("stored", "deflate", "inner")
