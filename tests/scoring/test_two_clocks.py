"""Two machines whose clocks differ share an output: nothing that they decide rests on a clock."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, VerifyConfig
from imgcls.nightly import nightly
from imgcls.scoring.verify import verify
from tests.scoring.nights import leave_unfinished, make_night, rows_by_run
from tests.scoring.tiny import write_images


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
