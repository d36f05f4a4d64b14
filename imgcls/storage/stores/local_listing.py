"""Listing of a local folder, as an object store would list it.

In: the absolute path of a folder. Out: every regular file below it, sorted by the bytes of its
path, and a Skipped for whatever else has a name there. Invariant: memory holds the names of one
folder per level, no more.
"""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime

from imgcls.errors import AccessDeniedError, StorageError
from imgcls.storage.info import ObjectInfo, Skipped

TEMP_PREFIX = ".imgcls-tmp-"
_TEMP_PREFIX_BYTES = TEMP_PREFIX.encode()


def etag_of(status: os.stat_result) -> str:
    """Return a text that changes with every version of a file: mtime (ns), size.

    Not the inode, as up to commit 27535e0: a file that comes back from a backup, or is seen through
    another mount, is the same version.
    """
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def without_inode(etag: str) -> str:
    """Return an etag of a local file as `etag_of` writes it, whichever version wrote it."""
    return "-".join(etag.split("-")[:2])


def info_of(path: str, status: os.stat_result) -> ObjectInfo:
    """Describe a regular file of which `status` was taken."""
    return ObjectInfo(
        uri=path,
        etag=etag_of(status),
        size_bytes=status.st_size,
        last_modified=_time_of(status.st_mtime_ns),
        version_id=None,
    )


def _time_of(mtime_ns: int) -> datetime:
    """Return a time stamp; one that no calendar has, as broken file systems give, the nearest."""
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if mtime_ns > 0 else datetime.min).replace(tzinfo=UTC)


def list_entries(folder: str, start_after: str | None) -> Iterator[ObjectInfo | Skipped]:
    """Yield the files below `folder`, after the path `start_after` where one is given.

    Links are followed, to files and to folders; a link that leads back into its own path is
    skipped.

    Raises:
        AccessDeniedError: a folder may not be read. To leave it out in silence would lose its
            files.
    """
    bound = None if start_after is None else os.fsencode(start_after)
    yield from _walk(os.fsencode(folder), bound, ancestors=())


def _walk(
    folder: bytes, bound: bytes | None, ancestors: tuple[tuple[int, int], ...]
) -> Iterator[ObjectInfo | Skipped]:
    try:
        status = os.stat(folder)  # noqa: PTH116  (pathlib knows no bytes)
        entries = _sorted_entries(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        raise AccessDeniedError(f"list {os.fsdecode(folder)}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"list {os.fsdecode(folder)}: {error.strerror}") from error
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        yield Skipped(_shown(folder), "a link that leads back to a folder above it")
        return
    for name, is_folder in entries:
        path = os.path.join(folder, name)  # noqa: PTH118  (pathlib knows no bytes)
        if is_folder:
            inside = path + b"/"
            if bound is None or inside > bound or bound.startswith(inside):
                yield from _walk(path, bound, (*ancestors, identity))
        elif bound is None or path > bound:
            yield from _entry(path)


def _sorted_entries(folder: bytes) -> list[tuple[bytes, bool]]:
    """Return (name, is a folder), sorted as the whole paths below them sort."""
    with os.scandir(folder) as scan:
        entries = [
            (entry.name, entry.is_dir())
            for entry in scan
            if not entry.name.startswith(_TEMP_PREFIX_BYTES)
        ]
    return sorted(entries, key=lambda entry: entry[0] + b"/" if entry[1] else entry[0])


def _entry(path: bytes) -> Iterator[ObjectInfo | Skipped]:
    try:
        status = os.stat(path)  # noqa: PTH116  (pathlib knows no bytes)
    except FileNotFoundError:
        # Deleted since its folder was read, or a link to nowhere.
        if os.path.islink(path):  # noqa: PTH114  (pathlib knows no bytes)
            yield Skipped(_shown(path), "a link to a file that does not exist")
        return
    except OSError as error:
        yield Skipped(_shown(path), f"unreadable: {error.strerror}")
        return
    if not stat.S_ISREG(status.st_mode):
        yield Skipped(_shown(path), "not a regular file")
        return
    try:
        uri = path.decode()
    except UnicodeDecodeError:
        yield Skipped(_shown(path), "the name is not UTF-8")
        return
    yield info_of(uri, status)


def _shown(path: bytes) -> str:
    """Return a path as text that any log and any file can hold."""
    return path.decode("utf-8", "backslashreplace")
