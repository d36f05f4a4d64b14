import importlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from imgcls import ray_cluster as cluster
from imgcls.config.choices import WorkerRange
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.model.bundle import read_bundle
from imgcls.progress import Progress
from imgcls.training.driver import train
from imgcls.training.ranks import ray_train
from imgcls.training.ranks.placement import cpus_per_worker, place_workers, use_gpus
from imgcls.training.ranks.rank import Place
from imgcls.training.ranks.stop_request import StopRequest
from tests.kit.ray_nodes import RayCluster, nodes_of
from tests.training.bars import bars_config

ROOT = Path(__file__).parents[3]
MakeTree = Callable[..., Path]
make_config = partial(bars_config, epochs=3, num_workers="2", val_fraction=0.2, test_fraction=0.2)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for the tests of this file; `cluster.connected` uses it and leaves it running."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.mark.ray
def test_an_error_in_a_worker_comes_back_as_itself_and_is_not_retried(
    ray_cluster: None, make_tree: MakeTree
) -> None:
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf).*--lr") as raised:
        train(make_config(make_tree(20), optimizer="sgd", lr=1e30, warmup_fraction=0.0))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None


def kill_a_worker(config: TrainConfig) -> None:
    """Wait for the first checkpoint, then kill one of this process's Ray Train workers."""
    psutil = importlib.import_module("psutil")  # Ray brings it along
    pattern = "_training/bars/run-*/checkpoints/*/SHA256SUMS"
    while not list(Path(config.registry).glob(pattern)):
        time.sleep(0.05)
    children = psutil.Process().children(recursive=True)
    [*_, worker] = [p for p in children if "RayTrainWorker" in " ".join(p.cmdline())]
    worker.send_signal(signal.SIGKILL)


@pytest.mark.ray
def test_two_workers_of_which_one_is_killed_train_what_one_process_trains(
    ray_cluster: None, make_tree: MakeTree
) -> None:
    """Equal global batch and seed; the tolerance is that of batch norm over half batches."""
    data = make_tree(40)
    config = make_config(data, epochs=20, checkpoint_every="5")
    killer = threading.Thread(target=kill_a_worker, args=[config])
    killer.start()
    together = train(config)
    killer.join()
    alone = train(make_config(data, epochs=20, num_workers="0", batch_size=16))
    assert together["accuracy"] > 0.9
    assert together["val_loss"] == pytest.approx(alone["val_loss"], abs=0.1)
    assert together["run"] == alone["run"]
    histories = [read_bundle(r["uri"]).training["history"] for r in (together, alone)]
    assert [numbers["epoch"] for numbers in histories[0]] == list(range(1, 21))
    num_val = {numbers["num_val"] for history in histories for numbers in history}
    assert num_val == {together["num_val"]}


@pytest.mark.parametrize(
    ("resources", "num_workers", "num_cpus"),
    [
        ([(2, 0)], 2, 1),
        ([(2, 0)], 1, 1),
        ([(16, 1)], 1, 15),
        ([(8, 1)] * 4, 4, 7),
        ([(2, 0)] * 2, 3, 1),
        # A head without CPUs is no node that a worker could run on.
        ([(0, 0), (8, 0), (8, 0)], 2, 7),
    ],
)
def test_workers_share_the_cpus_and_leave_one(
    resources: list[tuple[int, int]], num_workers: int, num_cpus: int
) -> None:
    assert cpus_per_worker(nodes_of(*resources), num_workers) == num_cpus


def test_more_workers_than_cpus_or_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match="--num-workers 4: this machine has 2 CPUs"):
        cpus_per_worker(nodes_of((2, 0)), 4)
    with pytest.raises(ConfigError, match="sees 1 GPUs"):
        use_gpus(nodes_of((8, 1)), WorkerRange.parse("2"), "cuda")


def test_auto_takes_gpus_only_where_each_worker_gets_one() -> None:
    assert use_gpus(nodes_of((8, 2)), WorkerRange.parse("2"), "auto")
    assert not use_gpus(nodes_of((8, 1)), WorkerRange.parse("2"), "auto")
    assert not use_gpus(nodes_of((8, 2)), WorkerRange.parse("2"), "cpu")


def say_where_it_is(
    seconds: float, place: Place, show: Callable[[int, str], None], stop: StopRequest
) -> dict[str, Any]:
    """What the workers do in the tests below."""
    del show, stop
    time.sleep(seconds)
    return {"rank": place.rank, "world_size": place.world_size}


@ray.remote(num_cpus=1)
class Busy:
    def is_there(self) -> bool:
        return True


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_waits_for_room_says_so_although_ray_says_nothing(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another job has one of the two CPUs; Ray gives its group up every 4 s, and asks again."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "4")
    monkeypatch.setattr(ray_train, "SAY_EVERY_S", 3.0)
    busy = Busy.remote()
    ray.get(busy.is_there.remote())
    seen: list[int] = []

    def go_when_said() -> None:
        while "waiting for 2 workers of 1 CPUs each, for 6 s" not in caplog.text:
            time.sleep(0.1)
            if len(seen) > 1000:
                break
            seen.append(1)
        ray.kill(busy)

    thread = threading.Thread(target=go_when_said)
    with caplog.at_level(logging.INFO, "imgcls"):
        thread.start()
        result = ray_train.run_on_workers(
            say_where_it_is,
            0.0,
            name="waits",
            workers=WorkerRange.parse("2"),
            device="cpu",
            max_failures=0,
            progress=Progress("nothing", 1, "images"),
        )
    thread.join()
    assert result == {"rank": 0, "world_size": 2, "num_preemptions": 0}
    assert "the cluster has 1 node of 2 CPUs, 0 GPUs; free at the moment: 1 CPUs" in caplog.text


@pytest.mark.ray
def test_ray_finds_room_for_the_workers_as_they_are_placed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head of 16 CPUs and a node of 16 with 4 GPUs: the average share fits only twice."""
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "")
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 16, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=16, num_gpus=4)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    try:
        with cluster.connected() as resources:
            placement = place_workers(resources, WorkerRange.parse("4"), "auto")
            assert placement.resources == {"CPU": 4.0, "GPU": 1.0}
            assert ray.util.placement_group([placement.resources] * 4).wait(20)
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_two_and_three_workers_on_three_nodes_train_what_one_process_trains(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The nodes are a cluster that is there already, with a head that takes no work."""
    ray.shutdown()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nodes = RayCluster(3)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    try:
        data = make_tree(40)
        results = {}
        for num_workers, batch_size in ((0, 12), (2, 6), (3, 4)):
            results[num_workers] = train(
                make_config(
                    data,
                    epochs=12,
                    num_workers=str(num_workers),
                    batch_size=batch_size,
                    registry=str(tmp_path / f"registry-{num_workers}"),
                )
            )
    finally:
        ray.shutdown()
        nodes.close()
    # The tolerance is that of batch norm over a half or a third of a batch.
    for num_workers in (2, 3):
        assert results[num_workers]["val_loss"] == pytest.approx(results[0]["val_loss"], abs=0.15)
        assert results[num_workers]["num_val"] == results[0]["num_val"]
