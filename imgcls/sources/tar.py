"""Members of a tar: WebDataset shards, and whatever else people pack.

In: a tar, or a compressed one. Out: its members, where their bytes are, and the bytes themselves of
a compressed one, which can only be read from its start on. Invariant: every regular member comes
out once; what cannot be read is a member with a problem, and a tar that does not end as one is a
problem of the container, never a silent end. Nothing is written anywhere.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, Final, cast

from imgcls.errors import (
    CorruptImageError,
    DecodeError,
    ImageTooLargeError,
    UnsupportedImageError,
)
from imgcls.sources.members import (
    MAX_MEMBER_BYTES,
    Member,
    Place,
    UniqueNames,
    error_of,
    problem,
)
from imgcls.sources.ranged_file import RangedFile
from imgcls.storage.info import ObjectInfo

SUFFIXES: Final = (".tar",)
COMPRESSED_SUFFIXES: Final = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
_KINDS: Final = {
    tarfile.SYMTYPE: "a link to {target!r}, which is not followed",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_BREAKS_OFF: Final = "the archive breaks off, or is damaged, behind {read} members"
# Photographs hardly shrink; what inflates to this many times its size is no archive of them.
_MAX_RATIO: Final = 100
_STEP_BYTES: Final = 1 << 20
# What tarfile raises for headers, and the decompressors for bytes that are not theirs. A failing
# store raises errors of ours, which none of these is.
_ERRORS: Final = (
    tarfile.TarError, EOFError, ValueError, OverflowError, OSError, zlib.error, lzma.LZMAError,
)  # fmt: skip


def list_tar(info: ObjectInfo) -> Iterator[Member | ObjectInfo]:
    """Yield the members of a plain tar, by reading its headers; the object itself if it is none.

    Raises:
        StorageError: the store failed, or the tar is another version by now.
    """
    names, num_members = UniqueNames(), 0
    places: dict[str, Place] = {}
    watched = _Watched(RangedFile(info))
    try:
        for _, entry in _entries(watched):
            num_members += 1
            places[entry.name] = place = _place(entry, places)
            yield Member(info, names.of(entry.name), entry.size, place)
        is_whole = watched.has_end
    except _ERRORS:
        is_whole = False
    if is_whole:
        return
    if not num_members:
        yield info
        return
    reason = CorruptImageError(_BREAKS_OFF.format(read=num_members))
    yield Member(info, None, info.size_bytes, Place("stored", problem=problem(reason)))


def list_compressed_tar(info: ObjectInfo) -> Iterator[Member | ObjectInfo]:
    """Yield the members of a compressed tar, by reading all of it once."""
    for number, name, size_bytes, data in stream_tar(info, with_data=False):
        if name is None and not number:
            yield info
            return
        reason = problem(data) if isinstance(data, DecodeError) else ""
        place = Place("stream", number, problem=reason, container_bytes=info.size_bytes)
        yield Member(info, name, size_bytes, place)


def stream_tar(
    info: ObjectInfo, *, with_data: bool = True
) -> Iterator[tuple[int, str | None, int, bytes | DecodeError]]:
    """Yield (number, name, size, bytes) of each member, from the start on.

    An error stands in place of the bytes that cannot be read. The last one may be of no name: what
    is behind the members before is lost.
    """
    names, number = UniqueNames(), 0
    watched = _Watched(_decompressed(info), max_bytes=_MAX_RATIO * info.size_bytes + _STEP_BYTES)
    try:
        for tar, entry in _entries(watched):
            name, data = names.of(entry.name), _read_streamed(tar, entry, with_data=with_data)
            yield number, name, entry.size, data
            number += 1
        watched.drain()  # to the checksum at its end
        is_whole = watched.has_end
    except _ERRORS:
        is_whole = False
    if not is_whole:
        yield number, None, info.size_bytes, CorruptImageError(_BREAKS_OFF.format(read=number))


def _entries(file: "_Watched") -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the entries but for folders; the tar must not keep them: it may have millions."""
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as tar:
        while (entry := tar.next()) is not None:
            if not entry.isdir():
                yield tar, entry
            tar.members = []  # type: ignore[attr-defined]  # in no documentation, but in every recipe


def _place(entry: tarfile.TarInfo, places: dict[str, Place]) -> Place:
    """Return where a member's bytes are; of a hard link, those of the member that it names."""
    if entry.islnk():
        target = places.get(entry.linkname)
        return target or _refused(UnsupportedImageError, f"a link to {entry.linkname!r}")
    if entry.type in _KINDS:
        words = _KINDS[entry.type].format(target=entry.linkname)
        return _refused(UnsupportedImageError, words)
    if entry.issparse():
        return _refused(UnsupportedImageError, "a sparse file, in pieces")
    if entry.size > MAX_MEMBER_BYTES:
        words = f"{entry.size:,} bytes in an archive, more than {MAX_MEMBER_BYTES:,}"
        return _refused(ImageTooLargeError, words)
    return Place("stored", entry.offset_data, entry.size)


def _refused(kind: type[UnsupportedImageError | ImageTooLargeError], words: str) -> Place:
    return Place("stored", problem=problem(kind(words)))


def _read_streamed(
    tar: tarfile.TarFile, entry: tarfile.TarInfo, *, with_data: bool
) -> bytes | DecodeError:
    place = _place(entry, {})
    if place.problem:
        return cast(DecodeError, error_of(place.problem))
    if not with_data:
        return b""
    file = tar.extractfile(entry)
    assert file is not None, "a regular member"
    return file.read()


def _decompressed(info: ObjectInfo) -> Any:  # noqa: ANN401 - any file
    file: Any = RangedFile(info)
    lower = info.uri.lower()
    if lower.endswith(("gz",)):
        return gzip.GzipFile(fileobj=file)
    if lower.endswith(("bz2",)):
        return bz2.BZ2File(file)
    if lower.endswith(("xz",)):
        return lzma.LZMAFile(file)
    import pyarrow as pa

    return pa.CompressedInputStream(file, "zstd")


class _Watched(io.RawIOBase):
    """A file that is only read forwards, and remembers how a tar in it ended.

    tarfile takes a header that it cannot read for the end, without a word.
    """

    def __init__(self, file: Any, *, max_bytes: int = 0) -> None:  # noqa: ANN401 - any file
        super().__init__()
        self._file, self._max_bytes = file, max_bytes
        self._at = 0
        self._last_block = b""
        self._can_seek = not max_bytes

    @property
    def has_end(self) -> bool:
        """Whether the last header that was read is the mark of an end."""
        return self._last_block == bytes(tarfile.BLOCKSIZE)

    def read(self, size: int | None = -1) -> bytes:
        """Read on; a whole block is taken for a header."""
        data: bytes = self._file.read(-1 if size is None else size)
        self._at += len(data)
        if self._max_bytes and self._at > self._max_bytes:
            raise ValueError(f"it inflates to more than {_MAX_RATIO} times its size")
        if size == tarfile.BLOCKSIZE:
            self._last_block = data
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go forwards."""
        assert whence == io.SEEK_SET, "tarfile seeks from the start"
        if self._can_seek:
            self._at = self._file.seek(offset)
            return self._at
        if offset < self._at:
            raise ValueError("a tar whose members are not in order")
        last_block = self._last_block
        while self._at < offset and self.read(min(_STEP_BYTES, offset - self._at)):
            pass
        self._last_block = last_block  # what was passed over is no header
        return self._at

    def drain(self) -> None:
        """Read what is left: padding, and the checksum of the compression."""
        while self.read(_STEP_BYTES):
            pass

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._at

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that tarfile may seek."""
        return True
