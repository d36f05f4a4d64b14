"""What every object store can do, one request at a time.

In: keys, opaque. Out: bytes, etags, pages of a listing. Invariant: a method makes one attempt and
raises our errors or TransientError; retries, read-back and threads are above it (remote.py,
bulk_get.py).
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.requests.retry import StoreHealth


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of an object: from `start` on, at most `num_bytes`, fewer where it ends before."""

    start: int
    num_bytes: int

    @property
    def header(self) -> str:
        """The same in HTTP (RFC 9110, section 14.1.2)."""
        return f"bytes={self.start}-{self.start + self.num_bytes - 1}"

    def length_in(self, size_bytes: int) -> int:
        """Return how many bytes of an object of this size there are."""
        return max(0, min(self.num_bytes, size_bytes - self.start))


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole object or the bytes of a span, and the etag of the object they are of."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class IfMatch:
    """Write only over the version with this etag."""

    etag: str


@dataclass(frozen=True, slots=True)
class Folder:
    """One level of a hierarchy of keys: folders (URIs that end in "/") and what is beside them."""

    folders: list[str]
    entries: list[ObjectInfo | Skipped]


WriteCondition = Literal["new", "always"] | IfMatch


class Listing(Protocol):
    """A listing in progress; `next_page` may be called again after it failed."""

    exhausted: bool

    async def next_page(self) -> list[ObjectInfo | Skipped]:
        """Return the next entries, and set `exhausted` with the last of them."""
        ...


class Bucket(Protocol):
    """One bucket of one store; lives on the background loop."""

    health: StoreHealth

    @property
    def endpoint(self) -> str:
        """Where the store is, for messages."""
        ...

    async def get(
        self, key: str, etag: str | None, version_id: str | None, span: "Span | None" = None
    ) -> Fetched:
        """Read one object, as the version with this etag or version id where given.

        Args:
            key: its name.
            etag: read only this version.
            version_id: read this version.
            span: read these bytes alone, where the object has them; default all.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Describe one object."""
        ...

    async def put(self, key: str, data: bytes, condition: WriteCondition) -> str:
        """Write one object in one request and return its etag."""
        ...

    async def delete(self, key: str) -> None:
        """Delete one object; a missing one is fine."""
        ...

    def listing(self, prefix: str, start_after: str | None) -> Listing:
        """Begin to list the keys with this prefix, after the key `start_after`."""
        ...

    async def folder(self, prefix: str) -> Folder | None:
        """List one level below the prefix, in one request; None where that cannot be done."""
        ...

    async def sign(self, key: str, expires: timedelta) -> str:
        """Return a link that opens one object for whoever has it, for so long."""
        ...

    async def renew(self) -> None:
        """Read credentials again and rebuild the clients with them."""
        ...


def unquoted(etag: str | None) -> str:
    """Return an etag as we write it everywhere: without the quotes that HTTP puts around it."""
    return (etag or "").removeprefix('"').removesuffix('"')


def quoted(etag: str) -> str:
    """Return an etag as HTTP wants it."""
    return etag if etag.startswith("W/") else f'"{etag}"'


DOT_SEGMENT = "a name with a '.' or '..' segment, which no URL of this store can carry"


def has_dot_segment(key: str) -> bool:
    """Tell whether clients, proxies and servers would read a segment of this key as a step."""
    return any(segment in (".", "..") for segment in key.split("/"))
