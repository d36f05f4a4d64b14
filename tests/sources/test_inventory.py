"""S3 Inventory as a listing, in both of its formats."""

import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.config.source_options import ListingOptions
from imgcls.errors import SourceError
from imgcls.scoring.driver import score
from imgcls.scoring.planning.listing import list_source
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.objects import delete, head, put
from tests.scoring.conftest import model_ref
from tests.scoring.tiny import image_bytes, published_rows

__all__ = ["model_ref"]
SCHEMA = (
    "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
)
WRITTEN = "2026-11-24T03:04:05.000Z"
NAMES = ["a b+c/ü 100%.png", "lot/1.png", "lot/2.png"]


def rows_of(names: list[str], **changes: Any) -> list[dict[str, Any]]:
    usual = {
        "Bucket": "images",
        "VersionId": "v1",
        "IsLatest": "true",
        "IsDeleteMarker": "false",
        "Size": "10",
        "LastModifiedDate": WRITTEN,
        "ETag": "e" * 32,
        "StorageClass": "STANDARD",
    }
    return [usual | {"Key": name} | changes for name in names]


ROWS = [
    *rows_of(NAMES),
    *rows_of(["lot/1.png"], IsLatest="false", VersionId="v0", ETag="old"),
    *rows_of(["gone.png"], IsDeleteMarker="true", Size=""),
    *rows_of(["folder/"], Size="0"),
    *rows_of(["cold.png"], StorageClass="DEEP_ARCHIVE"),
]


def write_inventory(root: str, rows: list[dict[str, Any]], kind: str, schema: str = SCHEMA) -> str:
    """Write an inventory as S3 does; return its manifest.json."""
    folder = f"{root}/inv/images/daily"
    names = [name.strip() for name in schema.split(",")]
    if kind == "CSV":
        lines = [
            ",".join(
                f'"{quote_plus(row[name], safe="/") if name == "Key" else row[name]}"'
                for name in names
            )
            for row in rows
        ]
        data, suffix = gzip.compress("\n".join(lines).encode()), "csv.gz"
    else:
        moment = datetime(2026, 11, 24, 3, 4, 5, tzinfo=UTC)
        table = pa.table(
            {
                "bucket": [row["Bucket"] for row in rows],
                "key": [row["Key"] for row in rows],
                "is_latest": [row["IsLatest"] == "true" for row in rows],
                "is_delete_marker": [row["IsDeleteMarker"] == "true" for row in rows],
                "size": pa.array([int(row["Size"] or 0) for row in rows], pa.int64()),
                "last_modified_date": pa.array([moment] * len(rows), pa.timestamp("ms", "UTC")),
                "e_tag": [row["ETag"] for row in rows],
                "storage_class": [row["StorageClass"] for row in rows],
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        data, suffix = buffer.getvalue(), "parquet"
        schema = "message s3.inventory { " + "; ".join(table.schema.names) + "; }"
    put(f"{folder}/data/0.{suffix}", data)
    manifest = {
        "sourceBucket": "images",
        "destinationBucket": "arn:aws:s3:::inv",
        "version": "2016-11-30",
        "creationTimestamp": "1764032400000",
        "fileFormat": kind,
        "fileSchema": schema,
        "files": [{"key": f"inv/images/daily/data/0.{suffix}", "size": 1, "MD5checksum": "x"}],
    }
    uri = f"{folder}/2026-11-25T01-00Z/manifest.json"
    put(uri, json.dumps(manifest).encode())
    return uri


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_latest_versions_are_listed_with_etag_size_and_time(kind: str, tmp_path: Path) -> None:
    found = list(list_source(write_inventory(str(tmp_path), ROWS, kind)))
    infos = [entry for entry in found if isinstance(entry, ObjectInfo)]
    moment = datetime(2026, 11, 24, 3, 4, 5, tzinfo=UTC)
    assert infos == [ObjectInfo(f"s3://images/{n}", "e" * 32, 10, moment, None) for n in NAMES]
    skipped = {entry.uri: entry.reason for entry in found if isinstance(entry, Skipped)}
    assert set(skipped) == {"s3://images/folder/", "s3://images/cold.png"}
    assert "archived" in skipped["s3://images/cold.png"]


def test_filters_see_the_keys_of_the_bucket(tmp_path: Path) -> None:
    uri = write_inventory(str(tmp_path), ROWS, "CSV")
    found = list(list_source(uri, ListingOptions(include=("lot/*",))))
    infos = [entry for entry in found if isinstance(entry, ObjectInfo)]
    assert [info.uri for info in infos] == ["s3://images/lot/1.png", "s3://images/lot/2.png"]


def test_an_inventory_that_cannot_tell_versions_is_refused_by_field(tmp_path: Path) -> None:
    short = SCHEMA.replace(", ETag", "").replace(", Size", "")
    with pytest.raises(SourceError, match="lacks Size, ETag"):
        list(list_source(write_inventory(str(tmp_path), ROWS, "CSV", short)))


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    uri = write_inventory(str(tmp_path), ROWS, "CSV")
    data = tmp_path / "inv/images/daily/data/0.csv.gz"
    data.write_bytes(data.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"0\.csv\.gz"):
        list(list_source(uri))
    data.unlink()
    with pytest.raises(SourceError, match=r"0\.csv\.gz"):
        list(list_source(uri))


def test_a_table_of_that_name_is_a_manifest_as_before(tmp_path: Path) -> None:
    put(str(tmp_path / "a.png"), image_bytes(1))
    (tmp_path / "manifest.json").write_text(json.dumps([{"uri": "a.png"}]))
    [info] = list_source(str(tmp_path / "manifest.json"))
    assert isinstance(info, ObjectInfo)
    assert info.uri == str(tmp_path / "a.png")


@pytest.mark.s3
def test_a_night_by_inventory_tells_what_changed_and_went_since(
    s3_bucket: str, model_ref: str, tmp_path: Path
) -> None:
    names = [f"in/{n} +%.png" for n in range(6)]
    for number, name in enumerate(names):
        put(f"{s3_bucket}/{name}", image_bytes(number))
    bucket = s3_bucket.removeprefix("s3://")
    infos = [head(f"{s3_bucket}/{name}") for name in names]
    rows = [
        row | {"Bucket": bucket, "ETag": info.etag, "Size": str(info.size_bytes)}
        for row, info in zip(rows_of(names), infos, strict=True)
    ]
    source = write_inventory(s3_bucket, rows, "CSV")
    put(f"{s3_bucket}/{names[0]}", image_bytes(99))
    delete(f"{s3_bucket}/{names[1]}")
    output = str(tmp_path / "out")
    flags = {"executor": "local", "device": "cpu", "max_failed_fraction": 1.0}
    result = score(ScoreConfig(source, model_ref, output, **flags))
    assert result["status_counts"] == {"changed": 1, "missing": 1, "ok": 4}
    assert sorted(published_rows(output)["uri"].to_pylist()) == [f"{s3_bucket}/{n}" for n in names]
