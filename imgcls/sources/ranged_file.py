"""An object as a seekable file, read by ranges of one version.

In: a URI, an etag, a size. Out: a binary file for libraries that want one. Invariant: all bytes
are of the version with this etag, or an error is raised; memory holds one block.
"""

import io
from typing import Final

from imgcls.errors import StorageError
from imgcls.storage.bucket import Span
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.info import ObjectInfo

# Headers of large members are read one by one; of small ones, with all that lies between.
_BLOCK_BYTES: Final = 64 << 10
_SEQUENTIAL_BLOCK_BYTES: Final = 4 << 20
_NEAR_BYTES: Final = 1 << 20


class RangedFile(io.RawIOBase):
    """The object, read where it is read, a block ahead; a large one where it is read on and on.

    Raises (on reading):
        ObjectMissingError, ObjectChangedError, AccessDeniedError, StorageError: as for `get_many`.
    """

    def __init__(self, info: ObjectInfo, *, reads_ahead: bool = True) -> None:
        super().__init__()
        self._info, self._reads_ahead = info, reads_ahead
        self._at = self._block_start = 0
        self._block = b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read anywhere."""
        return True

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there; nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or fewer at the end."""
        left = max(0, self._info.size_bytes - self._at)
        num_bytes = left if size is None or size < 0 else min(size, left)
        block_end = self._block_start + len(self._block)
        if not self._block_start <= self._at <= self._at + num_bytes <= block_end:
            self._fill(num_bytes, block_end)
        start = self._at - self._block_start
        data = self._block[start : start + num_bytes]
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any writable buffer
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fill(self, num_bytes: int, block_end: int) -> None:
        is_near = self._at > 0 and self._block_start <= self._at <= block_end + _NEAR_BYTES
        ahead = _SEQUENTIAL_BLOCK_BYTES if is_near and self._reads_ahead else _BLOCK_BYTES
        length = min(max(num_bytes, ahead), self._info.size_bytes - self._at)
        self._block_start, self._block = self._at, b""
        if length > 0:
            self._block = read_span(self._info, self._at, length)


def read_span(info: ObjectInfo, start: int, num_bytes: int) -> bytes:
    """Read bytes of one version of an object.

    Raises:
        StorageError: as for `get_many`, or fewer bytes are there.
    """
    request = GetRequest(
        0, info.uri, info.etag or None, info.version_id, span=Span(start, num_bytes)
    )
    [(_, data)] = get_many([request], max_in_flight=1, gives_unreadable=True)
    if isinstance(data, StorageError):
        raise data
    return data
