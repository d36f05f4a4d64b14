"""`plan` counts what `nightly` with the same flags then does."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.scoring import NightlyConfig, PlanConfig
from imgcls.errors import ConfigError
from imgcls.nightly import nightly
from imgcls.runs.plan import read_plan
from imgcls.runs.run import Run
from imgcls.scoring.next_night import DIFFERENCE, show_plan
from imgcls.storage.objects import list_objects, put
from tests.scoring.nights import leave_unfinished, run_and_list_modules
from tests.scoring.tiny import image_bytes


def planned(night: NightlyConfig) -> dict[str, Any]:
    """What `plan` says; it must write nothing."""
    before = {info.uri: info.etag for info in list_objects(night.output)}
    told = show_plan(PlanConfig(**vars(night)))
    assert {info.uri: info.etag for info in list_objects(night.output)} == before
    return told


def check_as_planned(night: NightlyConfig, told: dict[str, Any]) -> dict[str, Any]:
    """Run the night and compare it with what `plan` had said."""
    result = nightly(night)
    assert {name: told[name] for name in DIFFERENCE} == result["difference"]
    assert told["to_score"] == result["rows_scored_now"]
    plan = read_plan(Run(night.output, result["run_id"]))
    assert plan is not None
    if told["continues"] is None:
        assert told["shards"] == len(plan.shard_rows)
    return result


def test_a_first_night_and_the_next_are_as_planned(night: NightlyConfig) -> None:
    night = replace(night, shard_size=64)
    check_as_planned(night, planned(night))
    put(f"{night.source}/new.png", image_bytes(500))
    put(f"{night.source}/lot-0/00000.png", image_bytes(501))
    told = planned(night)
    assert (told["new"], told["changed"], told["to_score"]) == (1, 1, 2)
    check_as_planned(night, told)
    assert planned(night)["to_score"] == 0


@pytest.mark.parametrize("before", ["publish", "score_plan"])
def test_an_unfinished_night_is_planned_as_what_is_left_of_it(
    night: NightlyConfig, before: str
) -> None:
    leave_unfinished(night, before=before)
    put(f"{night.source}/new.png", image_bytes(500))
    told = planned(night)
    assert told["continues"] == "nightly-2026-11-22"
    assert (told["to_score"], told["new"]) == (0 if before == "publish" else 70, 70)
    assert check_as_planned(night, told)["rows"] == 70
    told = planned(night)
    assert (told["continues"], told["to_score"]) == (None, 1)


@pytest.mark.parametrize("flags", [{"precision": "fp32"}, {"top_k": 2}, {"write_probs": True}])
def test_flags_that_change_rows_plan_a_new_night_as_they_start_one(
    night: NightlyConfig, flags: dict[str, Any]
) -> None:
    leave_unfinished(night)
    told = planned(replace(night, **flags))
    assert (told["continues"], told["to_score"]) == (None, 70)
    result = check_as_planned(replace(night, **flags), told)
    assert result["run_id"] == "nightly-2026-11-22-2"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"top_k": 0}, "--top-k 0"),
        ({"date": "tomorrow"}, "--date tomorrow"),
        ({"shard_size": 3}, "--shard-size 3"),
        ({"precision": "int8"}, "has no int8 network"),
        ({"num_actors": -1}, "--num-actors -1"),
    ],
)
def test_what_the_night_refuses_plan_refuses_too(
    small_night: NightlyConfig, flags: dict[str, Any], words: str
) -> None:
    night = replace(small_night, **flags)
    for command in (planned, nightly):
        with pytest.raises(ConfigError, match=words):
            command(night)
    shutil.rmtree(Path(night.output), ignore_errors=True)


def test_plan_needs_neither_torch_nor_ray(night: NightlyConfig) -> None:
    flags = ["--source", night.source, "--model", night.model, "--output", night.output]
    told, modules = run_and_list_modules("plan", *flags)
    assert told["to_score"] == 70
    assert not {"torch", "ray", "torchvision"} & modules
