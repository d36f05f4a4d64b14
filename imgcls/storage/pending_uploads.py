"""Uploads in parts that nobody finished: invisible in a listing, and billed.

In: a prefix. Out: what is pending there, and its end. Invariant: imgcls itself starts none (whole
objects, one request each); these are left by other writers, and `imgcls gc` may clear them away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from imgcls.errors import ConfigError
from imgcls.storage.requests.background_loop import run
from imgcls.storage.resolver import bucket_of
from imgcls.storage.stores.s3 import S3Bucket
from imgcls.storage.uri import split_uri


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """One upload in parts that was begun and neither completed nor aborted."""

    uri: str
    upload_id: str
    initiated: datetime


def list_pending_uploads(prefix_uri: str) -> Iterator[PendingUpload]:
    """List the pending uploads of every key that begins with an s3:// prefix, page by page.

    Raises:
        ConfigError: not an s3:// URI, or no such bucket.
        AccessDeniedError, StorageError: as for `objects.list_entries`; not retried.
    """
    bucket, prefix = _s3_bucket(prefix_uri)
    markers: dict[str, str] = {}
    while True:
        request = {"Prefix": prefix, **markers}
        page = run(bucket.call("list_multipart_uploads", request, prefix_uri))
        for upload in page.get("Uploads", []):
            uri = f"s3://{split_uri(prefix_uri)[1]}/{upload['Key']}"
            yield PendingUpload(uri, upload["UploadId"], upload["Initiated"].astimezone(UTC))
        if not page.get("IsTruncated"):
            return
        markers = {
            "KeyMarker": page["NextKeyMarker"],
            "UploadIdMarker": page["NextUploadIdMarker"],
        }


def abort_upload(upload: PendingUpload) -> None:
    """Delete the parts of a pending upload; one that is gone is fine."""
    bucket, key = _s3_bucket(upload.uri)
    request = {"Key": key, "UploadId": upload.upload_id}
    run(bucket.call("abort_multipart_upload", request, upload.uri))


def _s3_bucket(uri: str) -> tuple[S3Bucket, str]:
    scheme, name, key = split_uri(uri)
    bucket = bucket_of(scheme, name) if scheme == "s3" else None
    if not isinstance(bucket, S3Bucket):
        raise ConfigError(f"{uri}: only s3:// has uploads in parts to look after")
    return bucket, key
