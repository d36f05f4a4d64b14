"""What a worker holds, and that it lets go of it."""

import threading
from pathlib import Path

import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.runs.run import Run
from imgcls.scoring.driver import make_plan
from imgcls.scoring.shard.worker import ShardWorker, WorkerOptions
from imgcls.storage.objects import put_new
from tests.scoring.tiny import write_images


def predict_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("predict")}


@pytest.mark.parametrize(
    ("settled", "runs"),
    [
        (b'{"precision": "bf16"}', "eager bf16 on cpu"),  # as runs of before noted it
        (b'{"precision": "bf16", "kind": "folded"}', "folded bf16 on cpu"),
    ],
)
def test_worker_that_is_left_lets_the_threads_of_its_predictors_go(
    settled: bytes, runs: str, model_ref: str, tmp_path: Path
) -> None:
    """Another worker came first, with a backend that this one would not have chosen."""
    others = predict_threads()
    write_images(str(tmp_path / "bucket"), 3)
    config = ScoreConfig(str(tmp_path / "bucket"), model_ref, str(tmp_path / "out"))
    plan = make_plan(config, Run(config.output, "night"), 1)
    put_new(plan.run.precision, settled)
    with ShardWorker(plan, WorkerOptions(num_cpus=1, device="cpu")) as worker:
        [shard] = plan.shards()
        assert worker.score(shard).backend == runs
        started = predict_threads() - others
    for thread in started:
        thread.join(10)
    assert predict_threads() <= others
