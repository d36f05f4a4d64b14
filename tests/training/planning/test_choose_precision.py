"""`train --precision auto`: measured once per run, the same on every start, never by seeds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imgcls.config.training import TrainConfig
from imgcls.errors import RunStoppedError
from imgcls.model.bundle import read_bundle
from imgcls.training import driver
from imgcls.training.driver import train
from imgcls.training.planning import choose_precision as module
from imgcls.training.planning.choose_precision import choose_precision
from imgcls.training.planning.make_plan import make_plan
from tests.training.bars import bars_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config(make_tree: Callable[..., Path]) -> TrainConfig:
    return bars_config(make_tree(20), epochs=2, precision="auto", device="cpu", num_decoders=1)


def steps_of(seconds: dict[str, float], losses: dict[str, list[float]]) -> Any:
    """What `_first_steps` would measure."""

    def first_steps(_plan: object, _device: object, precision: str) -> tuple[list[float], float]:
        return losses[precision], seconds[precision]

    return first_steps


@pytest.mark.parametrize(
    ("has_bf16", "seconds_bf16", "loss_bf16", "expected", "reason"),
    [
        (False, 0.5, 0.7, "fp32", "this cpu has no bf16 arithmetic"),
        (True, 0.5, 0.7, "bf16", "2.0 times as fast here, and the first losses agree within 0.00%"),
        (True, 0.95, 0.7, "fp32", "bf16 is only 1.05 times as fast here"),
        (True, 0.5, 0.8, "fp32", "the first losses in bf16 are others by 14.3%"),
        (True, 0.5, float("nan"), "fp32", "the first losses in bf16 are others by nan%"),
    ],
)
def test_bf16_is_taken_where_it_is_faster_and_agrees(
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    has_bf16: bool,
    seconds_bf16: float,
    loss_bf16: float,
    expected: str,
    reason: str,
) -> None:
    measured = steps_of(
        {"fp32": 1.0, "bf16": seconds_bf16}, {"fp32": [0.7] * 3, "bf16": [0.7, 0.7, loss_bf16]}
    )
    monkeypatch.setattr(module, "has_fast_bf16", lambda: has_bf16)
    monkeypatch.setattr(module, "_first_steps", measured)
    chosen = choose_precision(make_plan(config), CPU)
    assert (chosen.precision, chosen.because) == (expected, reason)


def test_a_gpu_without_bf16_is_measured_in_fp16(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = steps_of({"fp32": 1.0, "fp16": 0.5}, {"fp32": [0.7] * 3, "fp16": [0.7] * 3})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(module, "_first_steps", measured)
    assert choose_precision(make_plan(config), torch.device("cuda")).precision == "fp16"


def test_a_real_measurement_of_both_agrees_and_leaves_no_seed_behind(config: TrainConfig) -> None:
    plan = make_plan(config)
    before = torch.random.get_rng_state()
    exact, seconds = module._first_steps(plan, CPU, "fp32")
    low, _ = module._first_steps(plan, CPU, "bf16")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert seconds > 0
    assert low != exact, "another arithmetic"
    assert low == pytest.approx(exact, rel=0.05)


def test_auto_trains_the_very_weights_of_what_it_chose(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_fast_bf16", lambda: False)
    chosen = read_bundle(train(config)["uri"])
    asked = read_bundle(train(replace(config, precision="fp32", name="asked"))["uri"])
    for name, tensor in asked.state_dict.items():
        assert torch.equal(chosen.state_dict[name], tensor), name
    assert chosen.training["precision"]["precision"] == "fp32"
    assert "precision" not in asked.training


def test_a_run_that_continues_elsewhere_keeps_what_its_first_start_chose(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where bf16 is fast, continued on a machine without it."""
    measured = steps_of({"fp32": 1.0, "bf16": 0.5}, {"fp32": [0.7] * 3, "bf16": [0.7] * 3})

    def stop(*_args: object, **_more: object) -> None:
        raise RunStoppedError("taken away")

    with monkeypatch.context() as patched:
        patched.setattr(module, "has_fast_bf16", lambda: True)
        patched.setattr(module, "_first_steps", measured)
        patched.setattr(driver, "fit", stop)
        with pytest.raises(RunStoppedError):
            train(config)
    monkeypatch.setattr(module, "has_fast_bf16", lambda: False)
    bundle = read_bundle(train(config)["uri"])
    assert bundle.training["precision"]["precision"] == "bf16"
    [noted] = Path(config.registry).glob("_training/bars/run-*/precision.json")
    assert json.loads(noted.read_text())["precision"] == "bf16"
