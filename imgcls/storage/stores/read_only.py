"""Places that fsspec reaches and imgcls only reads: https://, http:// and sftp://.

In: keys below one host. Out: bytes, etags, pages of a listing. Invariants: nothing is written here;
an object is handed out only if it was the same version before and after it was read, as these
places take no condition with a read.

An etag is the server's own where it has one, else modification time and size. Where there is not
even a time it begins with UNVERSIONED: a night cannot tell what changed, and refuses such a source.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NoReturn, TypeVar

import fsspec  # type: ignore[import-untyped]  # fsspec ships no types

from imgcls.config.paths import PLACES
from imgcls.errors import ConfigError, ObjectChangedError
from imgcls.storage.bucket import Fetched, Folder, Span, WriteCondition, unquoted
from imgcls.storage.info import UNVERSIONED, ObjectInfo, Skipped
from imgcls.storage.requests.retry import StoreHealth, TransientError
from imgcls.storage.stores.read_only_errors import from_fsspec
from imgcls.storage.stores.sftp import open_sftp

T = TypeVar("T")

STALL_TIMEOUT_S = 20.0
# Each holds a connection of its own: paramiko's must not be shared by threads.
MAX_CONNECTIONS = 8


class ReadOnlyBucket:
    """One host; lives on the background loop, its requests block in threads of its own."""

    def __init__(self, scheme: str, host: str) -> None:
        self.health = StoreHealth()
        self._scheme, self._host = scheme, host
        self._of_thread = threading.local()
        self._generation = 0
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, f"imgcls-{scheme}")

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages."""
        return f"{self._scheme}://{self._host}"

    async def get(
        self, key: str, etag: str | None, version_id: str | None, span: Span | None = None
    ) -> Fetched:
        """Read one object or a span; these places keep no versions, so `version_id` is None."""
        assert version_id is None, "no such place names versions"
        what = f"read {self._uri(key)!r}"
        return await self._call(what, lambda files: self._get(files, key, etag, span, what))

    def _get(self, files: Any, key: str, etag: str | None, span: Span | None, what: str) -> Fetched:  # noqa: ANN401  (fsspec has no types)
        before = self._info(files, key)
        if etag is not None and before.etag != etag:
            raise ObjectChangedError(f"{what}: not the version that was asked for")
        start, wanted = 0, before.size_bytes
        if span is not None:
            start, wanted = span.start, span.length_in(before.size_bytes)
        data: bytes = b""
        if wanted:
            data = files.cat_file(self._path(key), start=start, end=start + wanted)
        if len(data) == before.size_bytes > wanted:
            # Some web servers answer with all of it, whatever range was asked for.
            data = data[start : start + wanted]
        after = self._info(files, key)
        if after.etag != before.etag:
            raise ObjectChangedError(f"{what}: somebody wrote to it meanwhile")
        if len(data) != wanted:
            raise TransientError(f"truncated body: {len(data)} of {wanted} bytes")
        return Fetched(data, after.etag)

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        return await self._call(f"head {self._uri(key)!r}", lambda files: self._info(files, key))

    def _info(self, files: Any, key: str) -> ObjectInfo:  # noqa: ANN401  (fsspec has no types)
        found = files.info(self._path(key))
        if found["type"] == "directory":
            raise FileNotFoundError(key)
        if found.get("size") is None:
            raise ConfigError(f"{self._uri(key)}: the server does not tell its size")
        return self._described(key, found)

    def _described(self, key: str, found: dict[str, Any]) -> ObjectInfo:
        size, modified = int(found["size"]), found.get("mtime")
        if modified is None and found.get("Last-Modified"):
            modified = parsedate_to_datetime(found["Last-Modified"])
        if found.get("ETag"):
            etag = unquoted(found["ETag"])
        elif modified is not None:
            etag = f"{int(modified.timestamp() * 1e9):x}-{size:x}"
        else:
            etag = f"{UNVERSIONED}{size:x}"
        when = (modified or datetime.fromtimestamp(0, UTC)).astimezone(UTC)
        return ObjectInfo(self._uri(key), etag, size, when, None)

    async def put(self, key: str, data: bytes, condition: WriteCondition) -> str:
        """Refuse to write."""
        self._refuse(f"write {self._uri(key)!r}")

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        self._refuse(f"delete {self._uri(key)!r}")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(f"{what}: imgcls only reads {self._scheme}://; write to {PLACES}")

    def listing(self, prefix: str, start_after: str | None) -> "ReadOnlyListing":
        """Begin to list the keys with this prefix, after the key `start_after`."""
        return ReadOnlyListing(self, prefix, start_after or "")

    async def folder(self, prefix: str) -> Folder | None:
        """Leave it to `listing`: one request a folder is all that there is here."""
        return None

    async def list_one(self, prefix: str) -> tuple[list[ObjectInfo | Skipped], list[str]]:
        """List one level: its files, and the prefixes of the folders in it."""
        what = f"list {self._uri(prefix)!r}"
        if self._scheme != "sftp":
            raise ConfigError(
                f"{what}: a web server does not list its files; name them in a manifest with a "
                "column uri"
            )
        found = await self._call(what, lambda files: files.ls(self._path(prefix), detail=True))
        entries: list[ObjectInfo | Skipped] = []
        folders = []
        for item in sorted(found, key=lambda item: str(item["name"])):
            key = prefix + str(item["name"]).rpartition("/")[2]
            if item["type"] == "link":
                item = await self._call(what, partial(_target, path=self._path(key)))
            if item is None:
                entries.append(Skipped(self._uri(key), "a link that leads nowhere, or to a folder"))
            elif item["type"] == "directory":
                folders.append(f"{key}/")
            else:
                entries.append(self._described(key, item))
        return entries, folders

    async def sign(self, key: str, expires: timedelta) -> str:
        """Refuse: who may read here is for the server to say."""
        raise ConfigError(f"{self._uri(key)}: a web or SFTP server signs no links")

    async def renew(self) -> None:
        """Let every thread connect again, with credentials read again."""
        self._generation += 1

    async def _call(self, what: str, do: Callable[[Any], T]) -> T:
        def blocking() -> T:
            generation = self._generation
            try:
                if getattr(self._of_thread, "generation", None) != generation:
                    self._of_thread.files = self._connect()
                    self._of_thread.generation = generation
                return do(self._of_thread.files)
            except Exception as error:
                self._of_thread.generation = None  # the next request connects again
                raise from_fsspec(error, what) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, blocking)

    def _connect(self) -> Any:  # noqa: ANN401  (fsspec has no types)
        if self._scheme == "sftp":
            return open_sftp(self._host, STALL_TIMEOUT_S)
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=5, sock_read=STALL_TIMEOUT_S)
        return fsspec.filesystem(
            "http", skip_instance_cache=True, client_kwargs={"timeout": timeout, "trust_env": True}
        )

    def _path(self, key: str) -> str:
        return f"/{key}" if self._scheme == "sftp" else self._uri(key)

    def _uri(self, key: str) -> str:
        return f"{self._scheme}://{self._host}/{key}"


def _target(files: Any, path: str) -> dict[str, Any] | None:  # noqa: ANN401  (fsspec has no types)
    """Return what a link leads to; None unless that is a file."""
    try:
        found: dict[str, Any] = files.info(path)
    except FileNotFoundError:
        return None
    return found if found["type"] == "file" else None


class ReadOnlyListing:
    """A listing in progress: one folder a page, depth first, by name."""

    def __init__(self, bucket: ReadOnlyBucket, prefix: str, start_after: str) -> None:
        self._bucket, self._start_after = bucket, start_after
        self._todo = [prefix]
        self.exhausted = False

    async def next_page(self) -> list[ObjectInfo | Skipped]:
        """Return the files of the next folder."""
        prefix = self._todo[-1]
        entries, folders = await self._bucket.list_one(prefix)
        self._todo.pop()  # only now: a page that failed is asked for again
        self._todo += reversed(folders)
        self.exhausted = not self._todo
        begin = f"{self._bucket.endpoint}/{self._start_after}" if self._start_after else ""
        return [entry for entry in entries if entry.uri > begin]
