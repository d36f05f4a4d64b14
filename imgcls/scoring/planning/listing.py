"""What there is to score: a prefix, a glob or a manifest becomes a stream of objects.

In: the SOURCE of `score`. Out: ObjectInfo per object, Skipped per key that cannot be scored, each
with a reason. Invariant: listed = planned + skipped; nothing under the source disappears without a
name.
"""

import hashlib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from imgcls.config.globs import expand, glob_to_regex, is_glob, literal_start
from imgcls.config.selection import LeftOutByFlags, Selection
from imgcls.config.source_options import ListingOptions
from imgcls.data.folder_names import is_litter_folder
from imgcls.data.label_manifest import is_manifest, read_uris
from imgcls.data.tables.shape import TableShape
from imgcls.errors import AccessDeniedError, SourceError
from imgcls.runs.run import is_of_a_run
from imgcls.sources.containers import (
    ContainerOptions,
    Entry,
    as_container,
    open_containers,
    path_of,
)
from imgcls.sources.inventory import find_inventory, list_inventory
from imgcls.sources.members import Member
from imgcls.storage.access import head_many
from imgcls.storage.info import EPOCH
from imgcls.storage.objects import (
    ObjectInfo,
    Skipped,
    is_folder,
    list_entries,
    list_folder,
)
from imgcls.storage.uri import canonical, is_local, split_uri

log = logging.getLogger(__name__)

LISTINGS_IN_FLIGHT = 8
MAX_DESCENT = 3
PAGE_SIZE = 1000


def list_source(
    source: str,
    options: ListingOptions | None = None,
    *,
    was_there: Callable[[], bool] | None = None,
) -> Iterator[Entry]:
    """Stream every entry of a source, and of those that the options name beside it.

    The members of containers come one by one.

    A source with `*` is a glob: `*` stays within a folder, `**` crosses folders; `?`, `[ab]` and
    `{a,b}` mean something beside it. A source that ends
    in .csv, .parquet or .jsonl is a manifest with a column uri. Anything else is a prefix, read as
    a folder.

    Args:
        source: what to list.
        options: what of it is meant, and how a manifest is read; by default all of it.
        was_there: allows a source to be empty where its folder is there and empty too, or where
            this tells that there was something before. By default an empty one is refused.

    Raises:
        AccessDeniedError: the source may not be listed, or all that is in it.
        SourceError: nothing is there.
        ConfigError: no such bucket, the manifest has no column uri, or it is not clear which
            column of a Parquet file holds images.
    """
    options = options or ListingOptions()
    selection = Selection.of(options)
    places = [
        _list_place(place, options, selection, was_there) for place in (source, *options.also)
    ]
    return _once(itertools.chain.from_iterable(places)) if options.also else places[0]


def _list_place(
    source: str,
    options: ListingOptions,
    selection: Selection,
    was_there: Callable[[], bool] | None,
) -> Iterator[Entry]:
    containers = ContainerOptions.of(options)
    container, root = as_container(source, containers), root_of(source)
    inventory = find_inventory(source)
    if container is not None:
        found: Iterator[ObjectInfo | Skipped] = iter([container])
        root = source.rpartition("/")[0]
    elif inventory is not None:
        found, root = list_inventory(inventory), f"s3://{inventory.sourceBucket}"
    elif is_manifest(source):
        shape = TableShape.of(options)
        found, root = _list_manifest(source, shape), shape.root or root
    else:
        found = _list_folder(source, was_there)
    entries = open_containers(found, containers)
    return entries if selection.is_all else _selected(entries, selection, f"{root.rstrip('/')}/")


def lists_manifest(source: str, options: ListingOptions) -> bool:
    """Return whether a source is a list of images, and not a container of them."""
    containers = ContainerOptions.of(options)
    if not is_manifest(source) or find_inventory(source) is not None:
        return False
    return as_container(source, containers) is None


