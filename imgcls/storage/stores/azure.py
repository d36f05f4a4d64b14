"""A container of Azure Blob Storage.

In: keys, opaque but for "." and ".." segments. Out: bytes, etags, pages. Invariant: both clients
come from one account. Microsoft's own client writes, lists and describes; obstore reads every key
that it can name, faster. A request is sent once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, timedelta
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobProperties, ContainerClient

from imgcls.errors import ConfigError, ObjectChangedError, ObjectMissingError
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
from imgcls.storage.requests.failures import from_azure
from imgcls.storage.requests.retry import StoreHealth
from imgcls.storage.stores import obstore_get
from imgcls.storage.stores.azure_account import MAX_PUT_BYTES, AzureAccount

PAGE_SIZE = 1000
# Of this tier a blob is listed, and a read is refused until it is brought back.
ARCHIVED = "Archive"
# How Azure's tools write an empty folder; in an account with a hierarchy, every folder.
IS_FOLDER = "hdi_isfolder"


class AzureBucket:
    """One container; see `bucket.Bucket` for its methods."""

    def __init__(self, container: str) -> None:
        self._container = container
        self._account = AzureAccount()
        self._store: Any = None
        self.health = StoreHealth()

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages."""
        return self._account.url

    async def get(
        self, key: str, etag: str | None, version_id: str | None, span: Span | None = None
    ) -> Fetched:
        """Read one object, by the faster client where it can name the key."""
        what = self._what("read", key)
        try:
            if obstore_get.can_name(key) and obstore_get.is_alive():
                if self._store is None:
                    self._store = self._account.obstore(self._container)
                return await obstore_get.get(self._store, key, what, etag, version_id, span)
            with _translated(what):
                return await self._account.call(
                    self._container, lambda client: _get(client, key, etag, span)
                )
        except ObjectChangedError:
            # Azurite answers the same where there is nothing to match.
            await self.head(key)
            raise

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        with _translated(self._what("head", key)):
            found = await self._account.call(
                self._container, lambda client: client.get_blob_client(key).get_blob_properties()
            )
        return ObjectInfo(
            uri=self._uri(key),
            etag=unquoted(found.etag),
            size_bytes=found.size,
            last_modified=found.last_modified.astimezone(UTC),
            version_id=None,
        )

    async def put(self, key: str, data: bytes, condition: WriteCondition) -> str:
        """Write one object in one request and return its etag."""
        what = self._what("write", key)
        if len(data) > MAX_PUT_BYTES:
            raise ConfigError(f"{what}: {len(data)} bytes; Azure takes {MAX_PUT_BYTES} at a time")
        request: dict[str, Any] = {"overwrite": condition != "new"}
        if isinstance(condition, IfMatch):
            request["etag"] = quoted(condition.etag)
            request["match_condition"] = MatchConditions.IfNotModified

        def upload(client: ContainerClient) -> dict[str, Any]:
            return client.get_blob_client(key).upload_blob(data, length=len(data), **request)

        with _translated(what):
            reply = await self._account.call(self._container, upload)
        return unquoted(reply["etag"])

    async def delete(self, key: str) -> None:
        """Delete one object; a missing one is fine."""
        try:
            with _translated(self._what("delete", key)):
                await self._account.call(self._container, lambda client: client.delete_blob(key))
        except ObjectMissingError:
            return

    def listing(self, prefix: str, start_after: str | None) -> "AzureListing":
        """Begin to list the keys with this prefix, after the key `start_after`."""
        return AzureListing(self._account, self._container, prefix, start_after)

    async def folder(self, prefix: str) -> Folder | None:
        """Tell that this store is listed in one stream."""
        return None

    async def sign(self, key: str, expires: timedelta) -> str:
        """Return a link that opens one object for whoever has it, for so long."""
        what = self._what("sign a link to", key)
        with _translated(what):
            return await self._account.sign(self._container, key, what, expires)

    async def renew(self) -> None:
        """Read credentials again and rebuild the clients with them."""
        self._account = AzureAccount()
        self._store = None

    def _uri(self, key: str) -> str:
        return f"az://{self._container}/{key}"

    def _what(self, operation: str, key: str) -> str:
        what = f"{operation} {self._uri(key)!r}"
        if has_dot_segment(key):
            raise ConfigError(f"{what}: {DOT_SEGMENT}")
        return what


class AzureListing:
    """A listing in progress: one request a page."""

    def __init__(
        self, account: AzureAccount, container: str, prefix: str, start_after: str | None
    ) -> None:
        self._account, self._container = account, container
        self._prefix, self._start_after = prefix, start_after
        self._marker: str | None = None
        self.exhausted = False

    async def next_page(self) -> list[ObjectInfo | Skipped]:
        """Return the entries of the next page."""
        with _translated(f"list 'az://{self._container}/{self._prefix}'"):
            self._marker, blobs = await self._account.call(self._container, self._page)
        self.exhausted = not self._marker
        return [_entry(f"az://{self._container}/", blob) for blob in blobs]

    def _page(self, client: ContainerClient) -> tuple[str | None, list[BlobProperties]]:
        """Ask for one page, in a thread."""
        # Azurite knows no start, and that of Azure is included: what comes before is dropped here.
        start: Any = {"start_from": self._start_after} if self._start_after is not None else {}
        pages: Any = client.list_blobs(
            self._prefix or None, include=["metadata"], results_per_page=PAGE_SIZE, **start
        ).by_page(self._marker)
        blobs = list(next(pages))
        if self._start_after is not None:
            bound = self._start_after.encode()
            blobs = [blob for blob in blobs if blob.name.encode() > bound]
        return pages.continuation_token, blobs


def _entry(root: str, blob: BlobProperties) -> ObjectInfo | Skipped:
    uri = f"{root}{blob.name}"
    if (blob.metadata or {}).get(IS_FOLDER) == "true" or (
        blob.size == 0 and blob.name.endswith("/")
    ):
        return Skipped(uri, FOLDER_MARKER)
    if has_dot_segment(blob.name):
        return Skipped(uri, DOT_SEGMENT)
    if blob.blob_tier == ARCHIVED:
        return Skipped(uri, f"archived (tier {ARCHIVED}): bring it back to Hot or Cool first")
    return ObjectInfo(
        uri=uri,
        etag=unquoted(blob.etag),
        size_bytes=blob.size,
        last_modified=blob.last_modified.astimezone(UTC),
        version_id=None,
    )


def _get(client: ContainerClient, key: str, etag: str | None, span: Span | None) -> Fetched:
    """Read a blob in one request, by the slower client."""
    condition: dict[str, Any] = {}
    if etag is not None:
        condition = {"etag": quoted(etag), "match_condition": MatchConditions.IfNotModified}
    if span is not None:
        condition |= {"offset": span.start, "length": span.num_bytes}
    reply = client.get_blob_client(key).download_blob(**condition)
    return Fetched(reply.readall(), unquoted(reply.properties.etag))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raise our errors for those of Azure's client."""
    try:
        yield
    except (AzureError, OSError, ValueError) as error:
        raise from_azure(error, what) from error
