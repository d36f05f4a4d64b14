"""What a run leaves beside itself for people to read: progress.json, report.json, its log."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import GcConfig, ScoreConfig, VerifyConfig
from imgcls.errors import BudgetExceededError, RunStoppedError
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.retention import gc
from imgcls.scoring.publishing.verify import verify
from imgcls.scoring.reporting.progress_file import RunProgress
from imgcls.scoring.reporting.run_log import KeptLines, RunLog
from imgcls.scoring.shard.worker import ShardSummary
from imgcls.storage.objects import put
from tests.scoring.tiny import plan_record, write_images

NUM_IMAGES = 150


@pytest.fixture(autouse=True)
def logging_on() -> Iterator[None]:
    logger = logging.getLogger("imgcls")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(level)


@pytest.fixture
def config(model_ref: str, tmp_path: Path) -> ScoreConfig:
    source, output = str(tmp_path / "bucket"), str(tmp_path / "out")
    write_images(source, NUM_IMAGES)
    return ScoreConfig(source, model_ref, output, run_id="night", executor="local", shard_size=64)


def folder_of(config: ScoreConfig) -> Path:
    return Path(config.output) / "_runs" / "night"


def test_a_run_leaves_its_counts_its_report_and_its_log(config: ScoreConfig) -> None:
    result = score(config)
    run = folder_of(config)
    progress = json.loads((run / "progress.json").read_text())
    assert progress["state"] == "published"
    assert (progress["images"], progress["images_done"]) == (NUM_IMAGES, NUM_IMAGES)
    assert (progress["shards"], progress["shards_done"]) == (3, 3)
    assert progress["status_counts"] == {"ok": NUM_IMAGES}
    assert progress["updated_at"] >= progress["started_at"]
    report = json.loads((run / "report.json").read_text())
    assert report["nodes"] == result["nodes"]
    assert sum(node["images"] for node in result["nodes"]) == NUM_IMAGES
    [text] = [path.read_text() for path in (run / "logs").iterdir()]
    assert f"run night: {NUM_IMAGES} images in 3 shards" in text
    assert f"node {result['nodes'][0]['node']}: {NUM_IMAGES} images" in text
    assert verify(VerifyConfig(config.output))["problems"] == []
    gc(GcConfig(config.output, older_than="0s"))
    assert {"progress.json", "report.json", "logs"} <= {path.name for path in run.iterdir()}


def test_a_run_that_fails_says_why_in_its_progress_and_its_log(config: ScoreConfig) -> None:
    for number in range(20):
        put(f"{config.source}/bad-{number}", b"not an image")
    with pytest.raises(BudgetExceededError):
        score(config)
    progress = json.loads((folder_of(config) / "progress.json").read_text())
    assert progress["state"] == "failed"
    assert "--max-failed-fraction" in progress["message"]
    assert progress["status_counts"]["unsupported"] > 0
    [text] = [path.read_text() for path in (folder_of(config) / "logs").iterdir()]
    assert "ERROR imgcls BudgetExceededError" in text
    assert json.loads((folder_of(config) / "report.json").read_text())["nodes"]
    score(replace(config, max_failed_fraction=1.0))
    assert json.loads((folder_of(config) / "progress.json").read_text())["state"] == "published"
    assert len(list((folder_of(config) / "logs").iterdir())) == 2


def test_a_store_that_takes_none_of_it_does_not_end_the_run(config: ScoreConfig) -> None:
    run = folder_of(config)
    # Folders of these names, and a file of that one: no object can be put there.
    (run / "progress.json").mkdir(parents=True)
    (run / "report.json").mkdir()
    (run / "logs").write_text("in the way")
    assert score(config)["rows"] == NUM_IMAGES


def test_resumed_run_counts_what_was_there_and_rates_what_it_does_itself() -> None:
    progress = RunProgress(plan_record((100, 50, 50), "/nowhere"))
    progress.start_from("000000", 110, {"ok": 110})
    time.sleep(0.01)
    assert progress.snapshot()["images_per_s"] == 0
    assert progress.snapshot()["eta_s"] is None
    progress.add(ShardSummary("000001", 50, 1.0, status_counts={"ok": 49, "corrupt": 1}))
    told = progress.snapshot()
    assert (told["images_done"], told["rows"], told["shards_done"]) == (150, 160, 2)
    assert told["status_counts"] == {"ok": 159, "corrupt": 1}
    # As many are left as were done now: as long again.
    assert told["eta_s"] is not None
    assert 0 < told["images_per_s"] <= 50 / 0.01


def test_a_stopped_run_says_so(tmp_path: Path) -> None:
    def stop() -> None:
        with RunProgress(plan_record((1,), str(tmp_path))):
            raise RunStoppedError("stopped by SIGTERM")

    with pytest.raises(RunStoppedError):
        stop()
    told = json.loads((tmp_path / "_runs" / "night" / "progress.json").read_text())
    assert (told["state"], told["message"]) == ("stopped", "stopped by SIGTERM")


def test_log_of_no_run_is_copied_nowhere(tmp_path: Path) -> None:
    with RunLog():
        logging.getLogger("imgcls.x").warning("before there is a plan")
    assert list(tmp_path.iterdir()) == []


def test_a_workers_warnings_are_kept_until_they_are_taken() -> None:
    kept = KeptLines()
    logger = logging.getLogger("imgcls.test_progress")
    logger.addHandler(kept)
    try:
        logger.info("nothing to send")
        logger.warning("engine %s fell back", "x")
        assert kept.take() == ("WARNING imgcls.test_progress engine x fell back",)
        assert kept.take() == ()
        for number in range(1000):
            logger.warning("%d", number)
        assert len(kept.take()) == KeptLines.MAX_LINES
    finally:
        logger.removeHandler(kept)
