"""Objects of a listing, and the members of those that are containers.

In: listed objects. Out: the same, each container replaced by its members. Invariant: nothing of a
container is lost: what cannot be listed is a member with a problem, and a file that is not the
container that its name says stays an object, for the decoders to judge.
"""

import logging
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from pyarrow.parquet import ParquetFile

from imgcls.config.globs import is_glob
from imgcls.config.source_options import ListingOptions
from imgcls.errors import (
    ImageTooLargeError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceError,
)
from imgcls.sources import parquet, tar
from imgcls.sources import zip as zips
from imgcls.sources.members import Member, Place, plain_name, problem
from imgcls.sources.ranged_file import read_span
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.objects import head, is_folder

log = logging.getLogger(__name__)

_LISTED_AT_A_TIME: Final = 8
_PAGE_SIZE: Final = 1000
_TAR_MAGIC: Final = slice(257, 262)
_GIB: Final = 1 << 30

Entry = ObjectInfo | Member | Skipped


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """How containers are read."""

    image_column: str = ""
    max_compressed_bytes: int = 4 * _GIB

    @staticmethod
    def of(options: ListingOptions) -> "ContainerOptions":
        """Take them from the flags."""
        return ContainerOptions(options.image_column, int(options.max_compressed_gib * _GIB))


def path_of(entry: Entry) -> str:
    """Return the uri of what is listed; of a member, its name behind that of its container."""
    if isinstance(entry, Member):
        return f"{entry.container.uri}/{entry.name}" if entry.name else entry.container.uri
    return entry.uri


def is_container(name: str) -> bool:
    """Tell whether a name is that of a container; its content may say otherwise."""
    return any(name.lower().endswith(suffixes) for suffixes, _ in _CONTAINERS)


def as_container(source: str, options: ContainerOptions) -> ObjectInfo | None:
    """Return a source where it is itself a container: one tar, zip, or Parquet with images.

    Raises:
        ConfigError, StorageError: as for `open_containers`.
    """
    if is_glob(source) or not is_container(source) or is_folder(source):
        return None
    try:
        info = head(source)
    except ObjectMissingError:
        return None  # a prefix of that name, perhaps
    is_table = source.lower().endswith(parquet.SUFFIXES)
    return info if not is_table or has_images(info, options) else None


def open_containers(
    entries: Iterable[ObjectInfo | Skipped], options: ContainerOptions
) -> Iterator[Entry]:
    """Yield what is listed, with the members of containers in their place.

    Raises:
        ConfigError: it is not clear which column of a Parquet file holds the images.
        StorageError: the store failed.
    """
    containers = []
    for entry in entries:
        # Without an etag: a manifest names what is not there, or may not be described.
        if isinstance(entry, ObjectInfo) and entry.etag and is_container(entry.uri):
            containers.append(entry)
        else:
            yield entry
    yield from _in_threads([partial(list_members, info, options) for info in containers])


def has_images(info: ObjectInfo, options: ContainerOptions) -> bool:
    """Tell whether a Parquet file holds images, rather than the uris of some.

    Raises:
        ConfigError, StorageError: as for `open_containers`.
    """
    file = parquet.open_table(info)
    return file is not None and bool(_image_column(info, file, options))


def list_members(info: ObjectInfo, options: ContainerOptions) -> Iterator[Entry]:
    """Yield the members of a container, or the object itself where it is not one.

    Raises:
        ConfigError, StorageError: as for `open_containers`.
    """
    num_members = 0
    try:
        for member in _list(info, options):
            num_members += 1
            if isinstance(member, Member) and member.name is None:
                log.warning("%s: %s", info.uri, member.place.problem)
            yield member
    except (ObjectChangedError, ObjectMissingError, ObjectUnreadableError) as error:
        # Members that were yielded are of the version before: their reads will say the same.
        yield Member(info, None, info.size_bytes, Place("stored", problem=problem(error)))
        return
    if not num_members:
        yield info  # an empty one: a row says what it is


def members_named(uris: Iterable[str], options: ContainerOptions) -> dict[str, Member]:
    """Return the members of containers among uris such as lots/7.tar/cat/1.png.

    A name is a member's only where what is before it is a container.

    Raises:
        SourceError: a container that cannot be listed whole.
        StorageError: the store failed.
    """
    by_container: dict[str, list[str]] = {}
    for uri in uris:
        for match in _MAY_BE_INSIDE.finditer(uri):
            if is_container(candidate := uri[: match.end() - 1]):
                by_container.setdefault(candidate, []).append(uri)
    found: dict[str, Member] = {}
    for candidate, wanted in by_container.items():
        info = as_container(candidate, options)
        members: dict[str, Member] = {}
        for entry in list_members(info, options) if info is not None else ():
            if isinstance(entry, Member):
                if entry.name is None:
                    raise SourceError(f"{candidate}: {entry.place.problem}; copy it again")
                # A list may have the name without "./", as a path is written.
                members.setdefault(f"{candidate}/{plain_name(entry.name)}", entry)
                members[path_of(entry)] = entry
        found |= {uri: members[uri] for uri in wanted if uri in members}
    return found


