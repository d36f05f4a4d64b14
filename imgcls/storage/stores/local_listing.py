"""Listing of a local folder, as an object store would list it.

In: the absolute path of a folder. Out: every regular file below it, sorted by the bytes of its
path, and a Skipped for whatever else has a name there. Invariant: memory holds the names of one
folder per level, no more.
"""

import errno
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime

from imgcls.errors import AccessDeniedError, StorageError
from imgcls.storage.bucket import Folder
from imgcls.storage.info import ObjectInfo, Skipped

TEMP_PREFIX = ".imgcls-tmp-"
_TEMP_PREFIX_BYTES = TEMP_PREFIX.encode()
# Of the folder itself, and there again every night; others, such as too many open files, are not.
_OF_ONE_FOLDER = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG)

_Content = tuple[tuple[int, int], list[tuple[bytes, bool]]]
"""A folder's device and inode, and its (name, is a folder)."""


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
    skipped. So is a folder below that may not be listed, with all that is in it, as long as the
    folder above it may.

    Raises:
        AccessDeniedError: `folder` itself may not be read, or no longer what was read before.
        StorageError: a folder was not read for a reason that is not its own.
    """
    bound = None if start_after is None else os.fsencode(start_after)
    root = os.fsencode(folder)
    content = _look_into_root(root)
    if content is not None:
        yield from _walk(root, content, bound, ancestors=())


def list_folder(folder: str) -> Folder:
    """List one level; the names of folders end in "/".

    Raises:
        AccessDeniedError, StorageError: as for `list_entries`.
    """
    root = os.fsencode(folder)
    found = Folder([], [])
    _, entries = _look_into_root(root) or (None, [])
    for name, is_folder in entries:
        path = os.path.join(root, name)  # noqa: PTH118  (pathlib knows no bytes)
        if is_folder:
            found.folders.append(f"{_shown(path)}/")
        else:
            found.entries.extend(_entry(path))
    return found


def _walk(
    folder: bytes, content: _Content, bound: bytes | None, ancestors: tuple[tuple[int, int], ...]
) -> Iterator[ObjectInfo | Skipped]:
    identity, entries = content
    if identity in ancestors:
        yield Skipped(_shown(folder), "a link that leads back to a folder above it")
        return
    for name, is_folder in entries:
        path = os.path.join(folder, name)  # noqa: PTH118  (pathlib knows no bytes)
        inside = path + b"/"
        if not is_folder:
            if bound is None or path > bound:
                yield from _entry(path)
        elif bound is None or inside > bound or bound.startswith(inside):
            try:
                below = _look_into(path)
            except OSError as error:
                yield _unseen_folder(path, error, folder)
            else:
                yield from _walk(path, below, bound, (*ancestors, identity))


def _look_into_root(folder: bytes) -> _Content | None:
    try:
        return _look_into(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refused(folder, error) from error


def _look_into(folder: bytes) -> _Content:
    """Return what a folder is, and (name, is a folder), sorted as the whole paths below sort."""
    status = os.stat(folder)  # noqa: PTH116  (pathlib knows no bytes)
    with os.scandir(folder) as scan:
        entries = [
            (entry.name, _is_folder(entry))
            for entry in scan
            if not entry.name.startswith(_TEMP_PREFIX_BYTES)
        ]
    entries.sort(key=lambda entry: entry[0] + b"/" if entry[1] else entry[0])
    return (status.st_dev, status.st_ino), entries


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where we may not look; `_entry` says so
        return False


def _unseen_folder(folder: bytes, error: OSError, above: bytes) -> Skipped:
    """Say why a folder is left out, once it is sure that the reason is its own."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Skipped(f"{_shown(folder)}/", "the folder was removed while it was listed", "gone")
    if error.errno not in _OF_ONE_FOLDER:
        raise _refused(folder, error) from error
    try:
        with os.scandir(above):
            pass
    except OSError as lost:
        raise _refused(above, lost) from lost
    reason = f"the folder may not be listed: {error.strerror}"
    return Skipped(f"{_shown(folder)}/", reason, "refused")


def _refused(folder: bytes, error: OSError) -> StorageError:
    kind = AccessDeniedError if isinstance(error, PermissionError) else StorageError
    return kind(f"list {_shown(folder)}: {error.strerror}")


def _entry(path: bytes) -> Iterator[ObjectInfo | Skipped]:
    try:
        status = os.stat(path)  # noqa: PTH116  (pathlib knows no bytes)
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114  (pathlib knows no bytes)
            yield Skipped(_shown(path), "a link to a file that does not exist")
        else:
            yield Skipped(_shown(path), "removed while its folder was listed", "gone")
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            yield Skipped(_shown(path), "a link that leads in a circle")
        else:
            yield Skipped(_shown(path), f"may not be looked at: {error.strerror}", "refused")
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
