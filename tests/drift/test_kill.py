"""Kill a hold and a release at every write; the same command again ends in the same."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import RollbackConfig, VerifyConfig
from imgcls.errors import NightHeldError
from imgcls.nightly import nightly
from imgcls.runs.held import list_held
from imgcls.runs.published import list_published
from imgcls.scoring.publishing.retention import rollback
from imgcls.scoring.publishing.verify import verify
from tests.drift.cameras import make_line, write_pictures
from tests.scoring.tiny import comparable, published_rows


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "points",
    [
        # Just before and after each record that decides.
        pytest.param("decisive", id="sample"),
        pytest.param("all", id="all", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_write_of_hold_and_release_is_mended_by_the_same_command(
    points: str, tmp_path: Path
) -> None:
    config = make_line(tmp_path)
    write_pictures(Path(config.source), "first", 60)
    nightly(config)
    write_pictures(Path(config.source), "second", 80, dark_camera=1, seed=900)
    before = comparable(published_rows(config.output))
    # The oracle: the same night published without a word.
    oracle = replace(config, output=str(tmp_path / "oracle"), drift="off")
    shutil.copytree(config.output, oracle.output)
    nightly(oracle)
    undisturbed = comparable(published_rows(oracle.output))
    command = [sys.executable, "-m", "tests.drift.kill_points", config.source, config.model]
    done = subprocess.run(
        [*command, config.output, str(tmp_path / "nights"), points],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in done.stdout.splitlines()]
    killed = [record["killed"] for record in records]
    assert killed.count(-signal.SIGKILL) >= (4 if points == "decisive" else 40)
    for record in records:
        assert record["held"] == 6, record
        assert record["visible"] == len(before), record
        assert record["released"] == 0, record
        assert comparable(published_rows(record["output"])) == undisturbed, record
        assert verify(VerifyConfig(record["output"]))["runs_published"] == 2
        published = {manifest.run_id for _, manifest in list_published(record["output"])}
        assert list(list_held(record["output"], published)) == []


def test_a_rolled_back_hold_leaves_nothing_to_release(tmp_path: Path) -> None:
    config = make_line(tmp_path, num_reference=120)
    write_pictures(Path(config.source), "second", 80, dark_camera=1, darker=90, seed=900)
    with pytest.raises(NightHeldError):
        nightly(config)
    [(run, _)] = list_held(config.output)
    rollback(RollbackConfig(config.output, run.run_id))
    assert list(list_held(config.output)) == []
    assert not list(Path(run.uri).glob("pages/*")), "no picture of a night that was taken back"
