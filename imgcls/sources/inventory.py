"""A listing that the store made itself: S3 Inventory, by its manifest.json.

In: the URI of an inventory's manifest.json. Out: ObjectInfo per object, as from a listing, with
etag and size of the day of the inventory. Invariant: only the latest versions are in it, and no
delete marker; what has changed or gone since is told when it is read, by its etag.

An inventory of 100 million objects is read in minutes, where a listing asks 100,000 times.
"""

import csv
import gzip
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast
from urllib.parse import unquote_plus

import pyarrow.parquet as pq

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.sources.ranged_file import RangedFile
from imgcls.storage.info import FOLDER_MARKER, ObjectInfo, Skipped
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import head, read
from imgcls.storage.records import record_of
from imgcls.storage.stores.s3 import ARCHIVED
from imgcls.storage.uri import join

NAME: Final = "manifest.json"
_NEEDED: Final = ("Key", "Size", "LastModifiedDate", "ETag")
_ROWS_AT_A_TIME: Final = 65_536
# The columns of a Parquet inventory have names of their own.
_PARQUET_NAMES: Final = {
    "Bucket": "bucket",
    "Key": "key",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "StorageClass": "storage_class",
}

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _File:
    key: str
    size: int = 0


@dataclass(frozen=True)
class Inventory:
    """manifest.json of an inventory; the names are those of AWS."""

    sourceBucket: str  # noqa: N815
    fileFormat: str  # noqa: N815
    fileSchema: str  # noqa: N815
    files: tuple[_File, ...]
    uri: str = ""
    creationTimestamp: str = ""  # noqa: N815


def find_inventory(source: str) -> Inventory | None:
    """Return the inventory that a source names, None where it is something else.

    Raises:
        SourceError: it is an inventory that cannot be used; says what it lacks.
    """
    if source.rpartition("/")[2] != NAME:
        return None
    try:
        found = parse_object(read(source), source, SourceError)
    except (ObjectMissingError, SourceError):
        return None  # a table of that name, perhaps
    if "fileSchema" not in found or "sourceBucket" not in found:
        return None
    inventory = record_of(found | {"uri": source}, source, SourceError, Inventory)
    if inventory.fileFormat not in ("CSV", "Parquet"):
        raise SourceError(
            f"{source}: an inventory as {inventory.fileFormat} is not read; have it made as CSV or "
            "Parquet"
        )
    there = _columns(inventory)
    missing = [name for name in _NEEDED if _name_in(inventory, name) not in there]
    if missing:
        raise SourceError(
            f"{source}: the inventory lacks {', '.join(missing)}; add these fields in its "
            "configuration: without them nobody can tell what changed"
        )
    return inventory


def list_inventory(inventory: Inventory) -> Iterator[ObjectInfo | Skipped]:
    """Yield the objects of an inventory.

    Raises:
        SourceError: one of its files is missing or is not what the manifest says.
    """
    num_old = 0
    log.info("%s: as of %s", inventory.uri, inventory.creationTimestamp or "an unknown day")
    for file in inventory.files:
        rows = _csv_rows if inventory.fileFormat == "CSV" else _parquet_rows
        for row in rows(inventory, file):
            if _is(row.get("IsLatest", True)) and not _is(row.get("IsDeleteMarker", False)):
                yield _entry(row, inventory)
            else:
                num_old += 1
    if num_old:
        log.info("%d old versions and delete markers in the inventory are no objects", num_old)


def _entry(row: Row, inventory: Inventory) -> ObjectInfo | Skipped:
    uri = f"s3://{row.get('Bucket') or inventory.sourceBucket}/{row['Key']}"
    size_bytes = int(row["Size"] or 0)
    if size_bytes == 0 and uri.endswith("/"):
        return Skipped(uri, FOLDER_MARKER)
    if row.get("StorageClass") in ARCHIVED:
        return Skipped(uri, f"archived ({row['StorageClass']}): restore it first")
    moment = row["LastModifiedDate"]
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return ObjectInfo(uri, str(row["ETag"]).strip('"'), size_bytes, moment, None)


def _is(value: object) -> bool:
    return value if isinstance(value, bool) else str(value).lower() == "true"


def _columns(inventory: Inventory) -> list[str]:
    if inventory.fileFormat == "CSV":
        return [name.strip() for name in inventory.fileSchema.split(",")]
    words = set(re.findall(r"\w+", inventory.fileSchema))
    return [name for name in _PARQUET_NAMES.values() if name in words]


def _name_in(inventory: Inventory, name: str) -> str:
    return name if inventory.fileFormat == "CSV" else _PARQUET_NAMES[name]


def _file_uri(inventory: Inventory, file: _File) -> str:
    """Return where a file of an inventory is: its keys begin at the bucket of the manifest.

    The inventory may have been copied: then it is below the folder that holds the manifest's day.
    """
    scheme, _, rest = inventory.uri.partition("://")
    if rest:
        return f"{scheme}://{rest.partition('/')[0]}/{file.key}"
    # On a disk: a copy of the bucket, or of the inventory's own folder.
    folder = inventory.uri.rpartition("/")[0]
    while folder:
        candidate = join(folder, file.key)
        try:
            head(candidate)
        except ObjectMissingError:
            folder = folder.rpartition("/")[0]
        else:
            return candidate
    raise SourceError(f"{inventory.uri} names {file.key}, which is nowhere beside it")


def _csv_rows(inventory: Inventory, file: _File) -> Iterator[Row]:
    uri, names = _file_uri(inventory, file), _columns(inventory)
    try:
        packed = io.BufferedReader(RangedFile(head(uri)), 1 << 20)
        with gzip.open(packed, "rt", encoding="utf-8", newline="") as text:
            for cells in csv.reader(cast(Iterator[str], text)):
                row = dict(zip(names, cells, strict=True))
                row["Key"] = unquote_plus(row["Key"])
                yield row
    except ObjectMissingError as error:
        raise SourceError(f"{inventory.uri} names {uri}, which is not there") from error
    except (OSError, EOFError, ValueError) as error:
        raise SourceError(f"{uri} is not a file of an inventory: {error}") from error


def _parquet_rows(inventory: Inventory, file: _File) -> Iterator[Row]:
    uri = _file_uri(inventory, file)
    try:
        table = pq.ParquetFile(RangedFile(head(uri)))
        names = {theirs: ours for ours, theirs in _PARQUET_NAMES.items()}
        there = [name for name in table.schema_arrow.names if name in names]
        for batch in table.iter_batches(_ROWS_AT_A_TIME, columns=there):
            for row in batch.to_pylist():
                yield {names[name]: value for name, value in row.items()}
    except ObjectMissingError as error:
        raise SourceError(f"{inventory.uri} names {uri}, which is not there") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{uri} is not a file of an inventory: {error}") from error
