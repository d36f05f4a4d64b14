"""What commit 27535e0 left behind is read, resumed and verified by this one.

`27535e0.tar.xz` holds an output with a published and a killed night, a registry, and a killed
training; make_fixture.py made it and tells what is in it. Every test gets a copy of its own, at the
one place that the recorded paths name: a lock keeps test processes from each other.
"""

import fcntl
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import GcConfig, PlanConfig, RollbackConfig, ScoreConfig, VerifyConfig
from imgcls.evaluation.evaluate import evaluate
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve
from imgcls.nightly import nightly
from imgcls.runs.published import list_published
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.publishing import lease
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import list_objects
from imgcls.training.driver import train
from tests.scoring.tiny import published_rows
from tests.upgrade.make_fixture import KILLED, NIGHT, ROOT, NightlyConfig, TrainConfig

FIXTURE = Path(__file__).with_name("27535e0.tar.xz")
OUTPUT, SOURCE, MODEL = NIGHT["output"], NIGHT["source"], NIGHT["model"]
PUBLISHED, KILLED_NIGHT = "nightly-2026-11-22", "nightly-2026-11-23"
COMMITS = Path(OUTPUT) / "_runs" / KILLED_NIGHT / "commits"
# Another CPU, or another order of sums, moves probabilities by less than this.
TOLERANCE = 1e-4

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def earlier() -> Iterator[None]:
    """Everything under ROOT as 27535e0 left it, times of modification included."""
    with ROOT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(ROOT, ignore_errors=True)
        with tarfile.open(FIXTURE) as tar:
            tar.extractall(ROOT, filter="data")
        for name, mtime_ns in json.loads((ROOT / "mtimes.json").read_text()).items():
            os.utime(ROOT / name, ns=(mtime_ns, mtime_ns))
        yield
        shutil.rmtree(ROOT)


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the lease of the killed night run out within the test."""
    monkeypatch.setattr(lease, "TTL_S", 2.0)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.5)


def answers(rows: list[Row]) -> list[Row]:
    """What a row says of its image."""
    names = ("uri", "frame", "status", "width_px", "height_px", "label", "class_name", "topk_label")
    return [{name: row[name] for name in (*names, "topk_prob")} for row in rows]


def nearly(rows: list[Row]) -> list[Row]:
    """The same, where numbers within TOLERANCE are equal."""
    return [
        row | {"topk_prob": row["topk_prob"] and pytest.approx(row["topk_prob"], abs=TOLERANCE)}
        for row in answers(rows)
    ]


def rows_of(run_id: str) -> list[Row]:
    return [row for row in published_rows(OUTPUT).to_pylist() if row["run_id"] == run_id]


def test_published_night_is_read_and_verified() -> None:
    assert [manifest.run_id for _, manifest in list_published(OUTPUT)] == [PUBLISHED]
    rows = rows_of(PUBLISHED)
    assert len(rows) == 20
    assert [row["frame"] for row in rows if str(row["uri"]).endswith(".tiff")] == [0, 1, 2]
    result = verify(VerifyConfig(OUTPUT))
    assert (result["runs"], result["runs_published"], result["rows"]) == (2, 1, 20)


def test_damage_to_what_was_published_is_still_found() -> None:
    [part] = Path(OUTPUT).glob("date=*/run=*/part-*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    with pytest.raises(Exception, match="not the bytes that the manifest names"):
        verify(VerifyConfig(OUTPUT))


def test_published_night_is_evaluated_against_labels(tmp_path: Path) -> None:
    rows = [row for row in rows_of(PUBLISHED) if row["status"] == "ok" and row["frame"] is None]
    labels = tmp_path / "labels.csv"
    lines = [f"{row['uri']},{row['class_name']}" for row in rows]
    labels.write_text("\n".join(["uri,label", *lines]))
    result = evaluate(EvaluateConfig(predictions=OUTPUT, labels=str(labels)))
    assert (result["num_ok"], result["accuracy"]) == (len(rows), 1.0)


def test_unfinished_night_ends_with_the_rows_of_an_undisturbed_one() -> None:
    committed = [json.loads(path.read_text()) for path in COMMITS.glob("0*.json")]
    result = nightly(NightlyConfig(**NIGHT, date="2026-11-23"))
    assert (result["run_id"], result["rows"], result["verified"]) == (KILLED_NIGHT, 18, True)
    assert 0 < result["rows_scored_now"] == 18 - sum(one["num_rows"] for one in committed) < 18
    expected = pq.read_table(ROOT / "expected/rows.parquet").to_pylist()
    assert answers(rows_of(KILLED_NIGHT)) == nearly(expected)
    assert len({row["label"] for row in expected}) > 1, "the rows tell images apart"


def test_nothing_that_was_scored_is_scored_again_but_for_pixels_that_moved() -> None:
    nightly(NightlyConfig(**NIGHT, date="2026-11-23"))
    plan = show_plan(PlanConfig(SOURCE, MODEL, OUTPUT))
    # Of its formats TIFF alone is decoded otherwise since, and one image is a TIFF.
    assert (plan["new"], plan["changed"], plan["unchanged"]) == (0, 1, 32)
    assert (plan["to_score"], plan["failed_before"]) == (1, 2)


def test_unfinished_night_whose_images_another_night_published_is_left_alone() -> None:
    """The other's etags are without the inode, those of the plan are not."""
    assert nightly(NightlyConfig(**NIGHT, date="2026-11-24"))["rows"] == 21
    again = nightly(NightlyConfig(**NIGHT, date="2026-11-23"))
    assert (again["run_id"], again["rows"]) != (KILLED_NIGHT, 18)
    assert rows_of(KILLED_NIGHT) == []
    assert verify(VerifyConfig(OUTPUT))["problems"] == []


