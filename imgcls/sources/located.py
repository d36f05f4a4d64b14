"""Images that may lie by themselves or in containers, read alike.

In: images, each with its name and, of a container, its member. Out: requests for them, and an
`Access` that reads both kinds. Invariant: the index of a request is its image's place in the
caller's list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from imgcls.sources.members import Member, MemberRequest
from imgcls.sources.read import get_images
from imgcls.storage.access import MAX_REFUSED_IN_A_ROW, Access, Read
from imgcls.storage.bucket import Span
from imgcls.storage.bulk_get import GetRequest


class Located(Protocol):
    """An image, and where it is."""

    @property
    def uri(self) -> str:
        """Its name; of a member that of its container and its own: s3://b/x.tar/cat/1.png."""
        ...

    @property
    def member(self) -> Member | None:
        """Of an image in a container: what is read of it."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image of which nothing else is known."""

    uri: str
    member: Member | None = None


def request_for(index: int, image: Located, max_bytes: int | None = None) -> GetRequest:
    """Return what to read for an image.

    Args:
        index: What the result is called.
        image: The image.
        max_bytes: Its first bytes are enough; of a member that is compressed, all are read.
    """
    member = image.member
    if member is None:
        return GetRequest(index, image.uri, span=Span(0, max_bytes) if max_bytes else None)
    place, info = member.place, member.container
    if max_bytes and place.method == "stored" and place.crc32 is None:
        place = replace(place, num_bytes=min(max_bytes, place.num_bytes))
    return MemberRequest(
        index,
        info.uri,
        info.etag or None,
        info.version_id,
        member=member.name,
        size_bytes=member.size_bytes,
        place=place,
    )


def in_reading_order(requests: Iterable[GetRequest]) -> list[GetRequest]:
    """Return requests in the order that reads each container once, from its start on."""
    return sorted(requests, key=_place_of)


def _place_of(request: GetRequest) -> tuple[bool, str, int, int]:
    if not isinstance(request, MemberRequest):
        return False, "", 0, 0
    return True, request.uri, request.place.start, request.place.inner_start


def access_to(images: Sequence[Located], get: Read = get_images) -> Access:
    """Return what reads these images, and tells one that is refused from a store that refuses us.

    Args:
        images: All of a run.
        get: Reads requests.
    """
    step = max(1, -(-len(images) // MAX_REFUSED_IN_A_ROW))
    return Access(lambda: [request_for(n, each) for n, each in enumerate(images[::step])], get)


def read_image(image: Located) -> bytes:
    """Read one image whole.

    Raises:
        DecodeError, StorageError: as `get_images` gives them.
    """
    [(_, data)] = get_images([request_for(0, image)], gives_unreadable=True)
    if not isinstance(data, bytes):
        raise data
    return data
