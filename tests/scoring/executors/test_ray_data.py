"""Score on real Ray nodes: the same rows, the nodes told apart and counted."""

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import ray.data

from imgcls import ray_cluster
from imgcls.config.scoring import ScoreConfig
from imgcls.scoring.driver import score
from imgcls.storage.objects import read
from tests.kit.ray_nodes import RayCluster
from tests.scoring.tiny import comparable, published_rows, write_images

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], RayCluster]]:
    """Start a cluster once the environment of its workers is settled; later, end it."""
    started: list[RayCluster] = []

    def begin(num_nodes: int) -> RayCluster:
        monkeypatch.setenv(
            "PYTHONPATH",
            os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        )
        started.append(RayCluster(num_nodes))
        monkeypatch.setenv("RAY_ADDRESS", started[0].address)
        return started[0]

    yield begin
    ray.shutdown()
    for one in started:
        one.close()


def prometheus(ports: list[int]) -> str:
    """Return what every node serves to Prometheus."""
    texts = []
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            texts.append(answer.read().decode())
    return "\n".join(texts)


def counted(text: str, name: str, **labels: str) -> float:
    """Sum the samples of one metric that have these labels."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(f"{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items())
    )


@pytest.mark.slow
@pytest.mark.s3
def test_three_actors_on_three_nodes_write_the_rows_of_one_process(
    model_ref: str,
    s3_bucket: str,
    start: Callable[[int], RayCluster],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_images = 700
    write_images(f"{s3_bucket}/images", num_images)
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    nodes = start(3)
    # However long a node takes to start its actor here, none is late for its shards.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 120)
    with ray_cluster.connected():
        results = [
            score(
                ScoreConfig(
                    f"{s3_bucket}/images",
                    model_ref,
                    f"{s3_bucket}/{executor}",
                    run_id="night",
                    executor=executor,  # type: ignore[arg-type]
                    batch_size=8,
                )
            )
            for executor in ("local", "ray")
        ]
        local = comparable(published_rows(f"{s3_bucket}/local"))
        assert len(local) == num_images
        assert comparable(published_rows(f"{s3_bucket}/ray")) == local
        # Every node had its actor, and together they did all there was.
        told = results[1]["nodes"]
        assert len(told) == 3
        assert [len(node["actors"]) for node in told] == [1, 1, 1]
        assert sum(node["images"] for node in told) == num_images
        text, until_s = "", time.monotonic() + 30
        while counted(text, "ray_imgcls_images_total") < num_images and time.monotonic() < until_s:
            time.sleep(0.5)
            text = prometheus(nodes.metrics_ports())
        assert counted(text, "ray_imgcls_images_total", run_id="night") == num_images
        assert counted(text, "ray_imgcls_rows_total", status="ok") == num_images
        assert counted(text, "ray_imgcls_bytes_total") > 0
        assert counted(text, "ray_imgcls_stage_seconds_total", doing="waiting_for_input") > 0
        assert counted(text, "ray_imgcls_shard_seconds_count") == told_shards(told)
    progress = json.loads(read(f"{s3_bucket}/ray/_runs/night/progress.json"))
    assert (progress["state"], progress["images_done"]) == ("published", num_images)


def told_shards(nodes: list[dict[str, int]]) -> int:
    return sum(node["shards"] for node in nodes)
