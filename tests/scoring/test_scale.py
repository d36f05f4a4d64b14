"""Memory does not grow with the number of images: a million keys from listing to verified night."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MAX_GROWTH_MIB = 300
NUM_KEYS = 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_keys_grow_the_driver_by_less_than_300_mib(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.scoring.million", str(tmp_path), str(NUM_KEYS)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    stages = [json.loads(line) for line in ended.stdout.splitlines()]
    print(*stages, sep="\n")  # noqa: T201 - the measurement is wanted in the log
    # Commit is the workers' part; the rest is the driver's.
    by_name = {stage["stage"]: stage for stage in stages}
    assert by_name["plan"]["grown_mib"] < MAX_GROWTH_MIB
    assert by_name["publish"]["grown_mib"] < MAX_GROWTH_MIB
    assert by_name["difference"]["grown_mib"] < 1024
    assert by_name["verify"]["grown_mib"] < 1024
    assert by_name["plan"]["planned"] == NUM_KEYS
    assert by_name["publish"]["rows"] == NUM_KEYS
    assert by_name["verify"]["problems"] == 0
    assert by_name["difference"]["to_score"] == 0
