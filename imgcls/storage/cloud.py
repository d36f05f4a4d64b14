"""Buckets of Google Cloud Storage and Azure Blob Storage, both planes by obstore.

In: keys. Out: bytes, etags, pages. Invariant: the same contract as s3.py, but for keys that obstore
cannot name (control characters, empty, "." and ".." segments): those are refused by name, and a
listing that holds one fails.

NOT TESTED against the real services: no server of either runs in the test suite. What is tested is
S3, through which this file shares its GET, its error mapping, its retries and its read-back.
Credentials are obstore's own chain:
GOOGLE_APPLICATION_CREDENTIALS or the instance's account; AZURE_STORAGE_ACCOUNT_NAME with a key, SAS
token or identity.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from typing import Any

import obstore
from obstore.store import AzureStore, GCSStore

from imgcls.errors import ConfigError, StorageError
from imgcls.storage import obstore_get
from imgcls.storage.bucket import Fetched, Folder, IfMatch, WriteCondition, quoted, unquoted
from imgcls.storage.failures import from_obstore
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.retry import StoreHealth

PAGE_SIZE = 1000
STORES = {"gs": GCSStore, "az": AzureStore}


class CloudBucket:
    """One bucket or container; see `bucket.Bucket` for its methods."""

    def __init__(self, scheme: str, bucket: str) -> None:
        self._scheme, self._bucket = scheme, bucket
        self._store = self._build()
        self.health = StoreHealth()

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages."""
        return {"gs": "Google Cloud Storage", "az": "Azure Blob Storage"}[self._scheme]

    async def get(self, key: str, etag: str | None, version_id: str | None) -> Fetched:
        """Read one object whole."""
        what = self._what("read", key)
        return await obstore_get.get(self._store, key, what, etag, version_id)

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        with _translated(self._what("head", key)):
            return self._info(await obstore.head_async(self._store, key))

    async def put(self, key: str, data: bytes, condition: WriteCondition) -> str:
        """Write one object in one request and return its etag."""
        mode: Any = {"new": "create", "always": "overwrite"}.get(str(condition))
        if isinstance(condition, IfMatch):
            mode = {"e_tag": quoted(condition.etag)}
        with _translated(self._what("write", key)):
            result = await obstore.put_async(self._store, key, data, mode=mode, use_multipart=False)
        return unquoted(result["e_tag"])

    async def delete(self, key: str) -> None:
        """Delete one object; a missing one is fine."""
        what = self._what("delete", key)
        try:
            with _translated(what):
                await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return

    def listing(self, prefix: str, start_after: str | None) -> "CloudListing":
        """Begin to list the keys with this prefix, after the key `start_after`."""
        return CloudListing(self, prefix, start_after)

    async def folder(self, prefix: str) -> Folder | None:
        """Tell that these stores are listed in one stream."""
        return None

    async def renew(self) -> None:
        """Read credentials anew and rebuild the client with them."""
        self._store = self._build()

    def _build(self) -> Any:  # noqa: ANN401  (obstore is typed by stubs only)
        if not obstore_get.is_alive():
            raise StorageError(
                f"{self._scheme}:// does not work in a forked process; use spawn or forkserver"
            )
        try:
            return STORES[self._scheme](
                self._bucket,
                client_options=obstore_get.CLIENT_OPTIONS,
                retry_config=obstore_get.NO_RETRIES,
            )
        except obstore_get.ERRORS as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{self._scheme}://{self._bucket}: {reason}") from error

    def _info(self, meta: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(
            uri=f"{self._scheme}://{self._bucket}/{meta['path']}",
            etag=unquoted(meta["e_tag"]),
            size_bytes=meta["size"],
            last_modified=meta["last_modified"].astimezone(UTC),
            version_id=meta["version"],
        )

    def _what(self, operation: str, key: str) -> str:
        what = f"{operation} '{self._scheme}://{self._bucket}/{key}'"
        if not obstore_get.can_name(key):
            raise ConfigError(
                f"{what}: gs:// and az:// keys with such characters are not supported"
            )
        return what


class CloudListing:
    """A listing in progress; after a failure it starts anew behind the last key it gave."""

    def __init__(self, bucket: CloudBucket, prefix: str, start_after: str | None) -> None:
        self._bucket, self._prefix, self._last_key = bucket, prefix, start_after
        self._stream: Any = None
        self.exhausted = False

    async def next_page(self) -> list[ObjectInfo | Skipped]:
        """Return the entries of the next page."""
        if self._stream is None:
            self._stream = obstore.list(
                self._bucket._store,
                self._prefix.removesuffix("/") or None,
                offset=self._last_key,
                chunk_size=PAGE_SIZE,
            )
        try:
            with _translated(f"list {self._prefix!r}"):
                metas = await anext(self._stream, None)
        except BaseException:
            self._stream = None
            raise
        if metas is None:
            self.exhausted = True
            return []
        self._last_key = metas[-1]["path"]
        return [self._bucket._info(meta) for meta in metas]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Raise our errors for those of obstore."""
    try:
        yield
    except obstore_get.ERRORS as error:
        raise from_obstore(error, what) from error
