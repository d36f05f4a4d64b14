"""Memory does not grow with the number of images: a million keys from listing to verified night."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scoring.tiny import write_images

MAX_GROWTH_MIB = 300
NUM_KEYS = 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_keys_grow_the_driver_by_less_than_300_mib(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.scoring.scale.million", str(tmp_path), str(NUM_KEYS)],
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
    assert by_name["twice"]["grown_mib"] < 1024
    assert by_name["difference"]["grown_mib"] < 1024
    assert by_name["verify"]["grown_mib"] < 1024
    assert by_name["plan"]["planned"] == NUM_KEYS
    assert by_name["publish"]["rows"] == NUM_KEYS
    assert by_name["verify"]["problems"] == by_name["twice"]["problems"] == 0
    assert by_name["twice"]["repeated"] == NUM_KEYS
    assert by_name["difference"]["to_score"] == 0


def peak_mib_of_scoring(source: str, model_ref: str, output: str) -> float:
    """Score in a process of its own; return the highest memory that it and its decoders had."""
    code = (
        "import resource, sys; from imgcls.config.scoring import ScoreConfig;"
        "from imgcls.scoring.driver import score;"
        "score(ScoreConfig(*sys.argv[1:], executor='local'));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,"
        " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, source, model_ref, output],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return sum(map(float, ended.stdout.split()))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_workers_memory_does_not_grow_over_20000_images(model_ref: str, tmp_path: Path) -> None:
    write_images(str(tmp_path / "few"), 2_000)
    write_images(str(tmp_path / "many"), 20_000)
    few = peak_mib_of_scoring(str(tmp_path / "few"), model_ref, str(tmp_path / "out-few"))
    many = peak_mib_of_scoring(str(tmp_path / "many"), model_ref, str(tmp_path / "out-many"))
    print(f"2,000 images: {few:.0f} MiB, 20,000 images: {many:.0f} MiB")  # noqa: T201
    # Larger shards and the part of the night hold more rows; images must not.
    assert many - few < 100
