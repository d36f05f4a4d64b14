"""Members that only a container's start leads to, kept on a disk while a training reads them.

In: the images of a training. Out: reads as `get_images` does. Invariant: what is given is what
`get_images` gives; a compressed tar, a Parquet file and a zip in a zip are read from their start on
once, whatever the order in which their images are asked for. The file has no name and is gone with
the process, however it ends; memory holds its directory.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from typing import IO

from imgcls.errors import ConfigError, DecodeError, ObjectUnreadableError, StorageError
from imgcls.sources.located import Located, in_reading_order, request_for
from imgcls.sources.members import KEPT_WHILE_TRAINING, MemberRequest
from imgcls.sources.read import get_images
from imgcls.storage.access import ImageResult
from imgcls.storage.bulk_get import GetRequest

log = logging.getLogger(__name__)

_Key = tuple[int, int]


class Unpacked:
    """Reads the images of a data set again and again. Thread-safe.

    Args:
        images: Of the data set, of all splits.
    """

    def __init__(self, images: Sequence[Located]) -> None:
        self._wanted: dict[str, list[GetRequest]] = {}
        for index, image in enumerate(images):
            if image.member is not None and _is_packed(request := request_for(index, image)):
                self._wanted.setdefault(request.uri, []).append(request)
        self._found: dict[str, dict[_Key, tuple[int, int] | StorageError | DecodeError]] = {}
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None

    def get(
        self, requests: Iterable[GetRequest], *, gives_unreadable: bool = False
    ) -> Generator[ImageResult]:
        """Yield (index, bytes or error) for each request.

        Raises:
            ConfigError: the disk has no room.
            StorageError: as for `get_images`.
        """
        for is_packed, group in groupby(requests, key=_is_packed):
            if not is_packed:
                yield from get_images(group, gives_unreadable=gives_unreadable)
                continue
            for request in group:
                assert isinstance(request, MemberRequest), "packed"
                data = self._read(request)
                if isinstance(data, ObjectUnreadableError) and not gives_unreadable:
                    raise data
                yield request.index, data

    def _read(self, request: MemberRequest) -> bytes | StorageError | DecodeError:
        with self._lock:
            if request.uri not in self._found:
                found = self._unpack(request.uri)
                refused = next(
                    (r for r in found.values() if isinstance(r, ObjectUnreadableError)), None
                )
                if refused is not None:
                    return refused  # it is asked for again
                self._found[request.uri] = found
        at = self._found[request.uri][_key_of(request)]
        if not isinstance(at, tuple):
            return at
        assert self._file is not None, "it was unpacked"
        return os.pread(self._file.fileno(), at[1], at[0])

    def _unpack(self, uri: str) -> dict[_Key, tuple[int, int] | StorageError | DecodeError]:
        """Write the images of a container to the file, and return where they are."""
        wanted = in_reading_order(self._wanted[uri])
        key_by_index = {request.index: _key_of(request) for request in wanted}
        found: dict[_Key, tuple[int, int] | StorageError | DecodeError] = {}
        start = end = 0
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (as long as this)
            start = end = self._file.seek(0, os.SEEK_END)
            for index, data in get_images(wanted, gives_unreadable=True):
                if isinstance(data, bytes):
                    _write(self._file, data)
                    found[key_by_index[index]] = end, len(data)
                    end += len(data)
                else:
                    found[key_by_index[index]] = data
        except OSError as error:
            raise ConfigError(
                f"{tempfile.gettempdir()} has no room for the images of {uri}, which are kept "
                f"there while the training reads them ({error.strerror}): point TMPDIR at a larger "
                "disk, or repack the container as a plain tar"
            ) from error
        log.info(
            "%s can only be read from its start on: its %d images (%.1f MB) are kept in %s while "
            "this training runs",
            uri, len(wanted), (end - start) / 1e6, tempfile.gettempdir(),
        )  # fmt: skip
        return found


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _is_packed(request: GetRequest) -> bool:
    return (
        isinstance(request, MemberRequest)
        and not request.place.problem
        and request.place.method in KEPT_WHILE_TRAINING
    )


def _key_of(request: GetRequest) -> _Key:
    assert isinstance(request, MemberRequest), "packed"
    return request.place.start, request.place.inner_start