def _once(found: Iterator[Entry]) -> Iterator[Entry]:
    """Pass an object on once, whichever of several places it is listed in."""
    seen = set[bytes]()
    for entry in found:
        if not isinstance(entry, Skipped):
            # Half a digest each: the names of a million objects would take 150 MB.
            name = path_of(entry).encode("utf-8", "surrogateescape")
            digest = hashlib.blake2b(name, digest_size=16)
            if digest.digest() in seen:
                yield Skipped(path_of(entry), "listed by another place already")
                continue
            seen.add(digest.digest())
        yield entry


def _selected(found: Iterator[Entry], selection: Selection, root: str) -> Iterator[Entry]:
    """Pass on what the flags ask for, and say how much they leave out."""
    left_out = LeftOutByFlags()
    for entry in found:
        path = path_of(entry).removeprefix(root)
        if not isinstance(entry, Skipped):
            info = entry.container if isinstance(entry, Member) else entry
            changed_at = info.last_modified if info.last_modified != EPOCH else None
            flag = selection.left_out_by(path, changed_at)
            if flag:
                left_out.add(flag, path_of(entry))
                continue
        elif path.endswith("/") and selection.leaves_out_folder(path):
            continue
        yield entry
    for line in left_out.lines():
        log.info("%s", line)


def covers(source: str, uri: str) -> bool:
    """Return whether listing the source would list an object of this uri (a manifest: never)."""
    if is_manifest(source):
        return False
    scheme, bucket, key = split_uri(source)
    *place, candidate = split_uri(uri)
    if is_glob(source):
        return place == [scheme, bucket] and bool(glob_to_regex(key).fullmatch(candidate))
    folder = f"{key.rstrip('/')}/" if key else ""
    return place == [scheme, bucket] and candidate.startswith(folder)


def may_hold(source: str, folder: str) -> bool:
    """Return whether a folder (URI that ends in "/") could hold what the source lists."""
    if not is_glob(source):
        return True
    names = split_uri(folder)[2].rstrip("/").split("/")
    return any(_leads_to(names, glob.split("/")) for glob in expand(split_uri(source)[2]))


def _leads_to(names: list[str], globs: list[str]) -> bool:
    for glob, name in zip(globs, names, strict=False):
        if "**" in glob:
            return True
        if not glob_to_regex(glob).fullmatch(name):
            return False
    return len(names) < len(globs)


def root_of(source: str) -> str:
    """Return the folder that paths of a source begin at: its own, or that above a pattern."""
    if is_manifest(source):
        return source.rpartition("/")[0]
    return literal_start(source).rpartition("/")[0] if is_glob(source) else source


def _list_folder(
    source: str, was_there: Callable[[], bool] | None
) -> Iterator[ObjectInfo | Skipped]:
    folder = root_of(source)
    num_found = num_skipped = 0
    refused: Skipped | None = None
    others = LeftOutByFlags()
    for entry in list_parallel(folder):
        num_skipped += isinstance(entry, Skipped)
        if not _is_meant(source, entry):
            if isinstance(entry, ObjectInfo):
                others.add(f"the pattern {source}", entry.uri)
            continue
        if isinstance(entry, ObjectInfo) and is_of_a_run(entry.uri):
            yield Skipped(entry.uri, "imgcls wrote it: an output of runs lies in the source")
            continue
        if isinstance(entry, ObjectInfo):
            num_found += 1
        elif entry.unseen == "refused" and not is_litter_folder(_last_name(entry.uri)):
            refused = entry
        yield entry
    for line in others.lines():
        log.info("%s", line)
    # An object store has a folder only where somebody made a marker of it.
    is_empty = not others.counts and (num_skipped > 0 or is_folder(folder))
    if not num_found:
        _refuse_nothing(source, refused, was_there, is_empty=is_empty)


