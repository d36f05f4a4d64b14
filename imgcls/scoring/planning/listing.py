"""What there is to score: a prefix, a glob or a manifest becomes a stream of objects.

In: the SOURCE of `score`. Out: ObjectInfo per object, Skipped per key that cannot be scored, each
with a reason. Invariant: listed = planned + skipped; nothing under the source disappears without a
name.
"""

import itertools
import logging
import queue
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from imgcls.config.source_options import ListingOptions
from imgcls.data.folder_names import is_litter_folder
from imgcls.data.label_manifest import is_manifest, read_uris
from imgcls.data.tables.shape import TableShape
from imgcls.errors import AccessDeniedError, SourceError
from imgcls.runs.run import is_of_a_run
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
) -> Iterator[ObjectInfo | Skipped]:
    """Stream every entry of a source.

    A source with `*` is a glob: `*` stays within a folder, `**` crosses folders. A source that ends
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
        ConfigError: no such bucket, or the manifest has no column uri.
    """
    if is_manifest(source):
        return _list_manifest(source, TableShape.of(options or ListingOptions()))
    return _list_folder(source, was_there)


def covers(source: str, uri: str) -> bool:
    """Return whether listing the source would list an object of this uri (a manifest: never)."""
    if is_manifest(source):
        return False
    scheme, bucket, key = split_uri(source)
    *place, candidate = split_uri(uri)
    if "*" in source:
        return place == [scheme, bucket] and bool(glob_to_regex(key).fullmatch(candidate))
    folder = f"{key.rstrip('/')}/" if key else ""
    return place == [scheme, bucket] and candidate.startswith(folder)


def may_hold(source: str, folder: str) -> bool:
    """Return whether a folder (URI that ends in "/") could hold what the source lists."""
    if "*" not in source:
        return True
    globs = split_uri(source)[2].split("/")
    names = split_uri(folder)[2].rstrip("/").split("/")
    for glob, name in zip(globs, names, strict=False):
        if "**" in glob:
            return True
        if not glob_to_regex(glob).fullmatch(name):
            return False
    return len(names) < len(globs)


def _list_folder(
    source: str, was_there: Callable[[], bool] | None
) -> Iterator[ObjectInfo | Skipped]:
    is_glob = "*" in source
    folder = source[: source.index("*")].rpartition("/")[0] if is_glob else source
    num_found = num_others = num_skipped = 0
    refused: Skipped | None = None
    for entry in list_parallel(folder):
        num_skipped += isinstance(entry, Skipped)
        if isinstance(entry, Skipped) and entry.uri.endswith("/") and entry.unseen:
            is_wanted = may_hold(source, entry.uri)
        else:
            is_wanted = not is_glob or covers(source, entry.uri)
        if not is_wanted:
            num_others += isinstance(entry, ObjectInfo)
            continue
        if isinstance(entry, ObjectInfo) and is_of_a_run(entry.uri):
            yield Skipped(entry.uri, "imgcls wrote it: an output of runs lies in the source")
            continue
        if isinstance(entry, ObjectInfo):
            num_found += 1
        elif entry.unseen == "refused" and not is_litter_folder(_last_name(entry.uri)):
            refused = entry
        yield entry
    if num_found:
        return
    if refused is not None:
        raise AccessDeniedError(
            f"{source}: nothing in it may be listed, such as {refused.uri} ({refused.reason}); "
            "check its owner and mode"
        )
    # An object store has a folder only where somebody made a marker of it.
    is_empty = num_others == 0 and (num_skipped > 0 or is_folder(folder))
    if was_there is not None and (is_empty or was_there()):
        log.warning("%s: holds no image", source)
        return
    raise SourceError(
        f"{source}: no objects found. Check the spelling; a prefix is read as a folder, and "
        "`*` in a glob does not cross folders (`**` does)."
    )


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
            level = list_folder(folder)
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


@lru_cache
def glob_to_regex(glob: str) -> re.Pattern[str]:
    """Translate a glob of keys: `**/` is any folders or none, `*` stops at `/`."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    tokens = re.split(r"(\*\*/|\*\*|\*)", glob)
    return re.compile("".join(meaning.get(token, re.escape(token)) for token in tokens), re.DOTALL)


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
