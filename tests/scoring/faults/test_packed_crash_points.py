"""Nights over a tar, a zip and a Parquet file: killed at every write, and started twice at once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from imgcls.config.scoring import ScoreConfig, VerifyConfig
from imgcls.scoring import driver
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import put
from tests.scoring.tiny import comparable, image_bytes, published_rows, tiff_frames
from tests.sources.archives import parquet_bytes, tar_bytes, zip_bytes

PACKERS = {"x.tar": tar_bytes, "x.zip": zip_bytes, "x.parquet": parquet_bytes}
NUM_IMAGES = 20  # of each
NUM_ROWS = len(PACKERS) * (NUM_IMAGES + 1)
# In a shard, and behind its commit. All others: slow.
SOME = ("6", "24")


@pytest.fixture
def source(tmp_path: Path) -> str:
    for first, (name, pack) in enumerate(PACKERS.items()):
        files = {f"{n:03}.png": image_bytes(100 * first + n) for n in range(NUM_IMAGES)}
        files["pages.tiff"] = tiff_frames(2)
        put(f"{tmp_path}/bucket/{name}", pack(files))
    return str(tmp_path / "bucket")


def rows(output: str, run_id: str = "") -> list[dict[str, object]]:
    """What a night published, in order of its images."""
    found = published_rows(output)
    if run_id:
        found = found.filter(pc.equal(found["run_id"], run_id))
    return sorted(comparable(found), key=lambda row: (row["uri"], row["member"], row["frame"] or 0))


@pytest.fixture
def undisturbed(source: str, model_ref: str, tmp_path: Path) -> list[dict[str, object]]:
    output = str(tmp_path / "oracle")
    driver.score(ScoreConfig(source, model_ref, output, executor="local", num_decoders=1))
    found = rows(output)
    assert len(found) == NUM_ROWS
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("points", [SOME, pytest.param((), marks=pytest.mark.slow)])
def test_a_night_over_containers_that_is_killed_finishes(
    points: tuple[str, ...],
    source: str,
    undisturbed: list[dict[str, object]],
    model_ref: str,
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "tests.scoring.faults.crash_points", source, model_ref]
    campaign = subprocess.run(
        [*command, str(tmp_path / "nights"), *points], capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in campaign.stdout.splitlines()]
    assert len(found) == 2 * len(points) if points else len(found) > 40
    assert {point["killed"] for point in found} - {0} == {-signal.SIGKILL}
    assert [point["killed"] for point in found].count(0) == (0 if points else 2)
    for point in found:
        assert point["finished"] == 0, point
        assert rows(point["output"]) == undisturbed, point
        assert verify(VerifyConfig(point["output"]))["rows"] == NUM_ROWS


@pytest.mark.parametrize("num_pairs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_double_starts_over_containers_publish_once(
    num_pairs: int,
    source: str,
    undisturbed: list[dict[str, object]],
    model_ref: str,
    tmp_path: Path,
) -> None:
    output = str(tmp_path / "out")
    command = [sys.executable, "-m", "tests.scoring.faults.forked_twins", source, model_ref, output]
    twins = subprocess.run([*command, str(num_pairs)], capture_output=True, text=True, check=True)
    codes = [json.loads(line) for line in twins.stdout.splitlines()]
    assert codes == [[0, 0]] * num_pairs
    for number in range(num_pairs):
        assert rows(output, f"run-{number:02d}") == undisturbed
    assert verify(VerifyConfig(output))["rows"] == num_pairs * NUM_ROWS
