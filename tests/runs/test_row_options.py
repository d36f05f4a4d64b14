"""What decides a row is the plan's, whatever the flags of a later start are."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import NightlyConfig, PlanConfig, ScoreConfig
from imgcls.errors import ConfigError
from imgcls.runs.plan import Plan, read_plan
from imgcls.runs.row_options import RowOptions
from imgcls.runs.run import Run
from imgcls.scoring.executors.executor import open_executor
from imgcls.scoring.planning.checks import check_same_run
from tests.scoring.nights import leave_unfinished, make_night

OTHER: dict[str, Any] = {
    "top_k": 2,
    "precision": "fp32",
    "write_probs": True,
    "write_embedding": True,
    "gpu_decode": "on",
    "carry": ("folder:1",),
    "write_tiles": True,
    "review_unfamiliar": True,
    "heatmaps": "all",
    "unit": "folder:1",
    "unit_rule": "mean",
}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> NightlyConfig:
    """A night that was killed before it scored; do not change what it left."""
    night = make_night(tmp_path_factory.mktemp("planned"), num_images=3)
    leave_unfinished(night, before="score_plan", top_k=3)
    return night


def plan_of(night: NightlyConfig) -> Plan:
    plan = read_plan(Run(night.output, "nightly-2026-11-22"))
    assert plan is not None
    return plan


def test_every_option_is_a_flag_of_every_command_that_makes_rows() -> None:
    for config in (ScoreConfig, NightlyConfig, PlanConfig):
        defaults = {field.name: field.default for field in fields(config)}
        for option in fields(RowOptions):
            assert defaults[option.name] == option.default
    assert {field.name for field in fields(RowOptions)} == set(OTHER)


def test_plan_keeps_the_options_of_the_command_that_made_it(planned: NightlyConfig) -> None:
    assert plan_of(planned).row_options == RowOptions(top_k=3)


@pytest.mark.parametrize("option", OTHER)
def test_resuming_with_another_option_is_refused_by_name(
    planned: NightlyConfig, option: str
) -> None:
    # As if `score` had planned it: of a night it is refused before that.
    plan = plan_of(planned)
    flags = {name: value for name, value in plan.config.items() if name != "retry_failed"}
    plan = replace(plan, config=flags)
    config = ScoreConfig(**flags)
    check_same_run(config, plan)
    flag = f"--{option.replace('_', '-')}"
    with pytest.raises(ConfigError, match=rf"{flag} .*, not {re.escape(str(OTHER[option]))}"):
        check_same_run(replace(config, **{option: OTHER[option]}), plan)


def test_workers_obey_the_plan_and_not_the_flags_of_today(planned: NightlyConfig) -> None:
    plan = replace(plan_of(planned), row_options=RowOptions(top_k=2, write_probs=True))
    with open_executor(replace(planned, top_k=4, device="cpu")) as executor:
        [summary] = list(executor.run(plan, list(plan.shards())))
    assert summary.error_message == ""
    [attempt] = Path(Run(planned.output, plan.run_id).file("attempts")).iterdir()
    [row, *_] = pq.read_table(attempt).to_pylist()
    assert (len(row["topk_prob"]), len(row["probs"])) == (2, 7)


@pytest.mark.parametrize("left_out", [[], ["gpu_decode"], ["gpu_decode", "write_embedding"]])
def test_plans_of_earlier_versions_are_read_from_their_flags(
    planned: NightlyConfig, tmp_path: Path, left_out: list[str]
) -> None:
    fields_of = json.loads(Path(Run(planned.output, "nightly-2026-11-22").plan).read_text())
    del fields_of["row_options"]
    fields_of["config"] |= {"write_probs": True, "gpu_decode": "off"}
    for name in left_out:
        del fields_of["config"][name]
    place = Path(Run(str(tmp_path), "old").plan)
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(fields_of))
    plan = read_plan(Run(str(tmp_path), "old"))
    assert plan is not None
    assert plan.row_options == RowOptions(top_k=3, write_probs=True)


def test_options_of_a_later_version_are_passed_over() -> None:
    assert RowOptions.of_flags({"top_k": 1, "write_dreams": True}) == RowOptions(top_k=1)
