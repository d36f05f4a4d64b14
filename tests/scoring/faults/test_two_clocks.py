"""Two machines whose clocks differ share an output: nothing that they decide rests on a clock."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, VerifyConfig
from imgcls.nightly import nightly
from imgcls.scoring.publishing.verify import verify
from tests.scoring.nights import leave_unfinished, make_night, rows_by_run
from tests.scoring.tiny import published_rows, write_images


@pytest.fixture
def small_night(tmp_path: Path) -> NightlyConfig:
    """Config of a night over 9 images, with a promoted model."""
    return make_night(tmp_path, num_images=9)


@pytest.mark.parametrize(
    "ahead", [timedelta(0), timedelta(minutes=10), timedelta(minutes=-10), timedelta(days=1)]
)
def test_no_row_is_there_twice_where_another_machine_overtook_whose_clock_differs(
    small_night: NightlyConfig, ahead: timedelta
) -> None:
    leave_unfinished(small_night, before="score_plan")
    [plan] = Path(small_night.output).glob("_runs/*/plan.json")
    fields = json.loads(plan.read_text())
    its_time = datetime.fromisoformat(fields["created_at"]) + ahead
    plan.write_text(json.dumps(fields | {"created_at": its_time.isoformat()}))
    nightly(replace(small_night, date="2026-11-23"))
    assert nightly(small_night)["rows"] == 0
    assert sorted(rows_by_run(small_night)) == ["nightly-2026-11-23"]
    assert verify(VerifyConfig(small_night.output))["rows"] == 9


def test_unfinished_night_of_which_a_part_was_published_is_planned_again_without_it(
    small_night: NightlyConfig,
) -> None:
    lot = replace(small_night, source=f"{small_night.source}/lot-0", date="2026-11-23")
    leave_unfinished(small_night)
    nightly(lot)
    result = nightly(small_night)
    assert (result["run_id"], result["rows"]) == ("nightly-2026-11-22-2", 7)
    assert verify(VerifyConfig(small_night.output))["rows"] == 9


def test_unfinished_night_goes_on_where_others_published_other_images(
    small_night: NightlyConfig,
) -> None:
    leave_unfinished(small_night)
    write_images(f"{small_night.source}-b", 3)
    nightly(replace(small_night, source=f"{small_night.source}-b", date="2026-11-23"))
    result = nightly(small_night)
    assert (result["run_id"], result["rows_scored_now"]) == ("nightly-2026-11-22", 0)


LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
DRIVER = (
    "import json, os, signal, sys; from imgcls import nightly; from imgcls.config.scoring import"
    " NightlyConfig; config = NightlyConfig(**json.loads(sys.argv[1]))\n"
    "if sys.argv[2] == 'killed after its plan':\n"
    "    nightly.finish_run = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
    "print(json.dumps(nightly.nightly(config)['rows']))"
)


def drive(night: NightlyConfig, shift: str, how: str = "") -> int:
    """Run a night in a process of its own whose clock is shifted; return its rows, or -9."""
    command = [sys.executable, "-c", DRIVER, json.dumps(asdict(night)), how]
    environment = os.environ | {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME": shift,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    if done.returncode < 0:
        return done.returncode
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime (apt-get install faketime)")
@pytest.mark.parametrize("shift", ["+10m", "-10m", "+1d", "-1d"])
def test_two_drivers_with_shifted_clocks_publish_every_image_once(
    small_night: NightlyConfig, shift: str
) -> None:
    night = replace(small_night, date="", num_decoders=1)
    here = "+0s"
    assert drive(night, shift, "killed after its plan") == -signal.SIGKILL
    other = replace(night, run_id="of-another-machine")
    assert drive(other, here) == 9
    assert drive(night, shift) == 0
    assert drive(night, here) == 0
    # The other way about: what the shifted one publishes, this one knows.
    write_images(f"{night.source}/late", 4)
    assert drive(night, here, "killed after its plan") == -signal.SIGKILL
    assert drive(replace(night, run_id="late"), shift) == 4
    assert [drive(night, here), drive(night, shift)] == [0, 0]
    assert verify(VerifyConfig(night.output))["rows"] == 13
    assert len(published_rows(night.output)) == 13
