"""What a listing says about one object.

In: a page of a store's listing, or a folder's entries. Out: plain values. Invariant: an etag
carries no quotes, a time is in UTC, and a URI holds the key as the store holds it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

FOLDER_MARKER = "a folder marker"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How an etag begins that tells the size alone: the place knows no version and no time.
UNVERSIONED = "size-"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as it was when it was listed."""

    uri: str
    etag: str
    size_bytes: int
    last_modified: datetime
    version_id: str | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something listed that is not an object to read, and why."""

    uri: str
    reason: str
    unseen: Literal["", "refused", "gone"] = ""
    """Where there may be objects that the listing has not seen: a folder or a file that may not be
    looked at, or one that was removed meanwhile."""
