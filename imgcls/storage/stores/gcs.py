"""A bucket of Google Cloud Storage.

In: keys, opaque but for "." and ".." segments. Out: bytes, ETags, pages. Invariant: both clients
come from one account and speak the XML API. Plain requests write, list and describe; obstore reads
every key that it can name.

Google compares generations, not ETags, when it writes: an ETag that a caller holds is looked up
first, and the write is bound to the generation that had it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from imgcls.errors import ConfigError, ObjectChangedError, ObjectExistsError, ObjectMissingError
from imgcls.storage.bucket import (
    DOT_SEGMENT,
    Fetched,
    Folder,
    IfMatch,
    Span,
    WriteCondition,
    has_dot_segment,
    quoted,
    unquoted,
)
from imgcls.storage.info import FOLDER_MARKER, ObjectInfo, Skipped
from imgcls.storage.requests.failures import from_status
from imgcls.storage.requests.retry import StoreHealth, TransientError
from imgcls.storage.stores import obstore_get
from imgcls.storage.stores.gcs_account import GcsAccount, Reply

PAGE_SIZE = 1000
GENERATION = "x-goog-generation"
IF_GENERATION = "x-goog-if-generation-match"


class GcsBucket:
    """One bucket; see `bucket.Bucket` for its methods."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._account = GcsAccount()
        self._store: Any = None
        self.health = StoreHealth()

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages."""
        return self._account.endpoint

    async def get(
        self, key: str, etag: str | None, version_id: str | None, span: Span | None = None
    ) -> Fetched:
        """Read one object, by the faster client where it can name the key.

        The generation is not asked for beside an ETag: one that was overwritten is "not there" to
        Google, and what we want to know is that it changed.
        """
        what = self._what("read", key)
        version = version_id if etag is None else None
        if obstore_get.can_name(key) and obstore_get.is_alive():
            if self._store is None:
                self._store = self._account.obstore(self._bucket)
            return await obstore_get.get(self._store, key, what, etag, version, span)
        query = {"generation": version} if version else None
        headers = {"If-Match": quoted(etag)} if etag is not None else {}
        if span is not None:
            headers["Range"] = span.header
        reply = await self._call("GET", key, what, query=query, headers=headers)
        return Fetched(reply.body, unquoted(reply.headers.get("ETag")))

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        headers = (await self._head(key, self._what("head", key))).headers
        size = headers.get("x-goog-stored-content-length") or headers["Content-Length"]
        return ObjectInfo(
            uri=self._uri(key),
            etag=unquoted(headers["ETag"]),
            size_bytes=int(size),
            last_modified=parsedate_to_datetime(headers["Last-Modified"]).astimezone(UTC),
            version_id=None,
        )

    async def put(self, key: str, data: bytes, condition: WriteCondition) -> str:
        """Write one object in one request and return its ETag."""
        what = self._what("write", key)
        headers = {"Content-Type": "application/octet-stream"}
        if condition == "new":
            headers[IF_GENERATION] = "0"
        elif isinstance(condition, IfMatch):
            current = (await self._head(key, what)).headers
            if unquoted(current["ETag"]) != condition.etag:
                raise ObjectChangedError(f"{what}: not the version that was asked for")
            headers[IF_GENERATION] = current[GENERATION]
        try:
            reply = await self._call("PUT", key, what, headers=headers, data=data)
        except ObjectChangedError as error:
            if condition == "new":
                raise ObjectExistsError(f"{what}: another writer was first") from error
            raise
        return unquoted(reply.headers["ETag"])

    async def delete(self, key: str) -> None:
        """Delete one object; a missing one is fine."""
        try:
            await self._call("DELETE", key, self._what("delete", key))
        except ObjectMissingError:
            return

    def listing(self, prefix: str, start_after: str | None) -> "GcsListing":
        """Begin to list the keys with this prefix, after the key `start_after`."""
        return GcsListing(self, prefix, start_after)

    async def folder(self, prefix: str) -> Folder | None:
        """List one level below the prefix, in one request; None where it is more than a page."""
        page = await self.list_page({"prefix": prefix, "delimiter": "/"})
        if page.is_truncated:
            return None
        return Folder([self._uri(folder) for folder in page.folders], page.entries)

    async def sign(self, key: str, expires: timedelta) -> str:
        """Return a link that opens one object for whoever has it, for so long."""
        store = self._account.obstore(self._bucket)
        return await obstore_get.sign(store, key, self._what("sign a link to", key), expires)

    async def renew(self) -> None:
        """Read credentials again and rebuild the clients with them."""
        self._account = GcsAccount()
        self._store = None

    async def list_page(self, query: Mapping[str, str]) -> "GcsPage":
        """Ask for one page of a listing."""
        what = f"list {self._uri(query.get('prefix', ''))!r}"
        # Names quoted: without, a control character breaks the XML.
        fixed = {"list-type": "2", "encoding-type": "url", "max-keys": str(PAGE_SIZE)}
        reply = await self._call("GET", "", what, query=fixed | dict(query))
        try:
            return GcsPage(self._bucket, ET.fromstring(reply.body))  # noqa: S314  (the store's own words)
        except (ET.ParseError, ValueError) as error:
            raise TransientError(f"a listing that cannot be read: {error}") from error

    async def _head(self, key: str, what: str) -> Reply:
        try:
            return await self._call("HEAD", key, what)
        except ObjectMissingError:
            # The reply to a HEAD has no body that would tell a missing bucket from a missing key.
            if not self.health.has_allowed:
                await self.list_page({"prefix": key, "max-keys": "1"})
            raise

    async def _call(self, method: str, key: str, what: str, **request: Any) -> Reply:  # noqa: ANN401  (passed on)
        reply = await self._account.call(method, self._bucket, key, what, **request)
        if reply.status < 300:
            return reply
        code, message = _error_of(reply.body)
        reason = f"{code}: {message}" if code else f"HTTP status {reply.status}"
        raise from_status(reply.status, code, reason, what)

    def _uri(self, key: str) -> str:
        return f"gs://{self._bucket}/{key}"

    def _what(self, operation: str, key: str) -> str:
        what = f"{operation} {self._uri(key)!r}"
        if has_dot_segment(key):
            raise ConfigError(f"{what}: {DOT_SEGMENT}")
        return what


class GcsListing:
    """A listing in progress: one request a page."""

    def __init__(self, bucket: GcsBucket, prefix: str, start_after: str | None) -> None:
        self._bucket = bucket
        self._query = {"prefix": prefix}
        if start_after is not None:
            self._query["start-after"] = start_after
        self.exhausted = False

    async def next_page(self) -> list[ObjectInfo | Skipped]:
        """Return the entries of the next page."""
        page = await self._bucket.list_page(self._query)
        if page.is_truncated:
            self._query["continuation-token"] = page.next_token
        else:
            self.exhausted = True
        return page.entries


class GcsPage:
    """One page, read."""

    def __init__(self, bucket: str, root: ET.Element) -> None:
        is_quoted = _text(root, "EncodingType") == "url"

        def name(text: str) -> str:
            return unquote(text) if is_quoted else text

        self.next_token = _text(root, "NextContinuationToken")
        self.is_truncated = _text(root, "IsTruncated") == "true"
        if self.is_truncated and not self.next_token:
            raise ValueError("a truncated page without a way on to the next")
        self.folders = [name(_text(item, "Prefix")) for item in root.iterfind("{*}CommonPrefixes")]
        self.entries = [
            _entry(f"gs://{bucket}/", name(_text(item, "Key")), item)
            for item in root.iterfind("{*}Contents")
        ]


def _entry(root: str, key: str, item: ET.Element) -> ObjectInfo | Skipped:
    size_bytes = int(_text(item, "Size"))
    if size_bytes == 0 and key.endswith("/"):
        return Skipped(f"{root}{key}", FOLDER_MARKER)
    if has_dot_segment(key):
        return Skipped(f"{root}{key}", DOT_SEGMENT)
    return ObjectInfo(
        uri=f"{root}{key}",
        etag=unquoted(_text(item, "ETag")),
        size_bytes=size_bytes,
        last_modified=datetime.fromisoformat(_text(item, "LastModified")).astimezone(UTC),
        version_id=None,
    )


def _error_of(body: bytes) -> tuple[str, str]:
    """Return code and message of an error reply, empty where it has none."""
    try:
        root = ET.fromstring(body)  # noqa: S314  (the store's own words)
    except ET.ParseError:
        return "", ""
    return _text(root, "Code"), _text(root, "Message")


def _text(element: ET.Element, name: str) -> str:
    return element.findtext(f"{{*}}{name}") or ""