def _list(info: ObjectInfo, options: ContainerOptions) -> Iterator[Entry]:
    name = info.uri.lower()
    [lists] = [lists for suffixes, lists in _CONTAINERS if name.endswith(suffixes)]
    return lists(info, options)


def _list_parquet(info: ObjectInfo, options: ContainerOptions) -> Iterator[Entry]:
    file = parquet.open_table(info)
    column = _image_column(info, file, options) if file is not None else ""
    return parquet.list_rows(info, file, column) if file is not None and column else iter([info])


def _image_column(info: ObjectInfo, file: ParquetFile, options: ContainerOptions) -> str:
    return parquet.image_column(file.schema_arrow, options.image_column, info.uri)


def _list_zip(info: ObjectInfo, _: ContainerOptions) -> Iterator[Entry]:
    return zips.list_zip(info) if _begins(info, 4)[:2] == b"PK" else iter([info])


def _list_tar(info: ObjectInfo, _: ContainerOptions) -> Iterator[Entry]:
    is_tar = _begins(info, 512)[_TAR_MAGIC] == b"ustar" or info.size_bytes % 512 == 0
    return tar.list_tar(info) if is_tar else iter([info])


def _list_compressed_tar(info: ObjectInfo, options: ContainerOptions) -> Iterator[Entry]:
    if info.size_bytes <= options.max_compressed_bytes:
        return tar.list_compressed_tar(info)
    limit_gb, size_gb = options.max_compressed_bytes / _GIB, info.size_bytes / _GIB
    words = (
        f"a compressed tar of {size_gb:.1f} GiB, more than {limit_gb:g}: it can only be read "
        "from its start on. Repack it without compression, images do not get smaller by it, or "
        "raise --max-compressed-gib"
    )
    refused = Place("stored", problem=problem(ImageTooLargeError(words)))
    return iter([Member(info, None, info.size_bytes, refused)])


# The suffixes of each kind of container, and what lists one.
_CONTAINERS: Final[
    tuple[tuple[tuple[str, ...], Callable[[ObjectInfo, ContainerOptions], Iterator[Entry]]], ...]
] = (
    (parquet.SUFFIXES, _list_parquet),
    (zips.SUFFIXES, _list_zip),
    (tar.SUFFIXES, _list_tar),
    (tar.COMPRESSED_SUFFIXES, _list_compressed_tar),
)
# Cheap, for the many uris that are of no container.
_MAY_BE_INSIDE: Final = re.compile(
    f"(?:{'|'.join(re.escape(one) for suffixes, _ in _CONTAINERS for one in suffixes)})/",
    re.IGNORECASE,
)


def _begins(info: ObjectInfo, num_bytes: int) -> bytes:
    return read_span(info, 0, min(num_bytes, info.size_bytes)) if info.size_bytes else b""


def _in_threads(listings: list[Callable[[], Iterator[Entry]]]) -> Iterator[Entry]:
    """Yield what several listings give, _LISTED_AT_A_TIME at a time, in no particular order."""
    pages: queue.Queue[list[Entry] | BaseException | None] = queue.Queue(2 * _LISTED_AT_A_TIME)
    stopped = threading.Event()

    def put_pages(listing: Callable[[], Iterator[Entry]]) -> None:
        try:
            entries = listing()
            while not stopped.is_set() and (page := list(islice(entries, _PAGE_SIZE))):
                pages.put(page)
            pages.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that consumes
            pages.put(error)

    with ThreadPoolExecutor(_LISTED_AT_A_TIME, thread_name_prefix="containers") as pool:
        running = [pool.submit(put_pages, listing) for listing in listings]
        try:
            num_running = len(running)
            while num_running:
                match pages.get():
                    case None:
                        num_running -= 1
                    case BaseException() as error:
                        raise error
                    case page:
                        yield from page
        finally:
            stopped.set()
            for listing in running:
                listing.cancel()
            while not all(listing.done() for listing in running):
                try:
                    pages.get(timeout=0.05)
                except queue.Empty:
                    continue
