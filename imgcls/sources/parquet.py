"""Images in a Parquet file: a column of bytes, or of {bytes, path} as Hugging Face writes it.

In: a Parquet file and the name of its column, if told. Out: a member per row, named by its path or
its number, and its bytes. Invariant: every row comes out once; a null one is a member with a
problem. Memory holds a few rows, whatever the size of a row group.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from imgcls.errors import ConfigError, CorruptImageError, DecodeError, ImageTooLargeError
from imgcls.sources.members import MAX_MEMBER_BYTES, Member, Place, UniqueNames, problem
from imgcls.sources.ranged_file import RangedFile
from imgcls.storage.info import ObjectInfo

SUFFIXES: Final = (".parquet",)
NO_COLUMN: Final = "none"
_ROWS_AT_A_TIME: Final = 16
_STREAM_BYTES: Final = 1 << 20
_ERRORS: Final = (pa.ArrowException, OSError, ValueError)


def image_column(schema: pa.Schema, asked: str, uri: str) -> str:
    """Return the column that holds images, "" where none does.

    Args:
        schema: of the file.
        asked: --image-column; "" finds a struct {bytes, path}, NO_COLUMN wants none.
        uri: of the file, for messages.

    Raises:
        ConfigError: the column that was asked for is not there or holds no bytes; or there are
            images and a column uri, and it was not told which counts.
    """
    if asked == NO_COLUMN:
        return ""
    if asked:
        if asked not in schema.names or not _holds_bytes(schema.field(asked).type):
            raise ConfigError(
                f"--image-column {asked}: {uri} has no such column of bytes; its columns: "
                f"{', '.join(schema.names)}"
            )
        return asked
    found: list[str] = [field.name for field in schema if _is_image_struct(field.type)]
    if not found:
        return ""
    if "uri" in schema.names:
        raise ConfigError(
            f"{uri} has a column uri and images in the column {found[0]}: say which counts, by "
            f"--image-column {found[0]} (the images in it) or --image-column {NO_COLUMN} (its uris)"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{uri} has images in several columns ({', '.join(found)}): name one by --image-column"
        )
    return found[0]


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    names = {kind.field(number).name for number in range(kind.num_fields)}
    return {"bytes", "path"} <= names and _is_binary(kind.field("bytes").type)


def _holds_bytes(kind: pa.DataType) -> bool:
    return _is_binary(kind) or _is_image_struct(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def open_table(info: ObjectInfo) -> pq.ParquetFile | None:
    """Open a Parquet file, None where it is not one.

    Raises:
        StorageError: the store failed, or it is another version by now.
    """
    try:
        return _open(info)
    except _ERRORS:
        return None


def list_rows(info: ObjectInfo, file: pq.ParquetFile, column: str) -> Iterator[Member]:
    """Yield a member for each row.

    Args:
        info: the file.
        file: the same, opened.
        column: with the images.

    Raises:
        StorageError: the store failed, or it is another version by now.
    """
    names, number = UniqueNames(), 0
    try:
        is_struct = _is_image_struct(file.schema_arrow.field(column).type)
        total = file.metadata.num_rows
        paths = _paths(file, column) if is_struct else iter(())
        while number < total:
            path = next(paths, None)
            place = Place("row", number, column=column, container_bytes=info.size_bytes)
            yield Member(info, names.of(path or f"{number:08d}"), 0, place)
            number += 1
    except _ERRORS as error:
        reason = CorruptImageError(f"the Parquet file cannot be read behind {number} rows: {error}")
        yield Member(info, None, info.size_bytes, Place("row", problem=problem(reason)))


def _paths(file: pq.ParquetFile, column: str) -> Iterator[str | None]:
    names = [f"{column}.path"]
    for batch in file.iter_batches(batch_size=4096, columns=names, use_threads=False):
        for value in batch.column(column).to_pylist():
            yield value["path"] if value else None


def read_rows(
    info: ObjectInfo, column: str, numbers: Sequence[int]
) -> Iterator[tuple[int, bytes | DecodeError]]:
    """Yield (number, bytes) of rows, in ascending order of their numbers.

    Raises:
        StorageError: the store failed, or it is another version by now.
    """
    wanted = deque(numbers)
    try:
        file = _open(info)
        first = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if wanted and wanted[0] < first + num_rows:
                yield from _read_group(file, column, group, first, wanted)
            first += num_rows
    except _ERRORS as error:
        reason = f"the Parquet file cannot be read: {error}"
        yield from ((number, CorruptImageError(reason)) for number in wanted)


def _read_group(
    file: pq.ParquetFile, column: str, group: int, first: int, wanted: deque[int]
) -> Iterator[tuple[int, bytes | DecodeError]]:
    names = [f"{column}.bytes"] if _is_image_struct(file.schema_arrow.field(column).type) else None
    batches = file.iter_batches(
        batch_size=_ROWS_AT_A_TIME,
        row_groups=[group],
        columns=names or [column],
        use_threads=False,
    )
    for batch in batches:
        while wanted and wanted[0] < first + batch.num_rows:
            value = batch.column(column)[wanted[0] - first]
            yield wanted.popleft(), _bytes_of(value.as_py())
        first += batch.num_rows
        if not wanted:
            return


def _bytes_of(value: object) -> bytes | DecodeError:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        return CorruptImageError("the row holds no bytes")
    if len(data) > MAX_MEMBER_BYTES:
        return ImageTooLargeError(f"{len(data):,} bytes in a row, more than {MAX_MEMBER_BYTES:,}")
    return data


def _open(info: ObjectInfo) -> pq.ParquetFile:
    # Read as it is needed, not a whole row group at a time: of images, that may be gigabytes.
    return pq.ParquetFile(RangedFile(info), buffer_size=_STREAM_BYTES, pre_buffer=False)
