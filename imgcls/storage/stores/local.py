"""Objects on a local (or network-mounted) disk.

In: absolute paths. Out: the same contract as an object store's. Invariant: a file appears under its
name whole and synced, or not at all; what a killed writer leaves begins with TEMP_PREFIX and no
listing shows it.
"""

import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgcls.errors import (
    AccessDeniedError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.bucket import Span
from imgcls.storage.info import ObjectInfo
from imgcls.storage.stores.local_listing import (
    TEMP_PREFIX,
    etag_of,
    info_of,
    list_entries,
    list_folder,
    without_inode,
)

__all__ = [
    "delete",
    "head",
    "is_folder",
    "list_entries",
    "list_folder",
    "put",
    "put_if_match",
    "put_new",
    "read_with_etag",
    "without_inode",
]

_OWNER_ONLY = stat.S_IRUSR | stat.S_IWUSR
_TICK_NS = 10_000_000  # of a kernel with CONFIG_HZ=100; others tick more often


def is_folder(path: str) -> bool:
    """Tell whether there is a folder of this name."""
    return Path(path).is_dir()


def head(path: str) -> ObjectInfo:
    """Describe one regular file."""
    with _errors("head", path):
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissingError(f"{path}: not a regular file")
        return info_of(path, status)


def read_with_etag(path: str, span: Span | None = None) -> tuple[bytes, str]:
    """Read one whole file, or a span of it, and the etag of what was read."""
    # Not to block: it might be a pipe, which gives no end of file as long as nobody writes.
    with _errors("read", path), open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123  (a descriptor)
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise ObjectMissingError(f"read {path}: not a regular file")
        if span is not None:
            file.seek(span.start)
        data = file.read(-1 if span is None else span.num_bytes)
        after = os.fstat(file.fileno())
    expected = after.st_size if span is None else span.length_in(after.st_size)
    if etag_of(before) != etag_of(after) or len(data) != expected:
        raise ObjectChangedError(f"read {path}: somebody wrote to it meanwhile")
    return data, etag_of(after)


def put_new(path: str, data: bytes) -> str:
    """Create a file that does not exist: a hard link cannot replace, so exactly one writer wins."""
    with _errors("put_new", path), _written(path, data) as temp:
        etag = etag_of(Path(temp).stat())
        try:
            os.link(temp, path)
        except FileExistsError:
            raise ObjectExistsError(f"{path} exists: another writer was first") from None
        _sync_folder(path)
        return etag


def put_if_match(path: str, data: bytes, etag: str) -> str:
    """Replace a file if it still has this etag, under a lock of its folder."""
    with _errors("put_if_match", path), _locked_folder(path):
        if not Path(path).is_file():
            raise ObjectMissingError(f"{path}: no such file")
        current = Path(path).stat()
        if etag_of(current) != without_inode(etag):
            raise ObjectChangedError(f"{path} is no longer version {etag}")
        # Later than what it replaces: an inode may come back, so the time alone tells versions
        # apart.
        return _replace(path, data, after_ns=current.st_mtime_ns)


def put(path: str, data: bytes, *, is_private: bool = False) -> str:
    """Write a file whatever was there; only its owner may read a private one."""
    with _errors("put", path):
        return _replace(path, data, after_ns=0, is_private=is_private)


def delete(path: str) -> None:
    """Delete a file; a missing one is fine."""
    with _errors("delete", path):
        Path(path).unlink(missing_ok=True)


def _replace(path: str, data: bytes, *, after_ns: int, is_private: bool = False) -> str:
    with _written(path, data, after_ns=after_ns, is_private=is_private) as temp:
        etag = etag_of(Path(temp).stat())
        Path(temp).replace(path)
        _sync_folder(path)
        return etag


@contextmanager
def _written(
    path: str, data: bytes, *, after_ns: int = 0, is_private: bool = False
) -> Iterator[str]:
    """Write and sync a temporary file beside `path`; remove it unless it was renamed meanwhile."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    temp = folder / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    try:
        with temp.open("xb") as file:
            if is_private:  # before there is anything to read
                os.fchmod(file.fileno(), _OWNER_ONLY)
            file.write(data)
            file.flush()
            # The disk's clock, which all writers to a network disk share. Its stamps are as coarse
            # as a kernel's tick, too coarse for an etag: a counter of ours fills what is below it.
            disk_ns = os.fstat(file.fileno()).st_mtime_ns
            stamp_ns = disk_ns - disk_ns % _TICK_NS + time.monotonic_ns() % _TICK_NS
            stamp_ns = max(stamp_ns, after_ns + 1)
            os.utime(file.fileno(), ns=(stamp_ns, stamp_ns))
            os.fsync(file.fileno())
        yield str(temp)
    finally:
        temp.unlink(missing_ok=True)


@contextmanager
def _locked_folder(path: str) -> Iterator[None]:
    """Hold an exclusive lock of the folder; the kernel drops it when its holder dies."""
    try:
        folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise ObjectMissingError(f"{path}: no such file") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _sync_folder(path: str) -> None:
    """Make the new name survive a power cut, not only the bytes."""
    folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _errors(operation: str, path: str) -> Iterator[None]:
    """Say in our own terms what the operating system refused."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ObjectMissingError(f"{operation} {path}: no such file") from error
    except NotADirectoryError as error:
        if operation in ("head", "read", "delete"):
            raise ObjectMissingError(f"{operation} {path}: no such file") from error
        raise StorageError(f"{operation} {path}: a file is in the way of a folder") from error
    except FileExistsError as error:
        raise StorageError(f"{operation} {path}: a file is in the way of a folder") from error
    except PermissionError as error:
        kind = ObjectUnreadableError if operation in ("head", "read") else AccessDeniedError
        raise kind(
            f"{operation} {path}: {error.strerror};"
            " check the owner and mode of the file and its folder"
        ) from error
    except OSError as error:
        if operation in ("head", "read"):
            if error.errno == errno.EIO:  # a bad sector, or the whole disk
                raise ObjectUnreadableError(f"{operation} {path}: {error.strerror}") from error
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # no file has such a name
                raise ObjectMissingError(f"{operation} {path}: {error.strerror}") from error
        raise StorageError(f"{operation} {path}: {error.strerror or error}") from error
