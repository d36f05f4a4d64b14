"""The jobs as they are used: `ray job submit --working-dir . -- python -m jobs.X`."""

import json
import re
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

from imgcls.image.png import encode_png
from imgcls.storage.objects import put
from imgcls.storage.uri import join
from tests.kit.ray_head import Head
from tests.scoring.tiny import published_rows

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(290)]


@pytest.fixture
def head(s3_bucket: str) -> Iterator[Head]:
    """A head node whose processes find the S3 server of `s3_bucket` by their environment."""
    # Short: Ray's socket paths must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="imgcls-", ignore_cleanup_errors=True) as folder:
        started = Head(folder)
        try:
            started.wait_until_ready()
            yield started
        finally:
            started.close()


def write_labelled(root: str) -> None:
    """Two classes that anything can tell apart: dark and bright noise."""
    rng = np.random.default_rng(0)
    for number in range(40):
        name, low = ("dark", 0) if number % 2 else ("bright", 150)
        image = rng.integers(low, low + 100, (24, 24, 3), dtype=np.uint8)
        put(join(root, name, f"{number:03d}.png"), encode_png(image))


def last_json(log: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(re.findall(r"^\{.*\}$", log, re.MULTILINE)[-1])
    return found


def test_train_then_score_by_ray_job_submit(head: Head, s3_bucket: str) -> None:
    write_labelled(f"{s3_bucket}/labelled")
    train = "python -m jobs.train --arch simple_cnn --image-px 24 --epochs 4 --batch-size 8"
    trained = head.submit(
        *f"{train} --num-workers 2 --lr 0.003 --name noise --data {s3_bucket}/labelled".split(),
        *f"--registry {s3_bucket}/registry".split(),
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert last_json(trained.stdout)["version"] == 1
    scored = head.submit(
        *f"python -m jobs.score --run-id night --source {s3_bucket}/labelled".split(),
        *f"--model {s3_bucket}/registry/noise@v1 --output {s3_bucket}/out".split(),
    )
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert last_json(scored.stdout)["rows"] == 40
    assert "Ray: " in scored.stdout, "auto takes Ray inside a Ray job"
    rows = published_rows(f"{s3_bucket}/out").to_pylist()
    assert len(rows) == 40
    for row in rows:
        assert row["class_name"] == row["uri"].split("/")[-2]


def test_job_without_the_token_is_refused(head: Head) -> None:
    del head.environment["RAY_AUTH_TOKEN_PATH"]
    head.environment["HOME"] = "/nonexistent"
    refused = head.submit("python", "-c", "pass")
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()
