"""A bucket of S3, or of anything that speaks its protocol.

In: keys, opaque. Out: bytes, etags, pages. Invariant: both clients come from one account. botocore
writes, lists and describes, and names any key there is; obstore reads, seven times as fast, every
key that it can name.

Why botocore and not s3fs for the writes: aiohttp, below s3fs, sends a PUT once more when its reply
is lost, and says nothing (`ClientSession._retry_connection`, aiohttp 3.14). Of a conditional PUT
only the second reply is seen then: 412, caused by our own first. botocore sends what it is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, timedelta
from typing import Any

from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    BotoCoreError,
    ClientError,
)
from botocore.parsers import (  # type: ignore[import-untyped]  # as above
    ResponseParserError,
)
from urllib3.exceptions import HTTPError

from imgcls.errors import ConfigError, ObjectChangedError, ObjectExistsError, StorageError
from imgcls.storage.bucket import Fetched, Folder, IfMatch, Span, WriteCondition, quoted, unquoted
from imgcls.storage.info import FOLDER_MARKER, ObjectInfo, Skipped
from imgcls.storage.requests.failures import from_botocore
from imgcls.storage.requests.retry import StoreHealth, TransientError
from imgcls.storage.stores import obstore_get
from imgcls.storage.stores.s3_account import S3Account

PAGE_SIZE = 1000
# A body that breaks off is urllib3's error, all else botocore's.
ERRORS = (BotoCoreError, ClientError, ResponseParserError, HTTPError, OSError, ValueError)

# Of these classes an object is listed, and a GET answers 403 until it is restored.
ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")


class S3Bucket:
    """One bucket; see `bucket.Bucket` for its methods."""

    def __init__(self, account: S3Account, bucket: str) -> None:
        self._account, self._bucket = account, bucket
        self.health = StoreHealth()

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages."""
        return self._account.endpoint

    async def get(
        self, key: str, etag: str | None, version_id: str | None, span: Span | None = None
    ) -> Fetched:
        """Read one object: by obstore, or by s3fs a key that obstore cannot name."""
        what = self._what("read", key)
        if obstore_get.can_name(key) and obstore_get.is_alive():
            store = self._account.built_obstore(self._bucket)
            if store is None:
                with _translated(what):
                    store = await self._account.obstore(self._bucket)
            return await obstore_get.get(store, key, what, etag, version_id, span)
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        if etag is not None:
            request["IfMatch"] = quoted(etag)
        if version_id is not None:
            request["VersionId"] = version_id
        if span is not None:
            request["Range"] = span.header
        with _translated(what):
            files = await self._account.s3fs()
            # Not `cat_file`, which reads whatever version there is.
            reply = await files._call_s3("get_object", **request)
            data = await _read(reply["Body"])
        if len(data) != reply["ContentLength"]:
            raise TransientError(f"truncated body: {len(data)} of {reply['ContentLength']} bytes")
        return Fetched(data, unquoted(reply.get("ETag")))

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        with _translated(self._what("head", key)):
            request = {"Bucket": self._bucket, "Key": key}
            try:
                reply = await self._account.call("head_object", request)
            except ClientError as error:
                if error.response["Error"]["Code"] == "404" and not self.health.has_allowed:
                    await self._require_bucket()
                raise
        return ObjectInfo(
            uri=self._uri(key),
            etag=unquoted(reply["ETag"]),
            size_bytes=reply["ContentLength"],
            last_modified=reply["LastModified"].astimezone(UTC),
            version_id=reply.get("VersionId"),
        )

    async def put(self, key: str, data: bytes, condition: WriteCondition) -> str:
        """Write one object in one request and return its etag."""
        request: dict[str, Any] = {"Bucket": self._bucket, "Key": key, "Body": data}
        if isinstance(condition, IfMatch):
            request["IfMatch"] = quoted(condition.etag)
        elif condition == "new":
            request["IfNoneMatch"] = "*"
        what = self._what("write", key)
        try:
            with _translated(what):
                reply = await self._account.call("put_object", request)
        except ObjectChangedError as error:
            if condition == "new":
                raise ObjectExistsError(f"{what}: another writer was first") from error
            raise
        return unquoted(reply["ETag"])

    async def delete(self, key: str) -> None:
        """Delete one object; S3 answers the same for a missing one."""
        with _translated(self._what("delete", key)):
            await self._account.call("delete_object", {"Bucket": self._bucket, "Key": key})

    def listing(self, prefix: str, start_after: str | None) -> "S3Listing":
        """Begin to list the keys with this prefix, after the key `start_after`."""
        return S3Listing(self._account, self._bucket, prefix, start_after)

    async def folder(self, prefix: str) -> Folder | None:
        """List one level below the prefix, in one request; None where it is more than a page."""
        what = f"list s3://{self._bucket}/{prefix}"
        request = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        with _translated(what):
            page = await self._account.call("list_objects_v2", request | {"MaxKeys": PAGE_SIZE})
        if page.get("IsTruncated"):
            return None
        entries = [_entry(self._bucket, item) for item in page.get("Contents", [])]
        folders = [self._uri(item["Prefix"]) for item in page.get("CommonPrefixes", [])]
        return Folder(folders, entries)

    async def call(self, operation: str, request: dict[str, Any], uri: str) -> dict[str, Any]:
        """Make a request of this bucket that no other store has, and return the reply."""
        with _translated(f"{operation} {uri!r}"):
            reply = await self._account.call(operation, {"Bucket": self._bucket, **request})
        return dict(reply)

    async def sign(self, key: str, expires: timedelta) -> str:
        """Return a link that opens one object for whoever has it, for so long."""
        store = await self._account.obstore(self._bucket)
        return await obstore_get.sign(store, key, self._what("sign a link to", key), expires)

    async def renew(self) -> None:
        """Read credentials again and rebuild the clients with them."""
        await self._account.renew()

    async def _require_bucket(self) -> None:
        """The reply to a HEAD has no body that would tell a missing bucket from a missing key."""
        try:
            await self._account.call("head_bucket", {"Bucket": self._bucket})
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                raise ConfigError(f"s3://{self._bucket}: the bucket does not exist") from error
            raise

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _what(self, operation: str, key: str) -> str:
        return f"{operation} {self._uri(key)!r}"


