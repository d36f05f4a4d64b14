import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from imgcls.config.training import TrainConfig
from imgcls.model.artifact import read_bundle
from imgcls.training.driver import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_nodes() -> Iterator[tuple[Cluster, object]]:
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


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_loses_a_node_goes_on_with_fewer_workers_and_skips_no_image(
    two_nodes: tuple[Cluster, object], make_tree: Callable[..., Path]
) -> None:
    cluster, other = two_nodes
    data = make_tree(40)
    config = TrainConfig(
        data=str(data),
        registry=str(data.parent / "registry"),
        name="bars",
        arch="simple_cnn",
        image_px=12,
        batch_size=8,
        epochs=60,
        lr=5e-3,
        num_workers=2,
        min_workers=1,
        checkpoint_every="5",
    )

    def lose_the_node() -> None:
        pattern = "_training/bars/run-*/checkpoints/*/SHA256SUMS"
        while not list(Path(config.registry).glob(pattern)):
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)

    thread = threading.Thread(target=lose_the_node)
    thread.start()
    result = train(config)
    thread.join()
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    alone = train(
        TrainConfig(
            **{
                **config.__dict__,
                "num_workers": 0,
                "min_workers": 0,
                "batch_size": 16,
                "registry": str(data.parent / "alone"),
            }
        )
    )
    assert result["epochs"] == 60
    assert result["val_loss"] == pytest.approx(alone["val_loss"], abs=0.1)
    # Each step of each epoch trained on the images that it would have had on two workers.
    log = Path(result["run"]) / "log" / read_bundle(result["uri"]).training["run_id"]
    num_steps = {path.read_text().count('"kind": "step"') for path in log.glob("epoch-*.jsonl")}
    assert len(num_steps) == 1
    assert len(list(log.glob("epoch-*.jsonl"))) == 60
