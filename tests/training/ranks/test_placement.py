"""Where workers fit, on nodes that are made up: what Ray would wait for without end is refused."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls import ray_cluster
from imgcls.config.choices import WorkerRange
from imgcls.errors import ConfigError
from imgcls.ray_cluster import ClusterResources, NodeType
from imgcls.training.ranks.placement import place_workers, warn_of_idle_gpus
from tests.kit.ray_nodes import nodes_of

ROOT = Path(__file__).parents[3]
SHIPPED = ClusterResources(  # cluster.yaml with only the head up
    nodes_of((0, 0)).nodes,
    (
        NodeType("gpu_spot", 8, 1, 8),
        NodeType("gpu_on_demand", 8, 1, 2),
        NodeType("cpu", 16, 0, 4),
    ),
    max_started=12,
)


@pytest.fixture(autouse=True)
def on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def fit(resources: ClusterResources, num_cpus: int, use_gpu: bool) -> int:
    """Count by hand how many workers the nodes take, one after the other."""
    count = 0
    for node in resources.nodes:
        cpus, gpus = node.num_cpus, node.num_gpus
        while cpus >= num_cpus and (gpus >= 1 or not use_gpu):
            cpus, gpus, count = cpus - num_cpus, gpus - 1, count + 1
    return count


@pytest.mark.parametrize(
    ("sizes", "num_workers", "use_gpu", "num_cpus"),
    [
        # A head of CPUs alone lends none of them to workers on another node.
        ([(16, 0), (16, 4)], 4, True, 4),
        ([(16, 0), (16, 0)], 3, False, 8),
        ([(16, 0), (16, 0)], 5, False, 5),
        ([(64, 0), (4, 1), (4, 1)], 2, True, 4),
        ([(64, 0), (2, 8)], 2, True, 1),
        ([(96, 8)], 8, True, 11),
        ([(32, 4), (8, 4)], 6, True, 4),
        ([(3, 1), (5, 1), (7, 1)], 3, True, 3),
    ],
)
def test_each_worker_gets_the_most_with_which_all_of_them_fit(
    sizes: list[tuple[int, int]], num_workers: int, use_gpu: bool, num_cpus: int
) -> None:
    resources = nodes_of(*sizes)
    placement = place_workers(resources, WorkerRange(num_workers, num_workers), "auto")
    assert (placement.use_gpu, placement.num_cpus) == (use_gpu, num_cpus)
    assert fit(resources, num_cpus, use_gpu) >= num_workers
    if num_workers * (num_cpus + 1) < resources.num_cpus:
        assert fit(resources, num_cpus + 1, use_gpu) < num_workers


def test_whatever_the_nodes_the_workers_fit_or_are_refused() -> None:
    sizes = [(0, 0), (1, 0), (2, 1), (3, 4), (16, 0), (16, 4), (7, 2)]
    num_refused = 0
    for first in sizes:
        for second in sizes:
            for num_workers in range(1, 9):
                resources = nodes_of(first, second)
                for device in ("cpu", "cuda", "auto"):
                    workers = WorkerRange(num_workers, num_workers)
                    try:
                        placement = place_workers(resources, workers, device)  # type: ignore[arg-type]
                    except ConfigError:
                        num_refused += 1
                        assert fit(resources, 1, device == "cuda") < num_workers
                        continue
                    assert fit(resources, placement.num_cpus, placement.use_gpu) >= num_workers
    assert num_refused > 100


def test_workers_that_do_not_fit_are_refused_with_what_the_cluster_has() -> None:
    resources = nodes_of((16, 0), (1, 2))
    with pytest.raises(ConfigError, match=r"--num-workers 18.*room for 17.*1 node of 16 CPUs"):
        place_workers(resources, WorkerRange(18, 18), "auto")
    with pytest.raises(ConfigError, match=r"with 2 workers: Ray sees 2 GPUs.*for 1 workers.*1 CPU"):
        place_workers(resources, WorkerRange(2, 2), "cuda")
    assert not place_workers(resources, WorkerRange(2, 2), "cpu").use_gpu


def test_an_elastic_run_starts_with_what_fits(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "imgcls"):
        placement = place_workers(nodes_of((16, 0), (16, 2)), WorkerRange(1, 4), "auto")
    assert "there is room for 2 of at most 4 workers" in caplog.text
    assert (placement.use_gpu, placement.num_cpus) == (True, 8)
    assert placement.describe() == "1 to 4 workers of 8 CPUs, 1 GPU each"


def test_what_the_shipped_cluster_file_may_start_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(ROOT / "cluster.yaml", tmp_path / ray_cluster.BOOTSTRAP_CONFIG)
    assert ray_cluster.node_types() == SHIPPED.node_types


def test_with_only_the_head_up_the_gpus_that_may_be_started_count() -> None:
    placement = place_workers(SHIPPED, WorkerRange(4, 4), "auto")
    assert (placement.use_gpu, placement.num_cpus) == (True, 8)
    assert place_workers(SHIPPED, WorkerRange(10, 10), "cuda").use_gpu
    with pytest.raises(ConfigError, match=r"Ray sees 10 GPUs.*at most 8 of type gpu_spot"):
        place_workers(SHIPPED, WorkerRange(11, 11), "cuda")
    # A node that is up already is not started once more.
    up = replace(SHIPPED, nodes=nodes_of((0, 0), (8, 1), (8, 1)).nodes)
    with pytest.raises(ConfigError, match="for 10 workers"):
        place_workers(up, WorkerRange(11, 11), "cuda")


def test_the_limit_of_all_types_together_counts() -> None:
    few = replace(SHIPPED, max_started=3)
    assert place_workers(few, WorkerRange(3, 3), "auto").use_gpu
    with pytest.raises(ConfigError, match="for 3 workers"):
        place_workers(few, WorkerRange(4, 4), "cuda")
    # On CPUs the largest ones are started.
    assert place_workers(few, WorkerRange(3, 3), "cpu").num_cpus == 16


def test_auto_says_when_it_passes_over_gpus(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "imgcls"):
        assert not place_workers(nodes_of((8, 1)), WorkerRange(2, 2), "auto").use_gpu
    assert "--device auto trains on CPUs: 2 workers" in caplog.text
    assert "--num-workers 1 would use the GPUs" in caplog.text
    caplog.clear()
    place_workers(nodes_of((8, 1)), WorkerRange(2, 2), "cpu")
    place_workers(nodes_of((8, 0)), WorkerRange(2, 2), "auto")
    assert not caplog.text
    warn_of_idle_gpus(1)
    assert not caplog.text
    warn_of_idle_gpus(8)
    assert "this machine has 8 GPUs" in caplog.text


def test_where_nobody_tells_how_far_a_cluster_grows_workers_wait_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On KubeRay the autoscaler keeps its limits to itself."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with caplog.at_level(logging.WARNING, "imgcls"):
        placement = place_workers(nodes_of((0, 0)), WorkerRange(4, 4), "cuda")
    assert (placement.use_gpu, placement.num_cpus) == (True, 1)
    assert "waiting for it to grow" in caplog.text
    caplog.clear()
    assert not place_workers(nodes_of((0, 0)), WorkerRange(1, 1), "auto").use_gpu
    assert "no node has a GPU at the moment" in caplog.text