def test_night_is_rolled_back_and_its_images_are_new_again() -> None:
    result = rollback(RollbackConfig(OUTPUT, PUBLISHED))
    assert (result["rows"], result["parts_removed"]) == (20, 1)
    assert list(list_published(OUTPUT)) == []
    assert show_plan(PlanConfig(SOURCE, MODEL, OUTPUT))["new"] == 35


def test_gc_keeps_what_is_published_and_what_can_be_resumed() -> None:
    rows = rows_of(PUBLISHED)
    assert gc(GcConfig(OUTPUT, older_than="0s"))["removed"] == 5
    assert rows_of(PUBLISHED) == rows
    assert verify(VerifyConfig(OUTPUT))["rows"] == 20
    assert nightly(NightlyConfig(**NIGHT, date="2026-11-23"))["rows"] == 18
    assert gc(GcConfig(OUTPUT, older_than="0s"))["removed"] >= 5
    assert verify(VerifyConfig(OUTPUT))["rows"] == 38


def test_gc_removes_the_abandoned_night_on_request() -> None:
    assert gc(GcConfig(OUTPUT, older_than="0s", abandoned=True))["removed"] > 3
    assert not any(f"/{KILLED_NIGHT}/" in info.uri for info in list_objects(OUTPUT))
    assert verify(VerifyConfig(OUTPUT))["rows"] == 20


def test_bundles_are_loaded_and_answer_as_they_did(tmp_path: Path) -> None:
    assert resolve(MODEL) == resolve(MODEL.replace("production", "v1"))
    assert read_bundle(resolve(MODEL.replace("production", "v2"))).class_names.names == (
        "class0",
        "class1",
    )
    output = str(tmp_path / "out")
    (ROOT / "incoming/lot-0/000.png").unlink()  # overwritten between the two nights
    score(ScoreConfig(SOURCE, MODEL, output, executor="local", max_failed_fraction=1.0))
    earlier_rows = {
        (row["uri"], row["frame"]): row
        for row in rows_of(PUBLISHED) + pq.read_table(ROOT / "expected/rows.parquet").to_pylist()
    }
    rows = published_rows(output).to_pylist()
    assert len(rows) == 36
    before = [earlier_rows[row["uri"], row["frame"]] for row in rows]
    assert answers(rows) == nearly(before)
    assert {row["model_digest"] for row in rows} == {row["model_digest"] for row in before}


def test_unfinished_training_goes_on_from_its_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = train(TrainConfig(**KILLED))
    assert "continuing from epoch 5" in caplog.text
    assert (result["version"], result["epochs"]) == (3, 8)
    expected = json.loads((ROOT / "expected/head.json").read_text())
    tensors = read_bundle(result["uri"]).state_dict
    for name, values in expected.items():
        torch.testing.assert_close(tensors[name], torch.tensor(values), rtol=1e-3, atol=1e-4)
