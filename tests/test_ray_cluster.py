from pathlib import Path

import pytest
import ray

from imgcls import ray_cluster
from tests.kit.ray_nodes import nodes_of

BOOTSTRAP = """
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, max_workers: 0}
  gpu: {resources: {CPU: 8, GPU: 1}, min_workers: 0, max_workers: 10}
  off: {resources: {CPU: 8}, max_workers: 0}
"""


def test_nodes_are_described_equal_ones_together() -> None:
    assert nodes_of((0, 0), (8, 1), (8, 1)).describe() == (
        "2 nodes of 8 CPUs, 1 GPUs; 1 node of 0 CPUs, 0 GPUs"
    )


def test_a_head_without_cpus_is_no_node_that_works() -> None:
    resources = nodes_of((0, 0), (8, 1), (4, 0))
    assert (resources.num_nodes, resources.num_cpus, resources.num_gpus) == (2, 12, 1)


@pytest.mark.ray
def test_our_own_ray_tells_its_node_and_ends_with_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_cluster.connected() as resources:
        [node] = resources.nodes
        assert node.num_cpus == resources.num_cpus > 0
        assert resources.node_types == ()
        assert resources == ray_cluster.current_resources()
    assert not ray.is_initialized()


def test_what_ray_up_may_start_is_read_from_the_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").write_text(BOOTSTRAP)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_ID", raising=False)
    assert ray_cluster.node_types() == ()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    # The cluster as a whole may have fewer workers than this type.
    assert ray_cluster.node_types() == (ray_cluster.NodeType("gpu", 8, 1, 3),)
