"""Kill anything, run the same command again: proved at every write that a night makes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imgcls.config.scoring import ScoreConfig, VerifyConfig
from imgcls.scoring import driver
from imgcls.scoring.publishing.verify import verify
from tests.scoring.tiny import comparable, published_rows, write_images

NUM_IMAGES = 96
# Lease, plan file, plan.json, 8 attempts, 8 files of facts, 8 commits, lease renewed, part,
# manifest, lease let go; precision.json; progress.json at the start and at the end,
# report.json, counts.json, the page, latest.sql, the log.
NUM_WRITES = 39


@pytest.mark.timeout(900)
def test_killed_before_and_after_every_write_the_same_command_finishes(
    model_ref: str, tmp_path: Path
) -> None:
    write_images(str(tmp_path / "bucket"), NUM_IMAGES)
    # The oracle: one undisturbed run, one process, one shard.
    driver.score(
        ScoreConfig(str(tmp_path / "bucket"), model_ref, str(tmp_path / "oracle"), executor="local")
    )
    undisturbed = comparable(published_rows(str(tmp_path / "oracle")))
    assert len(undisturbed) == NUM_IMAGES
    command = [sys.executable, "-m", "tests.scoring.faults.crash_points", str(tmp_path / "bucket")]
    command += [model_ref, str(tmp_path / "nights")]
    campaign = subprocess.run(command, capture_output=True, text=True, check=True)
    points = [json.loads(line) for line in campaign.stdout.splitlines()]
    assert len(points) == 2 * (NUM_WRITES + 1), "each write before and after, and twice untouched"
    for point in points:
        assert point["finished"] == 0, point
        assert comparable(published_rows(point["output"])) == undisturbed, point
        assert verify(VerifyConfig(point["output"]))["rows"] == NUM_IMAGES
    assert [point["killed"] for point in points].count(0) == 2
    assert {point["killed"] for point in points} == {0, -signal.SIGKILL}
