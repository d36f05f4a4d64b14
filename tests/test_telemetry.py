"""No library reports its use: neither a host is asked for, nor a package for it imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# No host is found here; those that were asked for are printed at the end.
LISTEN = """
import socket, sys, threading
hosts = set()
def ask(host, *_, **__):
    hosts.add(host)
    raise socket.gaierror("no network")
socket.getaddrinfo = ask
"""
TELL = """
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5.0)
print(sorted(hosts))
"""
TRACK = """
from imgcls.training.record.trackers import MlflowTracker
tracker = MlflowTracker("sqlite:///runs.db", "scans", "chest", "id", {"epochs": 1})
tracker.add_epoch([{"kind": "epoch", "epoch": 1, "train_loss": 0.5}])
tracker.finish()
"""
CONVERT = """
import torch
from imgcls.model.networks.onnx_network import _openvino
_openvino().convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
assert sys.modules["openvino_telemetry"] is None
"""


def last_line_of(script: str, home: Path, **environment: str) -> str:
    # What says that this is a test or CI would stop the reports, too.
    clean = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.skipif(not find_spec("mlflow"), reason="the extra mlflow is not installed")
def test_a_training_that_mlflow_tracks_asks_for_no_host(tmp_path: Path) -> None:
    script = LISTEN + TRACK + TELL
    homes = tmp_path / "told", tmp_path / "reporting"
    for home in homes:
        home.mkdir()
    assert last_line_of(script, homes[0]) == "[]"
    # Whoever wants to report still can; and this test would see it.
    wanted = {"MLFLOW_DISABLE_TELEMETRY": "false", "DO_NOT_TRACK": "false"}
    assert "telemetry" in last_line_of(script, homes[1], **wanted)


@pytest.mark.skipif(not find_spec("openvino"), reason="the extra onnx is not installed")
def test_openvino_finds_nothing_to_report_with(tmp_path: Path) -> None:
    assert last_line_of(LISTEN + CONVERT + TELL, tmp_path) == "[]"
    assert not (tmp_path / "intel").exists()


def test_ray_and_others_are_told(tmp_path: Path) -> None:
    names = ["RAY_USAGE_STATS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "NNCF_CI", "DO_NOT_TRACK"]
    script = f"import imgcls, os; print([os.environ[name] for name in {names}])"
    assert last_line_of(script, tmp_path) == "['0', '1', '1', 'true']"