def _refuse_nothing(
    source: str, refused: Skipped | None, was_there: Callable[[], bool] | None, *, is_empty: bool
) -> None:
    """Refuse a source without objects, unless it is known to be a right one that is empty."""
    if refused is not None:
        raise AccessDeniedError(
            f"{source}: nothing in it may be listed, such as {refused.uri} ({refused.reason}); "
            "check its owner and mode"
        )
    if was_there is not None and (is_empty or was_there()):
        log.warning("%s: holds no image", source)
        return
    raise SourceError(
        f"{source}: no objects found. Check the spelling; a prefix is read as a folder, and "
        "`*` in a glob does not cross folders (`**` does). `[ab]`, `?` and `{a,b}` mean something "
        "beside a `*`: write [[] for a bracket itself."
    )


def _is_meant(source: str, entry: ObjectInfo | Skipped) -> bool:
    if not is_glob(source):
        return True
    if isinstance(entry, Skipped) and entry.uri.endswith("/") and entry.unseen:
        return may_hold(source, entry.uri)
    return covers(source, entry.uri)


def _last_name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def list_parallel(prefix: str) -> Iterator[ObjectInfo | Skipped]:
    """List a prefix folder by folder, LISTINGS_IN_FLIGHT at a time, in no particular order.

    Where the keys have no folders, or more of them than one page, it is listed in one stream.
    """
    folders, entries = _expand(prefix)
    yield from entries
    if len(folders) == 1:
        yield from list_entries(folders[0])
        return
    pages: queue.Queue[list[ObjectInfo | Skipped] | None] = queue.Queue(2 * LISTINGS_IN_FLIGHT)
    stopped = threading.Event()
    with ThreadPoolExecutor(LISTINGS_IN_FLIGHT, thread_name_prefix="listing") as pool:
        listings = [pool.submit(_list_pages, folder, pages, stopped) for folder in folders]
        try:
            for _ in folders:
                while (page := pages.get()) is not None:
                    yield from page
        finally:
            stopped.set()
            for listing in listings:
                listing.cancel()
            while not pages.empty():
                pages.get_nowait()
    for listing in listings:
        listing.result()


def _expand(prefix: str) -> tuple[list[str], list[ObjectInfo | Skipped]]:
    """Descend until there are enough folders to list at a time; return what lies beside them."""
    folders, entries = [prefix], list[ObjectInfo | Skipped]()
    for _ in range(MAX_DESCENT):
        if len(folders) >= LISTINGS_IN_FLIGHT:
            break
        below = []
        for folder in folders:
            level = None if is_local(folder) else list_folder(folder)
            below += [folder] if level is None else level.folders
            entries += [] if level is None else level.entries
        if below == folders:
            break
        folders = below
    return folders, entries


def _list_pages(
    folder: str, pages: "queue.Queue[list[ObjectInfo | Skipped] | None]", stopped: threading.Event
) -> None:
    """Put a folder's entries into the queue, page by page, then None; also when it fails."""
    try:
        entries = list_entries(folder)
        while not stopped.is_set() and (page := list(itertools.islice(entries, PAGE_SIZE))):
            pages.put(page)
    finally:
        pages.put(None)


def _list_manifest(source: str, shape: TableShape) -> Iterator[ObjectInfo | Skipped]:
    seen: set[str] = set()
    unique = []
    for given in read_uris(source, shape):
        # A local path has many spellings; an object's key has one.
        uri = canonical(given) if is_local(given) else given
        if uri in seen:
            yield Skipped(uri, "listed twice in the manifest")
        else:
            seen.add(uri)
            unique.append(uri)
    for uri, entry in zip(unique, head_many(unique), strict=True):
        # Planned all the same: it becomes `missing`, or its read tells whether it is `unreadable`.
        yield entry if isinstance(entry, ObjectInfo) else _undescribed(uri)


def _undescribed(uri: str) -> ObjectInfo:
    return ObjectInfo(uri, etag="", size_bytes=0, last_modified=EPOCH, version_id=None)
