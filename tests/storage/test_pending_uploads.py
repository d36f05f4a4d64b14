"""Pending uploads in parts are found and ended."""

import pytest

from imgcls.demo.embedded_s3 import EmbeddedS3
from imgcls.errors import ConfigError
from imgcls.storage.objects import list_objects
from imgcls.storage.pending_uploads import abort_upload, list_pending_uploads
from imgcls.storage.uri import join, split_uri


@pytest.mark.s3
def test_pending_upload_is_listed_until_it_is_aborted(
    s3_environment: EmbeddedS3, s3_bucket: str
) -> None:
    bucket = split_uri(s3_bucket)[1]
    for key in ("out/a b+c", "elsewhere/x"):
        s3_environment.client.create_multipart_upload(Bucket=bucket, Key=key)
    (upload,) = list_pending_uploads(join(s3_bucket, "out"))
    assert upload.uri == join(s3_bucket, "out/a b+c")
    assert list(list_objects(s3_bucket)) == []
    abort_upload(upload)
    assert list(list_pending_uploads(join(s3_bucket, "out"))) == []
    assert len(list(list_pending_uploads(s3_bucket))) == 1


def test_other_stores_have_none() -> None:
    with pytest.raises(ConfigError, match="only s3://"):
        list(list_pending_uploads("/local"))
