"""Event files as tensorboardX's messages hold them, and a real MLflow store."""

import importlib
import importlib.util
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from imgcls.errors import ConfigError
from imgcls.storage.objects import list_objects, read
from imgcls.training.record.step_log import RunLog
from imgcls.training.record.trackers import (
    MlflowTracker,
    TensorBoardTracker,
    Tracker,
    check_tracking,
    points,
)

NUM_STEPS = 3
ROOT = Path(__file__).parents[3]


def read_events(data: bytes) -> list[Event]:
    """Read TFRecords and check both checksums of each."""
    events, at = [], 0
    while at < len(data):
        [length] = struct.unpack_from("<Q", data, at)
        message = data[at + 12 : at + 12 + length]
        sums = struct.unpack_from("<I", data, at + 8) + struct.unpack_from(
            "<I", data, at + 12 + length
        )
        assert sums == (masked_crc32c(data[at : at + 8]), masked_crc32c(message))
        event = Event()
        event.ParseFromString(message)
        events.append(event)
        at += length + 16
    return events


def read_points(folder: str) -> list[tuple[str, int, float]]:
    """Return every (tag, step, value) of a TensorBoard folder."""
    found = []
    for uri in sorted(entry.uri for entry in list_objects(folder)):
        first, *events = read_events(read(uri))
        assert first.file_version == "brain.Event:2"
        assert all(event.wall_time > 1e9 for event in [first, *events])
        found += [(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value]
    return found


def add_steps(log: RunLog, epoch: int, steps: range) -> None:
    for step in steps:
        log.add_step(
            epoch=epoch,
            step=step,
            total_steps=(epoch - 1) * NUM_STEPS + step,
            loss=1.0 / step,
            lr=0.5,
            num_images=8,
        )


def write_run_that_is_killed_twice(run_uri: str, make_tracker: Any) -> None:
    """Killed in the middle of epoch 2, resumed at its first step; killed when it had ended.

    Then its end is written again, as from a checkpoint of its last but one step.
    """
    log = RunLog(run_uri, "r", epoch=0, step=0, make_trackers=[make_tracker])
    add_steps(log, 1, range(1, NUM_STEPS + 1))
    log.add_epoch({"epoch": 1, "val_loss": 0.25, "lr": 0.5})
    add_steps(log, 2, range(1, 3))
    log.flush()
    log._thread.shutdown(wait=True)
    log._close_trackers(has_ended=False)
    for done in (1, 2):
        log = RunLog(run_uri, "r", epoch=1, step=done, make_trackers=[make_tracker])
        with log:
            add_steps(log, 2, range(done + 1, NUM_STEPS + 1))
            log.add_epoch({"epoch": 2, "val_loss": 0.125, "lr": 0.5, "per_class": [1, 2]})


EXPECTED = sorted(
    [("train/loss", 3 * e + s, 1.0 / s) for e in (0, 1) for s in (1, 2, 3)]
    + [("train/lr", 3 * e + s, 0.5) for e in (0, 1) for s in (1, 2, 3)]
    + [("epoch/val_loss", 1, 0.25), ("epoch/val_loss", 2, 0.125)]
    + [("epoch/lr", 1, 0.5), ("epoch/lr", 2, 0.5)]
)


@pytest.mark.parametrize("root", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_tensorboard_has_each_point_once_although_the_run_was_killed(
    root: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run_uri = f"{request.getfixturevalue('s3_bucket')}/run" if root == "s3" else str(tmp_path)
    write_run_that_is_killed_twice(run_uri, lambda: TensorBoardTracker(run_uri, "r"))
    found = read_points(f"{run_uri}/tensorboard/r")
    assert [(t, s, pytest.approx(v)) for t, s, v in EXPECTED] == sorted(found)


def test_tensorboard_itself_reads_the_files(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("needs tensorboard, which the test extra does not install")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    write_run_that_is_killed_twice(str(tmp_path), lambda: TensorBoardTracker(str(tmp_path), "r"))
    accumulator = reader.EventAccumulator(str(tmp_path / "tensorboard" / "r"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    found = [(tag, p.step, p.value) for tag in tags for p in accumulator.Scalars(tag)]
    assert [(t, s, pytest.approx(v)) for t, s, v in EXPECTED] == sorted(found)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_mlflow_has_each_point_once_although_the_run_was_killed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs the mlflow extra")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    mlflow = importlib.import_module("mlflow")
    uri = (tmp_path / "mlflow").as_uri() if kind == "file" else f"sqlite:///{tmp_path}/runs.db"
    check_tracking(uri)
    write_run_that_is_killed_twice(
        str(tmp_path),
        lambda: MlflowTracker(uri, "chest", "chest 1", "r", {"epochs": 2, "lr": 0.5}),
    )
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("chest")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "2", "lr": "0.5"}
    tags = {tag for tag, _, _ in EXPECTED}
    found = [
        (tag, m.step, m.value)
        for tag in tags
        for m in client.get_metric_history(run.info.run_id, tag)
    ]
    assert sorted(found) == EXPECTED


@pytest.mark.parametrize("uri", ["sqlite:////proc/no/such/runs.db", "file:///proc/no/such/mlruns"])
def test_a_store_that_cannot_be_opened_stops_the_training_before_it_begins(uri: str) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs the mlflow extra")
    with pytest.raises(ConfigError, match=f"--mlflow-uri {uri} cannot be logged to: "):
        check_tracking(uri)


def test_a_server_out_of_reach_is_named_before_the_first_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs the mlflow extra")
    check_tracking("http://127.0.0.1:9")
    assert "--mlflow-uri http://127.0.0.1:9 does not answer" in caplog.text


def test_a_tracker_that_fails_is_a_warning_and_the_log_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable() -> Tracker:
        raise ConnectionError("no route to the tracking server")

    with RunLog(str(tmp_path), "r", epoch=0, step=0, make_trackers=[unreachable]) as log:
        add_steps(log, 1, range(1, 3))
        log.add_epoch({"epoch": 1})
    lines = (tmp_path / "log" / "r" / "epoch-00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["step", "step", "epoch"]
    assert "no route to the tracking server" in caplog.text


HANGING = """
import sys, urllib.request
from imgcls.training.record.step_log import RunLog
from imgcls.training.record.trackers import MlflowTracker

kind, folder, uri = sys.argv[1:]

class Plain:
    def __init__(self):
        urllib.request.urlopen(uri)

make = Plain if kind == "plain" else lambda: MlflowTracker(uri, "chest", "chest 1", "r", {})
with RunLog(
    folder, "r", epoch=0, step=0, make_trackers=[make, make], close_trackers_within_s=0.5
) as log:
    log.add_step(epoch=1, step=1, total_steps=1, loss=0.5, lr=0.5, num_images=8)
    log.add_epoch({"epoch": 1, "val_loss": 0.25})
    sys.stdin.readline()
print("ended")
"""


@pytest.mark.parametrize("kind", ["plain", "mlflow"])
def test_a_server_that_never_answers_holds_up_no_run(kind: str, tmp_path: Path) -> None:
    """A socket takes the connection and says nothing; a process has to come to its end."""
    if kind == "mlflow" and importlib.util.find_spec("mlflow") is None:
        pytest.skip("needs the mlflow extra")
    command = [sys.executable, "-c", HANGING, kind, str(tmp_path)]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(
            [*command, f"http://127.0.0.1:{server.getsockname()[1]}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        server.settimeout(60)
        try:
            with server.accept()[0], server.accept()[0]:  # both trackers wait for an answer now
                output, errors = process.communicate("continue\n", timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (0, "ended\n"), errors
    assert errors.count("does not answer: given up 0.5 s after the end") == 2
    lines = (tmp_path / "log" / "r" / "epoch-00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["step", "epoch"]


def test_a_tracker_that_fails_once_is_told_the_next_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []

    class FailsFirst:
        def add_epoch(self, lines: list[dict[str, Any]]) -> None:
            told.append(lines[-1]["epoch"])
            if len(told) == 1:
                raise ConnectionError("once")

        def finish(self) -> None:
            told.append(-1)

    with RunLog(str(tmp_path), "r", epoch=0, step=0, make_trackers=[FailsFirst]) as log:
        log.add_epoch({"epoch": 1})
        log.add_epoch({"epoch": 2})
    assert told == [1, 2, -1]
    assert "incomplete: once" in caplog.text


def test_only_numbers_become_points() -> None:
    lines = [{"kind": "epoch", "epoch": 4, "val_loss": 0.5, "num_val": 3, "note": "x"}]
    assert [(tag, value, step) for tag, value, step, _ in points(lines)] == [
        ("epoch/val_loss", 0.5, 4),
        ("epoch/num_val", 3.0, 4),
    ]


def test_a_password_in_the_uri_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "installed")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        check_tracking("https://me:secret@mlflow.example")
    assert "secret" not in str(raised.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'imgcls\[mlflow\]'"):
        check_tracking("https://mlflow.example")
