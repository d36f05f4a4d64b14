"""Objects of a store behind a network: retries, and certainty about writes whose reply was lost.

In: URIs. Out: the contract of objects.py. Invariant: a write is reported as done only if the store
said so or the object read back equals it, and as refused only if the store said so; between the two
is CommitStateUnknownError.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from imgcls.errors import (
    CommitStateUnknownError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
)
from imgcls.storage.bucket import Bucket, Folder, IfMatch, Listing, WriteCondition
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.requests.background_loop import run, submit
from imgcls.storage.requests.retry import ANSWERS, TransientError, retried
from imgcls.storage.resolver import bucket_of
from imgcls.storage.uri import split_uri

T = TypeVar("T")


def list_entries(prefix_uri: str, start_after: str | None) -> Iterator[ObjectInfo | Skipped]:
    """List a prefix; the next page is on its way while the caller reads this one."""
    scheme, name, prefix = split_uri(prefix_uri)
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    bucket = bucket_of(scheme, name)
    listing = bucket.listing(prefix, split_uri(start_after)[2] if start_after else None)
    coming = submit(_next_page(bucket, listing, prefix_uri))
    try:
        while True:
            entries = coming.result()
            if listing.exhausted:
                yield from entries
                return
            coming = submit(_next_page(bucket, listing, prefix_uri))
            yield from entries
    finally:
        coming.cancel()


def list_folder(prefix_uri: str) -> Folder | None:
    """List one level below a prefix, in one request; None where that cannot be done."""
    scheme, name, prefix = split_uri(prefix_uri)
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    bucket = bucket_of(scheme, name)
    return run(_on(bucket, f"list {prefix_uri!r}", lambda: bucket.folder(prefix), is_quick=True))


async def _next_page(bucket: Bucket, listing: Listing, uri: str) -> list[ObjectInfo | Skipped]:
    return await _on(bucket, f"list {uri!r}", listing.next_page, is_quick=True)


def head(uri: str) -> ObjectInfo:
    """Describe one object."""
    bucket, key = _located(uri)
    return run(_on(bucket, f"head {uri!r}", lambda: bucket.head(key), is_quick=True))


def read_with_etag(uri: str) -> tuple[bytes, str]:
    """Read one whole object and its etag."""
    bucket, key = _located(uri)
    fetched = run(_on(bucket, f"read {uri!r}", lambda: bucket.get(key, None, None)))
    return fetched.data, fetched.etag


def put(uri: str, data: bytes) -> str:
    """Write an object whatever was there; to write it twice does no harm."""
    bucket, key = _located(uri)
    return run(_on(bucket, f"write {uri!r}", lambda: bucket.put(key, data, "always")))


def delete(uri: str) -> None:
    """Delete an object; to delete it twice does no harm."""
    bucket, key = _located(uri)
    run(_on(bucket, f"delete {uri!r}", lambda: bucket.delete(key), is_quick=True))


def put_new(uri: str, data: bytes) -> str:
    """Create an object; see objects.put_new."""
    bucket, key = _located(uri)
    return run(_CheckedWrite(bucket, key, data, "new").run(uri))


def put_if_match(uri: str, data: bytes, etag: str) -> str:
    """Replace an object that is still this version; see objects.put_if_match."""
    bucket, key = _located(uri)
    try:
        return run(_CheckedWrite(bucket, key, data, IfMatch(etag)).run(uri))
    except ObjectChangedError:
        # Some stores answer 412 where there is nothing to match, others 404.
        head(uri)
        raise


class _CheckedWrite:
    """A write under a condition.

    Once a reply was lost it looks at the object before the next try, and after a refusal.
    """

    def __init__(self, bucket: Bucket, key: str, data: bytes, condition: WriteCondition) -> None:
        self._bucket, self._key, self._data, self._condition = bucket, key, data, condition
        self._in_doubt = False

    async def run(self, uri: str) -> str:
        """Write, and return the etag."""
        try:
            return await _on(self._bucket, f"write {uri!r}", self._attempt)
        except ANSWERS:
            raise
        except StorageError as error:
            if not self._in_doubt:
                raise
            raise CommitStateUnknownError(
                f"{error}. Whether it was written could not be learnt; run the same command again"
            ) from error

    async def _attempt(self) -> str:
        if self._in_doubt:
            found = await self._found()
            if found is not None:
                return found
        try:
            return await self._bucket.put(self._key, self._data, self._condition)
        except TransientError as error:
            self._in_doubt = self._in_doubt or error.sent
            raise
        except (ObjectExistsError, ObjectChangedError):
            if not self._in_doubt:
                raise
        # Perhaps it is our own earlier write, landed late, that refused this one.
        found = await self._found()
        if found is None:
            raise TransientError("the object came and went while it was written")
        return found

    async def _found(self) -> str | None:
        """Read the object back.

        Returns:
            Its etag if it holds our bytes; None if nothing was written, so another try is right.

        Raises:
            ObjectExistsError, ObjectChangedError, ObjectMissingError: somebody else was there.
        """
        what = f"write {self._key!r}"
        try:
            fetched = await self._bucket.get(self._key, None, None)
        except ObjectMissingError:
            if self._condition == "new":
                return None
            raise
        if fetched.data == self._data:
            return fetched.etag
        if self._condition == "new":
            raise ObjectExistsError(f"{what}: another writer was first")
        if self._condition == IfMatch(fetched.etag):
            return None
        raise ObjectChangedError(f"{what}: not the version that was asked for")


async def _on(
    bucket: Bucket, what: str, attempt: Callable[[], Awaitable[T]], *, is_quick: bool = False
) -> T:
    return await retried(
        lambda: f"{what} at {bucket.endpoint}",
        bucket.health,
        attempt,
        renew=bucket.renew,
        is_quick=is_quick,
    )


def _located(uri: str) -> tuple[Bucket, str]:
    scheme, name, key = split_uri(uri)
    return bucket_of(scheme, name), key
