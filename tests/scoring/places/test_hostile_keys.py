"""Keys are opaque: whatever a bucket's keys look like, their rows carry them to the last byte."""

from pathlib import Path
from uuid import uuid4

import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.demo.embedded_s3 import EmbeddedS3
from imgcls.scoring.driver import score
from imgcls.storage.objects import put
from imgcls.storage.uri import join
from tests.scoring.tiny import image_bytes, published_rows
from tests.storage.test_keys import HOSTILE


@pytest.mark.s3
def test_hostile_keys_on_s3_are_scored_and_written_back_exactly(
    model_ref: str, s3_bucket: str, s3_environment: EmbeddedS3
) -> None:
    # A bucket of its own for the output: the longest key leaves no room for a prefix.
    check_hostile_keys(model_ref, s3_bucket, s3_environment.create_bucket(f"out-{uuid4().hex}"))


def test_hostile_names_on_disk_are_scored_and_written_back_exactly(
    model_ref: str, tmp_path: Path
) -> None:
    check_hostile_keys(model_ref, str(tmp_path / "images"), str(tmp_path / "out"))


def check_hostile_keys(model_ref: str, source: str, output: str) -> None:
    sizes = {join(source, name): len(image_bytes(i)) for i, name in enumerate(HOSTILE)}
    for i, name in enumerate(HOSTILE):
        put(join(source, name), image_bytes(i))
    result = score(ScoreConfig(source, model_ref, output, executor="local"))
    rows = published_rows(output).to_pylist()
    assert {row["uri"]: row["size_bytes"] for row in rows} == sizes
    assert {row["status"] for row in rows} == {"ok"}
    assert result["listed"] == result["rows"] + result["skipped"] == len(HOSTILE) == 38