class S3Listing:
    """A listing in progress: one request a page."""

    def __init__(
        self, account: S3Account, bucket: str, prefix: str, start_after: str | None
    ) -> None:
        self._account, self._bucket = account, bucket
        self._request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        self._request["MaxKeys"] = PAGE_SIZE
        if start_after is not None:
            self._request["StartAfter"] = start_after
        self.exhausted = False

    async def next_page(self) -> list[ObjectInfo | Skipped]:
        """Return the entries of the next page."""
        what = f"list s3://{self._bucket}/{self._request['Prefix']}"
        with _translated(what):
            # botocore asks for URL encoding and undoes it: without, a control character breaks the
            # XML.
            page = await self._account.call("list_objects_v2", self._request)
        if page.get("IsTruncated"):
            token = page.get("NextContinuationToken")
            if not token or token == self._request.get("ContinuationToken"):
                raise StorageError(f"{what}: a truncated page without a way on to the next")
            self._request["ContinuationToken"] = token
        else:
            self.exhausted = True
        return [_entry(self._bucket, item) for item in page.get("Contents", [])]


def _entry(bucket: str, item: dict[str, Any]) -> ObjectInfo | Skipped:
    uri = f"s3://{bucket}/{item['Key']}"
    if item["Size"] == 0 and item["Key"].endswith("/"):
        return Skipped(uri, FOLDER_MARKER)
    if item.get("StorageClass") in ARCHIVED:
        return Skipped(uri, f"archived ({item['StorageClass']}): restore it first")
    return ObjectInfo(
        uri=uri,
        etag=unquoted(item["ETag"]),
        size_bytes=item["Size"],
        last_modified=item["LastModified"].astimezone(UTC),
        version_id=None,
    )


async def _read(body: Any) -> bytes:  # noqa: ANN401  (aiobotocore ships no types)
    from aiohttp import ClientError as TransportError

    try:
        async with body:
            data: bytes = await body.read()
    except TransportError as error:
        raise TransientError(f"{type(error).__name__}: {error}") from error
    return data


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raise our errors for those of botocore."""
    try:
        yield
    except ERRORS as error:
        # s3fs wraps what botocore raised in an OSError.
        cause = error.__cause__
        raise from_botocore(cause if isinstance(cause, ClientError) else error, what) from error
