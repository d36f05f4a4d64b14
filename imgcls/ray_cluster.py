"""Connect to Ray: the cluster we are on, or one of our own that ends with us.

In: the environment. Out: a connected driver and what the cluster has. Invariant: a Ray that we did
not start is never stopped, and one that we started leaves no process and no folder behind.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# Ray Data and Ray Train print their own progress to stdout, which belongs to our one JSON line.
_QUIET_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


MAX_TEMP_DIR_CHARS = 24
ANSWER_WITHIN_S = 60.0
# `ray up` leaves the settled cluster.yaml there for the autoscaler. Ray has no public way to ask.
BOOTSTRAP_CONFIG = "ray_bootstrap_config.yaml"

T = TypeVar("T")


@dataclass(frozen=True)
class NodeResources:
    """One living node: its id for Ray, its address, and all that it has, used or not."""

    node_id: str
    address: str
    num_cpus: int
    num_gpus: int


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the cluster's autoscaler may start; as many as `max_count` in all."""

    name: str
    num_cpus: int
    num_gpus: int
    max_count: int


@dataclass(frozen=True)
class ClusterResources:
    """What is there to schedule on, node by node, and what an autoscaler may add."""

    nodes: tuple[NodeResources, ...]
    node_types: tuple[NodeType, ...] = ()
    max_started: int = sys.maxsize  # nodes of all types together

    @property
    def num_nodes(self) -> int:
        """Nodes that can work; a head without CPUs cannot."""
        return sum(1 for node in self.nodes if node.num_cpus or node.num_gpus)

    @property
    def num_cpus(self) -> int:
        """CPUs of all nodes."""
        return sum(node.num_cpus for node in self.nodes)

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.num_gpus for node in self.nodes)

    def describe(self) -> str:
        """Return the nodes in words, equal ones together: "2 nodes of 8 CPUs, 1 GPUs"."""
        sizes = Counter((node.num_cpus, node.num_gpus) for node in self.nodes)
        words = [
            f"{count} {'node' if count == 1 else 'nodes'} of {num_cpus} CPUs, {num_gpus} GPUs"
            for (num_cpus, num_gpus), count in sorted(sizes.items(), reverse=True)
        ]
        words += [
            f"at most {kind.max_count} of type {kind.name} to be started, of {kind.num_cpus} CPUs, "
            f"{kind.num_gpus} GPUs"
            for kind in self.node_types
        ]
        return "; ".join(words) or "no node"


def in_cluster() -> bool:
    """Return whether this process was started inside a Ray job or pointed at a cluster."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


def may_grow_unseen() -> bool:
    """Return whether an autoscaler may be at work here that tells nobody what it may start.

    On Kubernetes it is a container beside the head, with limits of its own.
    """
    return in_cluster() and bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and not node_types()


@contextmanager
def connected() -> Iterator[ClusterResources]:
    """Connect this process as a Ray driver, to a Ray of its own where there is no cluster."""
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield current_resources()
        return
    temp_dir = None
    # ray.init takes SIGTERM for itself and exits 15 without a word; ours ends resumable.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if in_cluster():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        # Unix sockets live below it, and their paths must stay under 107 characters.
        short = len(tempfile.gettempdir()) <= MAX_TEMP_DIR_CHARS
        temp_dir = tempfile.mkdtemp(prefix="imgcls-", dir=None if short else "/tmp")  # noqa: S108 - its name is random
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=temp_dir,
        )
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        yield current_resources()
    finally:
        ray.shutdown()
        if temp_dir:
            shutil.rmtree(temp_dir, ignore_errors=True)


def current_resources() -> ClusterResources:
    """Return what the connected cluster has at this moment."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no types here
    return ClusterResources(
        tuple(
            NodeResources(
                node_id=node["NodeID"],
                address=node["NodeManagerAddress"],
                num_cpus=int(node["Resources"].get("CPU", 0)),
                num_gpus=int(node["Resources"].get("GPU", 0)),
            )
            for node in sorted(nodes, key=lambda node: str(node["NodeID"]))
            if node["Alive"]
        ),
        node_types(),
        _autoscaler_config().get("max_workers", 0),
    )


def ask_nodes(node_ids: Iterable[str], question: Callable[[], T]) -> list[T]:
    """Call a function once on each of these nodes and return the answers, in their order.

    Raises:
        ray.exceptions.RayError: a node did not answer within ANSWER_WITHIN_S.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: Any = ray.remote(question)
    answers = [
        asked.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote()
        for node_id in node_ids
    ]
    found: list[T] = ray.get(answers, timeout=ANSWER_WITHIN_S)
    return found


def node_types() -> tuple[NodeType, ...]:
    """Return what the autoscaler may start, as `ray up` wrote it down on the head.

    Nothing where there is no autoscaler, or (KubeRay) none that tells: such a cluster counts as
    what it has at the moment.
    """
    config = _autoscaler_config()
    return tuple(
        NodeType(
            name=name,
            num_cpus=int(kind.get("resources", {}).get("CPU", 0)),
            num_gpus=int(kind.get("resources", {}).get("GPU", 0)),
            max_count=min(kind.get("max_workers", 0), config.get("max_workers", 0)),
        )
        for name, kind in config.get("available_node_types", {}).items()
        if name != config["head_node_type"] and kind.get("max_workers", 0)
    )


def _autoscaler_config() -> dict[str, Any]:
    path = Path.home() / BOOTSTRAP_CONFIG
    if not in_cluster() or not path.exists():
        return {}
    import yaml  # Ray brings it along

    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config
