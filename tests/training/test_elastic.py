"""Nodes that vanish and nodes that are drained, in a real cluster of two."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from imgcls.model.bundle import read_bundle
from imgcls.training.driver import train
from tests.training.bars import bars_config

ROOT = Path(__file__).parents[2]
CHECKPOINTS = "_training/bars/run-*/checkpoints/*/SHA256SUMS"
MakeTree = Callable[..., Path]
make_config = partial(bars_config, epochs=60, num_workers="1:2", checkpoint_every="5")


@pytest.fixture
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """A cluster of two nodes with one CPU each, and the node that may be lost."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    other = cluster.add_node(num_cpus=1)
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield cluster, other
    ray.shutdown()
    cluster.shutdown()


def logged_steps(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of all steps in the run's log, in order."""
    log = Path(result["run"]) / "log" / read_bundle(result["uri"]).training["run_id"]
    lines = [
        json.loads(line)
        for path in sorted(log.glob("epoch-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [line for line in lines if line["kind"] == "step"]


def check_each_epoch_saw_each_image_once(result: dict[str, Any], num_epochs: int) -> None:
    """Each (epoch, step) counts once, and the images of an epoch's steps are the split's.

    Which images they are is the sampler's: tests/training/test_sampler.py.
    """
    steps = logged_steps(result)
    num_steps = max(line["step"] for line in steps)
    expected = [(e, s) for e in range(1, num_epochs + 1) for s in range(1, num_steps + 1)]
    assert [(line["epoch"], line["step"]) for line in steps] == expected
    for epoch in range(1, num_epochs + 1):
        seen = [line["num_images"] for line in steps if line["epoch"] == epoch]
        assert sum(seen) == result["num_train"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_loses_a_node_goes_on_with_fewer_workers_and_skips_no_image(
    two_nodes: tuple[Cluster, Any], make_tree: MakeTree
) -> None:
    cluster, other = two_nodes
    data = make_tree(40)
    config = make_config(data)

    def lose_the_node() -> None:
        while not list(Path(config.registry).glob(CHECKPOINTS)):
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)

    thread = threading.Thread(target=lose_the_node)
    thread.start()
    result = train(config)
    thread.join()
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    alone = train(
        make_config(
            data, num_workers="0", batch_size=16, registry=str(data.parent / "alone"), epochs=60
        )
    )
    assert result["epochs"] == 60
    assert result["val_loss"] == pytest.approx(alone["val_loss"], abs=0.1)
    check_each_epoch_saw_each_image_once(result, 60)


@pytest.mark.slow
@pytest.mark.ray
def test_a_drained_node_is_left_with_a_checkpoint_and_counts_as_no_failure(
    two_nodes: tuple[Cluster, Any], make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, other = two_nodes
    # No checkpoint but the one that the notice asks for, and not one failure is allowed.
    config = make_config(make_tree(40), epochs=300, checkpoint_every="1000000", max_failures=0)
    log = Path(config.registry) / "_training/bars"

    def give_notice() -> None:
        while not list(log.glob("run-*/log/*/epoch-00002.jsonl")):
            time.sleep(0.05)
        client = ray._raylet.GcsClient(address=cluster.address)
        accepted, reason = client.drain_node(
            other.node_id,
            autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
            "the machine will be taken away",
            int((time.time() + 60) * 1000),
        )
        assert accepted, reason

    thread = threading.Thread(target=give_notice)
    thread.start()
    with caplog.at_level(logging.INFO, "imgcls"):
        result = train(config)
    thread.join()
    assert result["num_preemptions"] == 1
    [line] = [r.getMessage() for r in caplog.records if "continuing from epoch" in r.getMessage()]
    assert int(line.split("epoch ")[1].split(",")[0]) > 1
    check_each_epoch_saw_each_image_once(result, 300)
