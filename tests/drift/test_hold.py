"""A night whose pictures have changed: held, seen by nobody, released or taken back by hand."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import (
    GcConfig,
    NightlyConfig,
    PlanConfig,
    ReleaseConfig,
    RollbackConfig,
    ScoreConfig,
    VerifyConfig,
)
from imgcls.drift.record import read_judged
from imgcls.errors import ConfigError, NightHeldError, SourceError
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve
from imgcls.nightly import nightly
from imgcls.operations.kubernetes import FINAL_EXIT_CODES
from imgcls.report.make import PAGE
from imgcls.results.delta import is_delta
from imgcls.runs.held import list_held
from imgcls.runs.latest import read_latest
from imgcls.runs.published import list_published
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.publishing.hold import release
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import read
from tests.drift.cameras import make_line, write_pictures
from tests.report.browser import opened
from tests.scoring.tiny import published_rows


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> NightlyConfig:
    """A line of cameras of which one became darker; its first night was published."""
    config = make_line(tmp_path_factory.mktemp("line"))
    write_pictures(Path(config.source), "first", 120)
    assert nightly(config)["rows"] == 120
    write_pictures(Path(config.source), "second", 120, dark_camera=3, seed=1000)
    return config


@pytest.fixture
def night(line: NightlyConfig, tmp_path: Path) -> NightlyConfig:
    """The same, in an output of its own."""
    shutil.copytree(line.output, tmp_path / "out")
    shutil.copytree(line.source, tmp_path / "bucket", copy_function=shutil.copy2)
    return replace(line, output=str(tmp_path / "out"))


def hold(config: NightlyConfig) -> Run:
    with pytest.raises(NightHeldError) as caught:
        nightly(config)
    assert caught.value.exit_code == 6
    [(run, held)] = list_held(config.output, {m.run_id for _, m in list_published(config.output)})
    assert held.sentence in str(caught.value)
    assert "imgcls release" in str(caught.value)
    return run


def test_a_reference_makes_a_version_that_scores_nothing_again(line: NightlyConfig) -> None:
    registry = line.model.partition("/tiny@")[0]
    before, after = (read_bundle(resolve(f"{registry}/tiny@v{n}")) for n in (1, 2))
    assert before.network_digest == after.network_digest
    assert before.digest != after.digest
    assert len(after.attachments["reference.zip"]) < 100_000
    assert b"good-0" not in after.attachments["reference.zip"], "no name of an image"


def test_the_camera_that_changed_is_named_in_a_sentence(
    night: NightlyConfig, tmp_path: Path
) -> None:
    run = hold(night)
    judged = read_judged(run)
    assert judged is not None
    [first, *_] = judged.findings
    assert (first.axis, first.column, first.group) == ("brightness", "camera", "3")
    assert first.sentence.startswith("camera 3: 4")
    assert "grey levels darker" in first.sentence
    assert first.interval is not None
    assert -50 < first.interval[0] < -41 < first.interval[1] < -34
    assert len(judged.pictures) == 12
    assert all("camera=3/second" in picture.uri for picture in judged.pictures)
    page = read(run.page("held.html")).decode()
    assert f"<h1>Held, and not published: {judged.sentence}</h1>" in page
    for command in ("release", "rollback"):
        # At the end of its line, so that nothing else is copied with it.
        assert f"imgcls {command} --output {night.output} --run-id {run.run_id}</p>" in page
    assert page.count('alt="second-') == 12
    (tmp_path / "held.html").write_text(page)
    release(ReleaseConfig(night.output, run.run_id))
    page = read(run.page("held.html")).decode()
    assert f"<h1>Was held, and released since: {judged.sentence}</h1>" in page
    assert "imgcls release" not in page
    assert "held for a person to look at it, and then released" in read(run.page(PAGE)).decode()
    with opened(str(tmp_path / "held.html"), width=390) as shown:
        assert shown.complaints == []
        overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not shown.page.evaluate(overflow), "a phone scrolls it sideways"


def test_a_held_night_is_seen_by_no_reader_and_done_by_no_start(night: NightlyConfig) -> None:
    hold(night)
    assert len(published_rows(night.output)) == 120
    assert len(read_latest(night.output)) == 120
    assert [m.run_id for _, m in list_published(night.output)] == ["nightly-2026-11-22"]
    # Its images count as done: neither a night nor a plan takes them.
    fields = dict(vars(night))
    assert show_plan(PlanConfig(**fields))["to_score"] == 0
    assert nightly(night)["rows"] == 0
    assert nightly(replace(night, drift="off"))["rows"] == 0
    # gc keeps it, and what is new goes on without it.
    gc(GcConfig(night.output, older_than="0s", abandoned=True))
    assert verify(VerifyConfig(night.output))["runs_published"] == 1
    assert len(published_rows(night.output)) == 120


def test_a_run_by_hand_is_held_too_and_not_resumed(night: NightlyConfig, tmp_path: Path) -> None:
    flags = {n: v for n, v in vars(night).items() if n in ScoreConfig.__dataclass_fields__}
    flags |= {"run_id": "by-hand", "output": str(tmp_path / "by-hand"), "delta": True}
    config = ScoreConfig(**flags)
    for _ in range(2):
        with pytest.raises(NightHeldError, match="camera 3"):
            score(config)
    assert list(list_published(config.output)) == []
    assert not is_delta(config.output)
    assert release(ReleaseConfig(config.output, "by-hand"))["rows"] == 240
    # What the run was asked for beside its rows is made now.
    assert is_delta(config.output)
    # As where it was killed behind its manifest: released again it ends in the same, gc or not.
    assert gc(GcConfig(config.output, older_than="0s"))["removed"]
    assert release(ReleaseConfig(config.output, "by-hand"))["rows"] == 240


def test_the_next_night_goes_on_without_it(night: NightlyConfig, tmp_path: Path) -> None:
    source = tmp_path / "bucket"
    moved = replace(night, source=str(source), output=str(tmp_path / "other"), drift="warn")
    write_pictures(source, "third", 60, seed=5000)
    nightly(moved)
    write_pictures(source, "fourth", 80, dark_camera=0, seed=6000)
    held = hold(replace(moved, drift="hold"))
    write_pictures(source, "fifth", 60, seed=7000)
    assert nightly(replace(moved, drift="hold"))["rows"] == 60
    assert not any("fourth" in row["uri"] for row in published_rows(moved.output).to_pylist())
    released = release(ReleaseConfig(moved.output, held.run_id))
    assert released["rows"] == 80
    assert "camera 0" in released["released"]
    assert verify(VerifyConfig(moved.output))["runs_published"] == 3
    # What a person released is known: the same change is told, and holds nothing any more.
    write_pictures(source, "sixth", 80, dark_camera=0, seed=6000)
    last = nightly(replace(moved, drift="hold"))
    judged = read_judged(Run(moved.output, last["run_id"]))
    assert judged is not None
    assert judged.state == "quiet"
    assert judged.accepted[0].group == "0"


def test_release_and_rollback_end_it_and_nothing_else(night: NightlyConfig) -> None:
    run = hold(night)
    with pytest.raises(ConfigError, match="is not held"):
        release(ReleaseConfig(night.output, "nightly-2026-11-22"))
    with pytest.raises(SourceError, match="there is no run"):
        release(ReleaseConfig(night.output, "nobody"))
    rollback(RollbackConfig(night.output, run.run_id))
    assert read_judged(run) is None
    with pytest.raises(ConfigError, match="rolled back"):
        release(ReleaseConfig(night.output, run.run_id))
    # Taken back, its images are new again.
    assert nightly(replace(night, drift="warn"))["rows"] == 120


def test_held_is_final_for_kubernetes() -> None:
    assert FINAL_EXIT_CODES == [2, 3, 4, 6]
