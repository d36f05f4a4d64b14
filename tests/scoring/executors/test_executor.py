"""Which executor works, on machines with no GPU, one, or several; and actors with a broken one."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imgcls.errors import DeviceFailedError, RunStoppedError
from imgcls.scoring.executors import where
from imgcls.scoring.executors.executor import warn_of_idle_gpus
from imgcls.scoring.executors.ray_data import refuse_without_cuda
from imgcls.scoring.executors.where import use_ray
from tests.ray_nodes import RayCluster
from tests.scoring.tiny import write_images


@pytest.mark.parametrize(
    ("executor", "device", "num_gpus", "expected"),
    [
        ("auto", "auto", 0, False),
        ("auto", "auto", 1, False),
        ("auto", "auto", 8, True),
        ("auto", "cuda", 2, True),
        ("auto", "cpu", 8, False),
        ("local", "auto", 8, False),
        ("ray", "cpu", 0, True),
    ],
)
def test_auto_takes_ray_where_one_process_would_leave_gpus_idle(
    executor: str, device: str, num_gpus: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    monkeypatch.setattr(where, "_GPU_DRIVERS", ("/dev/null",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert use_ray(executor, device) == expected


def test_one_process_asked_for_says_how_many_gpus_it_leaves_idle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(where, "_GPU_DRIVERS", ("/dev/null",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with caplog.at_level(logging.WARNING, "imgcls"):
        warn_of_idle_gpus("cpu")
        assert not caplog.text
        warn_of_idle_gpus("auto")
    assert "one of the 8 GPUs of this machine; --executor ray takes all" in caplog.text


def test_an_actor_that_was_given_a_gpu_names_the_node_where_torch_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refuse_without_cuda("10.0.0.7-abc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceFailedError, match=r"node 10\.0\.0\.7-abc .*Found no NVIDIA driver"):
        refuse_without_cuda("10.0.0.7-abc")


@pytest.mark.ray
@pytest.mark.timeout(280)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU would work")
def test_a_gpu_node_without_a_driver_scores_nothing_on_its_cpu(
    model_ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is told of a GPU; torch knows better."""
    write_images(str(tmp_path / "bucket"), 5)
    cluster = RayCluster(0)
    try:
        cluster.add_node(num_cpus=2, num_gpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        flags = ["--source", str(tmp_path / "bucket"), "--model", model_ref]
        command = [sys.executable, "-m", "jobs.score", *flags, "--output", str(tmp_path / "out")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    finally:
        cluster.close()
    assert ended.returncode == RunStoppedError.exit_code, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])["message"]
    assert "holds a GPU for this actor that torch cannot use" in told
    assert not list((tmp_path / "out").rglob("commits/*"))
