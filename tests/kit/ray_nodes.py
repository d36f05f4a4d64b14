"""Nodes of Ray: made up, for tests of what is derived from them, and real ones on this machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imgcls.ray_cluster import ClusterResources, NodeResources


def nodes_of(*sizes: tuple[int, int]) -> ClusterResources:
    """A cluster of nodes of so many (CPUs, GPUs), named node-0, node-1 and so on."""
    return ClusterResources(
        tuple(
            NodeResources(f"node-{number}", f"10.0.0.{number}", num_cpus, num_gpus)
            for number, (num_cpus, num_gpus) in enumerate(sizes)
        )
    )


class RayCluster:
    """A head without CPUs and some 1-CPU nodes, each a raylet of its own on this machine."""

    def __init__(self, num_nodes: int = 3) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add_node()
        self.address = self._cluster.address

    def add_node(self, num_cpus: int = 1, num_gpus: int = 0) -> None:
        """Start one more node; its GPUs are only said to be there."""
        self.nodes.append(self._cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus))

    def metrics_ports(self) -> list[int]:
        """Return the ports at which the living nodes serve Prometheus."""
        import ray

        return [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]

    def actor_pids(self, name: str = "Shard") -> list[int]:
        """Return the processes of our raylets that run actors of a class with this in its name."""
        raylets = {
            info.process.pid
            for node in self.nodes
            for infos in node.all_processes.values()
            for info in infos
        }
        return [pid for pid, parent, title in processes() if parent in raylets and name in title]

    def kill_node(self) -> None:
        """Kill the raylet of one node, and with it all its workers, without goodbye."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def kill_everything(self) -> None:
        """Kill the head and all nodes, without goodbye."""
        self._cluster.shutdown()

    def close(self) -> None:
        self._cluster.shutdown()


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield (pid, parent, command line) of every process that is still there when read."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            )
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(folder.name), parent, title
