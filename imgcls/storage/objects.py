"""Control plane: list, head, read, and the ways to write one object.

In: URIs of any store. Out: `ObjectInfo`s, bytes, etags. Invariant: an object appears whole or not
at all, and `put_new` succeeds for exactly one writer of a name; what a run commits rests on that
alone.
"""

from collections.abc import Iterator

from imgcls.errors import AccessDeniedError, ObjectExistsError, ObjectMissingError
from imgcls.storage import remote
from imgcls.storage.bucket import Folder
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.stores import local
from imgcls.storage.uri import is_local, split_uri

__all__ = [
    "ObjectInfo",
    "Skipped",
    "delete",
    "exists",
    "head",
    "is_folder",
    "list_entries",
    "list_folder",
    "list_objects",
    "put",
    "put_first",
    "put_if_match",
    "put_new",
    "read",
    "read_with_etag",
]


def list_entries(
    prefix_uri: str, *, start_after: str | None = None
) -> Iterator[ObjectInfo | Skipped]:
    """List everything under the folder `prefix_uri`, page by page, in the order of the store.

    Args:
        prefix_uri: the folder; "/" is appended where it is absent. A missing local folder holds
            nothing.
        start_after: URI of an object listed before; only what comes after it is listed.

    Yields:
        ObjectInfo of each object (local: sorted by the bytes of the path), or Skipped for what is
        listed and cannot be read as an object: folder markers, names that are not UTF-8, sockets,
            dangling links, local folders below that may not be listed.

    Raises:
        ConfigError: no such bucket.
        AccessDeniedError: not allowed to list, or no credentials.
        StorageError: the store did not answer in time.
    """
    if is_local(prefix_uri):
        return local.list_entries(_path(prefix_uri), _path(start_after) if start_after else None)
    return remote.list_entries(prefix_uri, start_after)


def list_objects(prefix_uri: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
    """List the objects under the folder `prefix_uri`: `list_entries` without what was skipped.

    Raises:
        AccessDeniedError: something there may not be looked at; to leave it out in silence would
            lose what it holds.
        ConfigError, StorageError: as for `list_entries`.
    """
    for entry in list_entries(prefix_uri, start_after=start_after):
        if isinstance(entry, ObjectInfo):
            yield entry
        elif entry.unseen == "refused":
            raise AccessDeniedError(f"list {entry.uri}: {entry.reason}")


def list_folder(prefix_uri: str) -> Folder | None:
    """List one level below the folder `prefix_uri`, in one request.

    Returns:
        The folders (URIs that end in "/") and the entries beside them; None where that is more than
        one page, or where the store is Azure's.

    Raises:
        ConfigError, AccessDeniedError, StorageError: as for `list_entries`.
    """
    if is_local(prefix_uri):
        return local.list_folder(_path(prefix_uri))
    return remote.list_folder(prefix_uri)


def is_folder(uri: str) -> bool:
    """Tell whether there is a local folder of this name; an object store has none by itself."""
    return is_local(uri) and local.is_folder(_path(uri))


def head(uri: str) -> ObjectInfo:
    """Describe one object, without its content.

    Raises:
        ObjectMissingError: there is none.
        AccessDeniedError, ConfigError, StorageError: as for `list_entries`.
    """
    return local.head(_path(uri)) if is_local(uri) else remote.head(uri)


def exists(uri: str) -> bool:
    """Tell whether there is an object (locally: a regular file) of this name."""
    try:
        head(uri)
    except ObjectMissingError:
        return False
    return True


def read(uri: str) -> bytes:
    """Read one whole object.

    Raises:
        ObjectMissingError: there is none.
        AccessDeniedError, ConfigError, StorageError: as for `list_entries`.
    """
    return read_with_etag(uri)[0]


def read_with_etag(uri: str) -> tuple[bytes, str]:
    """Read one whole object and the etag of exactly these bytes, for a later `put_if_match`."""
    return local.read_with_etag(_path(uri)) if is_local(uri) else remote.read_with_etag(uri)


def put_new(uri: str, data: bytes) -> str:
    """Create an object that nobody has created before: the one commit primitive.

    Of any number of writers exactly one succeeds. After a lost reply the object is read back and
    compared:
    equal bytes count as success. They are ours, or those of a writer whose commit was the same to
    the last byte; a commit record carries the unique path of its attempt, so equal bytes mean the
    same attempt.

    Returns:
        The etag of the object.

    Raises:
        ObjectExistsError: another writer was first.
        CommitStateUnknownError: replies were lost and the object could not be read back in time.
        AccessDeniedError, ConfigError, StorageError: nothing was written.
    """
    return local.put_new(_path(uri), data) if is_local(uri) else remote.put_new(uri, data)


def put_first(uri: str, data: bytes) -> bytes:
    """Create an object unless there is one, and return the bytes of whoever was first.

    Raises:
        CommitStateUnknownError, AccessDeniedError, ConfigError, StorageError: as for `put_new`.
    """
    try:
        put_new(uri, data)
    except ObjectExistsError:
        return read(uri)
    return data


def put_if_match(uri: str, data: bytes, etag: str) -> str:
    """Replace an object only if it still is the version with this etag (compare-and-swap).

    After a lost reply the object is read back; equal bytes count as success. Let `data` name its
    writer or its
    moment, as a lease and an alias do: two writers of the very same bytes cannot be told apart.

    Returns:
        The new etag.

    Raises:
        ObjectChangedError: it is another version by now.
        ObjectMissingError: there is no object.
        CommitStateUnknownError, AccessDeniedError, ConfigError, StorageError: as for `put_new`.
    """
    if is_local(uri):
        return local.put_if_match(_path(uri), data, etag)
    return remote.put_if_match(uri, data, etag)


def put(uri: str, data: bytes, *, is_private: bool = False) -> str:
    """Write an object whatever was there, and return its etag.

    For names that only one writer uses. On a disk only its owner may read a private one.
    """
    if is_local(uri):
        return local.put(_path(uri), data, is_private=is_private)
    return remote.put(uri, data)


def delete(uri: str) -> None:
    """Delete an object; a missing one is fine."""
    if is_local(uri):
        local.delete(_path(uri))
    else:
        remote.delete(uri)


def _path(uri: str) -> str:
    return split_uri(uri)[2]
