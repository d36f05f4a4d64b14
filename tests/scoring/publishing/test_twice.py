"""Rows that two published runs hold: nights never, `score` where it was asked to."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, RollbackConfig, ScoreConfig, VerifyConfig
from imgcls.errors import ConfigError, ImgclsError
from imgcls.model.registry import promote, register
from imgcls.nightly import nightly
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.retention import rollback
from imgcls.scoring.publishing.twice import find_twice
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import put
from tests.scoring.nights import leave_unfinished, make_night
from tests.scoring.tiny import make_bundle, tiff_frames

FIRST, SECOND = "nightly-2026-11-22", "nightly-2026-11-23"


@pytest.fixture
def night(tmp_path: Path) -> NightlyConfig:
    return make_night(tmp_path, num_images=9)


def publish_twice(night: NightlyConfig) -> None:
    """Publish the images, and once more by a night that knew nothing of the first."""
    nightly(night)
    other = replace(night, output=f"{night.output}-b", date="2026-11-23")
    nightly(other)
    for folder in ("date=2026-11-23", f"_runs/{SECOND}"):
        shutil.copytree(Path(other.output) / folder, Path(night.output) / folder)


@pytest.mark.parametrize("run_id", ["", FIRST, SECOND])
def test_images_that_two_nights_published_are_told(run_id: str, night: NightlyConfig) -> None:
    publish_twice(night)
    words = f"9 rows of run {FIRST} are published by run {SECOND} too, the first of .*lot-0/00000"
    with pytest.raises(ImgclsError, match=words):
        verify(VerifyConfig(night.output, run_id))
    rollback(RollbackConfig(night.output, SECOND))
    assert verify(VerifyConfig(night.output))["rows"] == 9


def test_run_beside_two_that_hold_the_same_is_no_part_of_it(night: NightlyConfig) -> None:
    publish_twice(night)
    put(f"{night.source}/new.tiff", tiff_frames(3))
    assert nightly(replace(night, date="2026-11-24"))["rows"] == 1
    assert find_twice(night.output, "nightly-2026-11-24").problems == []


def test_failure_that_two_nights_published_is_told_unless_it_was_to_be_tried_again(
    night: NightlyConfig,
) -> None:
    shutil.rmtree(night.source)
    put(f"{night.source}/bad.png", b"\x89PNG\r\n\x1a\nnothing more")
    failing = replace(night, max_failed_fraction=1.0)
    nightly(failing)
    again = nightly(replace(failing, retry_failed=True))
    assert (again["rows"], again["rows_ok"]) == (1, 0)
    assert verify(VerifyConfig(night.output))["rows"] == 2
    publish_twice(replace(failing, output=f"{night.output}-c"))
    assert len(find_twice(f"{night.output}-c").problems) == 1


def test_image_that_was_gone_may_be_published_again(night: NightlyConfig, tmp_path: Path) -> None:
    [lost, *_] = sorted(Path(night.source).rglob("*.png"))
    leave_unfinished(night, before="score_plan")
    lost.rename(tmp_path / "aside.png")
    assert nightly(night)["status_counts"] == {"missing": 1, "ok": 8}
    (tmp_path / "aside.png").rename(lost)
    assert nightly(night)["status_counts"] == {"ok": 1}
    assert verify(VerifyConfig(night.output))["rows"] == 10


def test_another_model_scores_the_same_images(night: NightlyConfig) -> None:
    nightly(night)
    registry = night.model.partition("/tiny@")[0]
    register(registry, "tiny", make_bundle(seed=1))
    promote(f"{registry}/tiny@v2", "production")
    assert nightly(night)["rows"] == 9
    assert verify(VerifyConfig(night.output))["rows"] == 18


def test_what_score_was_asked_to_repeat_is_counted(night: NightlyConfig) -> None:
    nightly(night)
    asked = ScoreConfig(night.source, night.model, night.output, executor="local")
    for run_id in ("one", "two"):
        score(replace(asked, run_id=run_id))
    result = verify(VerifyConfig(night.output))
    assert (result["rows"], result["rows_repeated_by_score"]) == (27, 18)
    assert verify(VerifyConfig(night.output, FIRST))["rows_repeated_by_score"] == 18


def test_score_does_not_go_on_with_a_night(night: NightlyConfig) -> None:
    leave_unfinished(night)
    asked = ScoreConfig(night.source, night.model, night.output, run_id=FIRST, executor="local")
    with pytest.raises(ConfigError, match=f"{FIRST} is a night: continue it by nightly"):
        score(asked)
