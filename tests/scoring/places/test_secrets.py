"""No credential is ever written: canary credentials are searched for in everything a run leaves."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from imgcls.demo.embedded_s3 import EmbeddedS3
from imgcls.model.registry import register
from imgcls.storage.objects import list_objects, read
from tests.scoring.tiny import make_bundle, write_images

pytestmark = [pytest.mark.s3, pytest.mark.ray]


def read_processes_and_files(folder: Path) -> Iterator[bytes]:
    """Yield every command line of this machine and every file under a folder, as they are now."""
    paths = [*Path("/proc").glob("[0-9]*/cmdline"), *folder.rglob("*")]
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_file():
                yield path.read_bytes()


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_canary_credentials_are_nowhere(
    executor: str, s3_bucket: str, s3_environment: EmbeddedS3
) -> None:
    canaries = [
        s3_environment.access_key_id.encode(),
        s3_environment.secret_access_key.encode(),
    ]
    register(f"{s3_bucket}/registry", "tiny", make_bundle())
    write_images(f"{s3_bucket}/images", 70)
    command = [sys.executable, "-m", "jobs.nightly", "--source", f"{s3_bucket}/images"]
    command += ["--model", f"{s3_bucket}/registry/tiny@v1", "--output", f"{s3_bucket}/out"]
    command += ["--executor", executor]
    num_searched = num_hits = 0

    def search(found: Iterable[bytes]) -> None:
        nonlocal num_searched, num_hits
        for data in found:
            num_searched += 1
            num_hits += sum(canary in data for canary in canaries)

    # Short, because Ray puts its sockets below it; searched while it is there.
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        process = subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None:
            search(read_processes_and_files(Path(folder)))
            time.sleep(0.2)
        search(read_processes_and_files(Path(folder)))
    assert process.returncode == 0
    search(process.communicate())
    search(read(info.uri) for info in list_objects(s3_bucket))
    assert num_hits == 0
    assert num_searched > 100


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "imgcls.cli", "score", "--source", "s3://AKIA:canary@bucket/x",
         "--model", "m", "--output", "o"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "canary" not in refused.stdout + refused.stderr
    assert "AWS_ACCESS_KEY_ID" in refused.stderr
