"""What `bench train` measures is what `train` computes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from imgcls.bench.training import Job, bare_step, cuda_jobs
from imgcls.config.operations import BenchConfig
from imgcls.config.training import TrainConfig
from imgcls.training.ranks.rank import Place
from tests.training.rank_main import run_rank

MakeTree = Callable[..., Path]


def switches() -> tuple[bool, bool, str]:
    return (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = switches()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[:2]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_and_its_measure_set_the_same_arithmetic(
    precision: str, make_tree: MakeTree
) -> None:
    found = []
    run_for_a_step = [
        lambda: run_rank(str(make_tree(8)), "plain", Place(), epochs=1, precision=precision),
        lambda: bare_step(
            Job("simple_cnn", 16, 4, 4, precision),  # type: ignore[arg-type]  # parametrised
            torch.device("cpu"),
        )(),
    ]
    for run in run_for_a_step:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        run()
        found.append(switches())
    assert found == [(False, False, "highest")] * 2


def test_a_training_in_fp16_learns_what_one_in_fp32_does(make_tree: MakeTree) -> None:
    data = str(make_tree(8))
    exact, low = (
        run_rank(data, "plain", Place(), epochs=3, precision=precision)
        for precision in ("fp32", "fp16")
    )
    assert exact.history[-1]["train_loss"] < 0.9 * exact.history[0]["train_loss"]
    for expected, found in zip(exact.history, low.history, strict=True):
        assert found["train_loss"] != expected["train_loss"], "another arithmetic"
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
    assert low.loss_scale is not None


def test_the_bench_measures_what_train_does_by_default() -> None:
    config = TrainConfig(data="data", registry="registry", name="x")
    default, fast = cuda_jobs(BenchConfig(what="train")).values()
    for job in (default, fast):
        recipe = job.recipe()
        assert (recipe.precision, job.compile) == (job.precision, job.compile)
        assert recipe.channels_last == config.channels_last
    assert (default.precision, default.compile) == (config.precision, config.compile)
    assert (fast.precision, fast.compile) == ("bf16", True)
