"""A member of a container: one image in a tar, a zip or a Parquet file, and where its bytes are.

In: nothing. Out: the values that listing, plan and reading share. Invariant: a member is known by
(uri, name), and no two of one container have the same name; its version is the etag of its
container. What cannot be read of it is known when it is listed, and said by its row.
"""

from dataclasses import dataclass
from typing import Final, Literal

from imgcls.errors import (
    CorruptImageError,
    DecodeError,
    ImageTooLargeError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
    UnsupportedImageError,
)
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.info import EPOCH, ObjectInfo

Method = Literal["stored", "deflate", "inner", "stream", "row"]
"""How the bytes of a member lie: as they are; deflated; in a zip that is itself a deflated member;
in a compressed tar, by their number; in a row of a Parquet file, by its number."""

# Where any member costs the reading of all before it: such a container stays in one shard.
READ_FROM_START: Final[tuple[Method, ...]] = ("stream",)
# Where a member costs more than its bytes: training, which reads it again and again, keeps it. A
# group of rows of a Parquet file, and a zip in a zip, are read whole for each.
KEPT_WHILE_TRAINING: Final[tuple[Method, ...]] = (*READ_FROM_START, "row", "inner")

# What one member may be: more is refused by name rather than held in memory.
MAX_MEMBER_BYTES: Final = 256 << 20
# What a zip inside a zip may be: it is inflated whole to read a member of it.
MAX_INNER_BYTES: Final = 512 << 20

_PROBLEMS: Final[dict[str, type[DecodeError] | type[StorageError]]] = {
    "corrupt": CorruptImageError,
    "unsupported": UnsupportedImageError,
    "too_large": ImageTooLargeError,
    "changed": ObjectChangedError,
    "missing": ObjectMissingError,
    "unreadable": ObjectUnreadableError,
}
_STATUS_OF: Final = {kind: status for status, kind in _PROBLEMS.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a member are, in its container.

    `start` and `num_bytes` are what to read; of a "stream" and a "row", `start` is the number.
    """

    method: Method
    start: int = 0
    num_bytes: int = 0
    crc32: int | None = None
    inner_start: int = 0
    """Of "inner": where in the inflated zip the header of the member is."""
    column: str = ""
    """Of "row": the column with the images."""
    problem: str = ""
    """Why it cannot be read: "status: reason", known when it was listed; "" where it can."""
    container_bytes: int = 0
    """Of "stream" and "row": the size of the container."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a container, as it was listed. Without a name: of the container itself."""

    container: ObjectInfo
    name: str | None
    size_bytes: int
    place: Place


@dataclass(frozen=True, slots=True)
class MemberRequest(GetRequest):
    """One member to read, by the name of its container."""

    member: str | None = None
    size_bytes: int = 0
    place: Place = Place("stored")

    def container(self) -> ObjectInfo:
        """Return the container, as it was listed."""
        size_bytes = self.place.container_bytes
        return ObjectInfo(self.uri, self.etag or "", size_bytes, EPOCH, self.version_id)


def problem(error: DecodeError | StorageError) -> str:
    """Return an error as the plan keeps it."""
    kind = next((kind for kind in _STATUS_OF if isinstance(error, kind)), CorruptImageError)
    return f"{_STATUS_OF[kind]}: {error}"


def error_of(problem: str) -> DecodeError | StorageError:
    """Return the error that a plan kept."""
    status, _, reason = problem.partition(": ")
    return _PROBLEMS.get(status, CorruptImageError)(reason)


def plain_name(name: str) -> str:
    """Return the name of a member without steps; one that Windows packed with "/"."""
    parts = (name if "/" in name else name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or name


class UniqueNames:
    """Gives each member of one container a name of its own."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def of(self, name: str) -> str:
        """Return the name, with `#2`, `#3` ... where it was there before."""
        # An archive may name a member with bytes that are not text: no row could hold that.
        name = plain = name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        number = 1
        while hash(name) in self._seen:
            number += 1
            name = f"{plain}#{number}"
        self._seen.add(hash(name))
        return name
