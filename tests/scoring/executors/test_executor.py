"""Which executor works, on machines with no GPU, one, or several; and actors with a broken one."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from imgcls.config.choices import Executor
from imgcls.errors import ConfigError, DeviceFailedError, RunStoppedError
from imgcls.scoring.executors import executor as executors
from imgcls.scoring.executors.executor import EXECUTORS, name_executor, warn_of_idle_gpus
from imgcls.scoring.executors.ray_data import refuse_without_cuda
from tests.kit.ray_nodes import RayCluster
from tests.scoring.tiny import write_images


@pytest.mark.parametrize(
    ("executor", "device", "num_gpus", "expected"),
    [
        ("auto", "auto", 0, "local"),
        ("auto", "auto", 1, "local"),
        ("auto", "auto", 8, "ray"),
        ("auto", "cuda", 2, "ray"),
        ("auto", "cpu", 8, "local"),
        ("local", "auto", 8, "local"),
        ("ray", "cpu", 0, "ray"),
    ],
)
def test_auto_takes_ray_where_one_process_would_leave_gpus_idle(
    executor: str, device: str, num_gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    monkeypatch.setattr(executors, "_GPU_DRIVERS", ("/dev/null",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert name_executor(executor, device) == expected


def test_every_name_of_the_flag_has_its_executor_and_no_other_is_taken_for_one() -> None:
    assert {"auto", *EXECUTORS} == set(get_args(Executor))
    with pytest.raises(ConfigError, match="--executor slurm: is not one of auto, local, ray"):
        name_executor("slurm", "cpu")


def test_one_process_asked_for_says_how_many_gpus_it_leaves_idle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executors, "_GPU_DRIVERS", ("/dev/null",))
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


@pytest.mark.slow
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
