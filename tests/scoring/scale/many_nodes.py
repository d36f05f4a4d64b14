"""Schedule many shards over many Ray nodes with a model that only sleeps: what scheduling costs.

`python -m tests.scoring.scale.many_nodes NUM_NODES NUM_SHARDS SECONDS_PER_SHARD` prints one JSON
line. The nodes are raylets of one logical CPU each on this machine; nothing is read, decoded or
written, so that only the driver, Ray Data and Ray are measured.
"""

import json
import logging
import resource
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from imgcls import ray_cluster
from imgcls.runs.plan import Plan, Shard
from imgcls.scoring.executors import ray_data
from imgcls.scoring.executors.placement import ActorRequest
from imgcls.scoring.shard.worker import ShardSummary, WorkerOptions
from tests.scoring.tiny import plan_record

NUM_IMAGES = 64


class SleepingWorker:
    """A ShardWorker whose model is busy for a while, with one shard at a time."""

    def __init__(self, plan: Plan, options: WorkerOptions, make_remote: object) -> None:
        self._seconds = float(plan.output)
        self._model = threading.Lock()

    def score(self, shard: Shard) -> ShardSummary:
        """Sleep, and say that all is well."""
        with self._model:
            time.sleep(self._seconds)
        return ShardSummary(shard.shard_id, NUM_IMAGES, self._seconds, "sleep", {"ok": NUM_IMAGES})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def sleep_instead() -> None:
    """Ray calls this at the start of every worker process."""
    ray_data.ShardWorker = SleepingWorker  # type: ignore[assignment,misc]
    ray_data.read_plan = lambda run: plan_of(0, run.output)  # type: ignore[assignment]


def plan_of(num_shards: int, output: str) -> Plan:
    """A plan that is nowhere stored."""
    return plan_record((NUM_IMAGES,) * num_shards, output)


def main(num_nodes: str, num_shards: str, seconds: str) -> None:
    """Schedule the shards and tell what that took."""
    import ray
    from ray.cluster_utils import Cluster

    shards = [Shard(f"{n:06d}", "plan", n, NUM_IMAGES) for n in range(int(num_shards))]
    head = {"num_cpus": 0, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(int(num_nodes)):
        started.add_node(num_cpus=1)
    hook = {"worker_process_setup_hook": "tests.scoring.scale.many_nodes.sleep_instead"}
    ray.init(started.address, runtime_env=hook, log_to_driver=False, logging_level=logging.ERROR)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin_s, begin_cpu_s = time.monotonic(), time.process_time()
    ends: list[float] = []
    with ray_cluster.connected():
        plan, options = plan_of(len(shards), seconds), WorkerOptions(num_cpus=1)
        for _ in ray_data.run_on_ray(ActorRequest(), plan, options, shards):
            ends.append(time.monotonic())
    cpu_s = time.process_time() - begin_cpu_s
    # Steady: after every actor has had time to start, and before they run out of shards.
    steady = ends[len(ends) // 4 : len(ends) * 3 // 4]
    result: dict[str, Any] = {
        "nodes": int(num_nodes),
        "shards": len(ends),
        "first_shard_s": round(ends[0] - begin_s, 1),
        "all_s": round(ends[-1] - begin_s, 1),
        "steady_shards_per_s": round((len(steady) - 1) / (steady[-1] - steady[0]), 3),
        "driver_cpu_ms_per_shard": round(1000 * cpu_s / len(ends), 2),
        "driver_grown_mib": round(
            (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
        ),
    }
    print(json.dumps(result), flush=True)  # noqa: T201 - this program's output
    ray.shutdown()
    started.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
