"""SIGKILL of the driver, of a worker, of a whole local Ray: the same command ends the same way."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imgcls.config.training import TrainConfig
from imgcls.model.bundle import read_bundle
from imgcls.training.driver import train

ROOT = Path(__file__).parents[2]
CHECKPOINTS = "_training/bars/run-*/checkpoints/*/SHA256SUMS"
# Of 2 workers: gradients are equal to the bit, but the running statistics of batch normalisation
# are averaged over the ranks at the end of an epoch only, and a checkpoint holds those of rank 0.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-3}

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def make_config(folder: Path, registry: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "data": str(folder),
        "registry": str(folder.parent / registry),
        "name": "bars",
        "arch": "simple_cnn",
        "image_px": 12,
        "batch_size": 8,
        "epochs": 40,
        "lr": 5e-3,
        "val_fraction": 0.2,
        "test_fraction": 0.2,
        "checkpoint_every": "3",
    }
    return TrainConfig(**values | changes)


def start(config: TrainConfig, log: Path) -> subprocess.Popen[bytes]:
    """Start the training in a process group of its own, with a Ray of its own."""
    program = (
        "import sys, json; from imgcls.config.training import TrainConfig;"
        "from imgcls.training.driver import train;"
        "print(json.dumps(train(TrainConfig(**json.loads(sys.argv[1])))))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(dataclasses.asdict(config))],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def is_train_worker(pid: int) -> bool:
    return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def kill(target: str, driver: subprocess.Popen[bytes]) -> None:
    pids = descendants(driver.pid)
    if target == "worker":
        pids = [pid for pid in pids if is_train_worker(pid)][-1:]
    assert pids, "no process to kill"
    if target == "driver":
        # What it leaves behind goes with it, as on a machine that is lost.
        driver.send_signal(signal.SIGKILL)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for_checkpoints(config: TrainConfig, driver: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        found = Path(config.registry).glob(CHECKPOINTS)
        if any(int(sums.parent.name.split("-")[0]) >= 20 for sums in found):
            return
        assert driver.poll() is None, log.read_text()
        time.sleep(0.05)


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(f"{config.registry}/bars/v1/model.safetensors")


@pytest.mark.parametrize("target", ["driver", "ray"])
def test_one_worker_ends_bit_identical(
    target: str, make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """`ray`: every process of the local Ray is killed, and the driver is left to find out."""
    data = make_tree(40)
    undisturbed = make_config(data, "undisturbed", num_workers="0")
    train(undisturbed)
    killed = make_config(data, "killed", num_workers="1")
    log = tmp_path / "log"
    driver = start(killed, log)
    wait_for_checkpoints(killed, driver, log)
    kill(target, driver)
    assert driver.wait(timeout=300) != 0, log.read_text()
    again = start(killed, log)
    assert again.wait(timeout=500) == 0, log.read_text()
    expected = weights_of(undisturbed)
    assert all(torch.equal(t, expected[n]) for n, t in weights_of(killed).items())
    assert not Path(f"{killed.registry}/bars/v2").exists()
    assert not list(Path(killed.registry).glob(CHECKPOINTS))


def test_two_workers_of_which_one_is_killed_end_within_the_tolerance(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_tree(40)
    configs = [make_config(data, name, num_workers="2") for name in ("undisturbed", "killed")]
    for config in configs:
        log = tmp_path / Path(config.registry).name
        driver = start(config, log.with_suffix(".log"))
        if log.name == "killed":
            wait_for_checkpoints(config, driver, log.with_suffix(".log"))
            kill("worker", driver)
        assert driver.wait(timeout=500) == 0, log.with_suffix(".log").read_text()
    expected, found = (weights_of(config) for config in configs)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], **TOLERANCE)
    histories = [read_bundle(f"{c.registry}/bars/v1").training["history"] for c in configs]
    assert [n["epoch"] for n in histories[0]] == [n["epoch"] for n in histories[1]]


def test_sigterm_to_the_driver_makes_the_workers_write_a_checkpoint(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    config = make_config(
        make_tree(40), "stopped", num_workers="1", epochs=5000, checkpoint_every="1000000"
    )
    log = tmp_path / "log"
    driver = start(config, log)
    while not list(Path(config.registry).glob("_training/bars/run-*/log/*/epoch-00002.jsonl")):
        assert driver.poll() is None, log.read_text()
        time.sleep(0.05)
    driver.terminate()
    assert driver.wait(timeout=100) != 0
    assert "RunStoppedError: stopped when asked to, in epoch" in log.read_text()
    assert len(list(Path(config.registry).glob(CHECKPOINTS))) == 1
