"""Members of a zip, also of zips in it, one level deep: a study as a PACS exports it.

In: a zip. Out: its members, and how their bytes are read; bytes of a span -> bytes of a member.
Invariant: every file of the central directory comes out once, as itself or with a problem; no more
is inflated than the directory promised, and what differs from its checksum is an error, never data.
Nothing is written anywhere.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, Final, cast

from imgcls.errors import (
    CorruptImageError,
    DecodeError,
    ImageTooLargeError,
    UnsupportedImageError,
)
from imgcls.sources.members import (
    MAX_INNER_BYTES,
    MAX_MEMBER_BYTES,
    Member,
    Method,
    Place,
    UniqueNames,
    problem,
)
from imgcls.sources.ranged_file import RangedFile, read_span
from imgcls.storage.info import ObjectInfo

SUFFIXES: Final = (".zip",)
_LOCAL: Final = struct.Struct("<4s22xHH")  # APPNOTE 6.3.10, 4.3.7
_SIGNATURE: Final = b"PK\x03\x04"
_METHODS: Final[dict[int, Method]] = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}
_ENCRYPTED: Final = 1
_ERRORS: Final = (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error)


def list_zip(info: ObjectInfo) -> Iterator[Member]:
    """Yield the members of a zip, by reading its directory.

    Raises:
        StorageError: the store failed, or the zip is another version by now.
    """
    names = UniqueNames()
    try:
        entries = _directory(cast(IO[bytes], RangedFile(info)))
    except _ERRORS as error:
        yield Member(info, None, info.size_bytes, _refused(CorruptImageError, _damaged(error)))
        return
    for entry, end in entries:
        place = _place(entry, end)
        if not place.problem and entry.filename.lower().endswith(SUFFIXES):
            yield from _list_inner(info, names, entry, place)
        else:
            yield Member(info, names.of(entry.filename), entry.file_size, place)


def _directory(file: IO[bytes]) -> list[tuple[zipfile.ZipInfo, int]]:
    """Return the files of a zip in order of their bytes, each with where its bytes end at most."""
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        ends = [entry.header_offset for entry in entries][1:] + [archive.start_dir] * bool(entries)
    return [pair for pair in zip(entries, ends, strict=True) if not pair[0].is_dir()]


def _damaged(error: Exception) -> str:
    # Of a zip that was cut off, it is the directory at its end that is gone.
    return f"not a whole zip: {error}"[:200]


def _place(entry: zipfile.ZipInfo, end: int) -> Place:
    """Return what to read of a member: its header, which only tells where its bytes begin, too."""
    num_bytes = end - entry.header_offset
    is_inner = entry.filename.lower().endswith(SUFFIXES)
    if entry.flag_bits & _ENCRYPTED:
        return _refused(UnsupportedImageError, "encrypted: export it without a password")
    if entry.compress_type not in _METHODS:
        words = f"compressed by method {entry.compress_type} of zip: repack it with deflate"
        return _refused(UnsupportedImageError, words)
    limit = MAX_INNER_BYTES if is_inner else MAX_MEMBER_BYTES
    if max(entry.file_size, entry.compress_size) > limit:
        size = max(entry.file_size, entry.compress_size)
        return _refused(ImageTooLargeError, f"{size:,} bytes in an archive, more than {limit:,}")
    if num_bytes < _LOCAL.size + entry.compress_size:
        return _refused(CorruptImageError, "its bytes overlap those of another member")
    # Behind the bytes there may be anything before the next header.
    most = _LOCAL.size + 2 * 0xFFFF + entry.compress_size
    method = _METHODS[entry.compress_type]
    return Place(method, entry.header_offset, min(num_bytes, most), entry.CRC)


def _refused(kind: type[DecodeError], words: str) -> Place:
    return Place("stored", problem=problem(kind(words)))


def _list_inner(
    info: ObjectInfo, names: UniqueNames, outer: zipfile.ZipInfo, place: Place
) -> Iterator[Member]:
    """Yield the members of a zip inside a zip, as OUTER/MEMBER."""
    try:
        raw = read_span(info, place.start, place.num_bytes)
        outer_data_start = place.start + _start_of(raw)
        entries = _directory(io.BytesIO(unpack(raw, place, outer.file_size)))
    except (DecodeError, *_ERRORS) as error:
        kind = _refused(CorruptImageError, _damaged(error))
        yield Member(info, names.of(outer.filename), outer.file_size, kind)
        return
    for entry, end in entries:
        inner = _place(entry, end)
        if not inner.problem and entry.filename.lower().endswith(SUFFIXES):
            inner = _refused(UnsupportedImageError, "a zip in a zip in a zip: one level is read")
        elif not inner.problem:
            inner = _in_outer(inner, place, outer_data_start)
        yield Member(info, names.of(f"{outer.filename}/{entry.filename}"), entry.file_size, inner)


def _in_outer(inner: Place, outer: Place, outer_data_start: int) -> Place:
    """Return the place of a member of an inner zip, in the outer one."""
    if outer.method == "stored":
        # As it lies in the outer one, a few of its bytes can be read too.
        return replace(inner, start=outer_data_start + inner.start)
    return Place("inner", outer.start, outer.num_bytes, outer.crc32, inner_start=inner.start)


def unpack(data: bytes, place: Place, size_bytes: int) -> bytes:
    """Return the bytes of a member.

    Args:
        data: of its span: a local header, then its bytes.
        place: of it; "stored" or "deflate", with a checksum.
        size_bytes: of the member.

    Raises:
        CorruptImageError: the bytes are not those of the directory.
    """
    start = _start_of(data)
    body = data[start : start + size_bytes] if place.method == "stored" else data[start:]
    if place.method == "deflate":
        body = _inflate(body, size_bytes)
    if len(body) != size_bytes or zlib.crc32(body) != place.crc32:
        raise CorruptImageError("its bytes in the zip do not match their checksum")
    return body


def unpack_inner(data: bytes, place: Place) -> bytes:
    """Return the bytes of a zip in a zip, whose size only its own end tells.

    Raises:
        CorruptImageError: the bytes are not those of the directory.
        ImageTooLargeError: it inflates to more than MAX_INNER_BYTES.
    """
    start = _start_of(data)
    body = _inflate(data[start:], MAX_INNER_BYTES)
    if len(body) > MAX_INNER_BYTES:
        raise ImageTooLargeError(f"the inner zip inflates to more than {MAX_INNER_BYTES:,} bytes")
    if zlib.crc32(body) != place.crc32:
        raise CorruptImageError("the bytes of the inner zip do not match their checksum")
    return body


def _start_of(data: bytes) -> int:
    """Return where the bytes of a member begin behind its local header."""
    if len(data) < _LOCAL.size or not data.startswith(_SIGNATURE):
        raise CorruptImageError("no header where the directory of the zip says")
    _, name_bytes, extra_bytes = _LOCAL.unpack_from(data)
    return _LOCAL.size + int(name_bytes) + int(extra_bytes)


def _inflate(data: bytes, size_bytes: int) -> bytes:
    try:
        # One byte more shows that it would continue: a bomb never gets larger than it said.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size_bytes + 1)
    except zlib.error as error:
        raise CorruptImageError(f"cannot be inflated: {error}") from error


class InnerZip:
    """A zip that was a member of a zip, inflated whole, for the members that are read of it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._by_start = {entry.header_offset: (entry, end) for entry, end in self._entries()}

    def _entries(self) -> list[tuple[zipfile.ZipInfo, int]]:
        try:
            return _directory(io.BytesIO(self._data))
        except _ERRORS as error:
            raise CorruptImageError(_damaged(error)) from error

    def read(self, start: int) -> bytes:
        """Return the bytes of the member with its header there.

        Raises:
            CorruptImageError: there is none, or its bytes do not match their checksum.
        """
        if start not in self._by_start:
            raise CorruptImageError("not in the inner zip any more")
        entry, end = self._by_start[start]
        place = _place(entry, end)
        span = self._data[place.start : place.start + place.num_bytes]
        return unpack(span, place, entry.file_size)
