"""Where the Ray Train workers fit: on GPUs or not, and with how many CPUs each.

In: what the cluster has, node by node, and what its autoscaler may start; how many workers. Out: a
Placement. Invariant: the workers fit, each of them on one node, or it is said why not: Ray would
wait without end for a group that never can start. Pure functions; knows no Ray.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from imgcls import ray_cluster
from imgcls.config.choices import Device, WorkerRange
from imgcls.errors import ConfigError
from imgcls.ray_cluster import ClusterResources

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """What each worker gets, and how many there can be."""

    use_gpu: bool
    num_cpus: int
    workers: WorkerRange

    @property
    def resources(self) -> dict[str, float]:
        """Return what Ray reserves for a worker."""
        return {"CPU": float(self.num_cpus)} | ({"GPU": 1.0} if self.use_gpu else {})

    def describe(self) -> str:
        """Return it in words: "4 workers of 8 CPUs, 1 GPU each"."""
        fewest, most = self.workers.fewest, self.workers.most
        number = f"{fewest} to {most}" if self.workers.is_elastic else f"{most}"
        gpu = ", 1 GPU" if self.use_gpu else ""
        return f"{number} workers of {self.num_cpus} CPUs{gpu} each"


def place_workers(resources: ClusterResources, workers: WorkerRange, device: Device) -> Placement:
    """Decide where the workers of a training go.

    Raises:
        ConfigError: the fewest workers do not fit on what the cluster has and may start.
    """
    use_gpu = use_gpus(resources, workers, device)
    num_there = max(workers.fewest, min(workers.most, _num_slots(resources, 1, use_gpu)))
    if num_there < workers.most and workers.is_elastic:
        log.info(
            "there is room for %d of at most %d workers: %s",
            num_there,
            workers.most,
            resources.describe(),
        )
    return Placement(use_gpu, cpus_per_worker(resources, num_there, use_gpu=use_gpu), workers)


def use_gpus(resources: ClusterResources, workers: WorkerRange, device: Device) -> bool:
    """Say whether each worker gets a GPU; warn where "auto" leaves GPUs idle.

    Raises:
        ConfigError: "cuda" is asked for and there is no room for the fewest workers on GPUs.
    """
    num_gpus = _num_gpus(resources)
    num_slots = _num_slots(resources, 1, use_gpu=True)
    has_room = num_slots >= workers.fewest
    if device == "cuda" and not has_room and not ray_cluster.may_grow_unseen():
        raise ConfigError(
            f"--device cuda with {workers.fewest} workers: Ray sees {num_gpus} GPUs, with CPUs "
            f"beside them for {num_slots} workers ({resources.describe()}); give a lower "
            "--num-workers or --device cpu"
        )
    if device == "auto" and not num_gpus and ray_cluster.may_grow_unseen():
        log.warning(
            "--device auto trains on CPUs: no node has a GPU at the moment; --device cuda waits "
            "for nodes that have"
        )
    if device == "auto" and num_gpus and not has_room:
        log.warning(
            "--device auto trains on CPUs: %d workers want a GPU and a CPU each, and there is room "
            "for %d (%s); --num-workers %d would use the GPUs, --device cpu says that CPUs are "
            "meant",
            workers.fewest,
            num_slots,
            resources.describe(),
            max(1, num_slots),
        )
    return device == "cuda" or (device == "auto" and has_room)


def cpus_per_worker(resources: ClusterResources, num_workers: int, *, use_gpu: bool = False) -> int:
    """Return the CPUs that each worker may have: the most with which all of them fit.

    One CPU of all stays free where there are enough.

    Args:
        resources: what there is and what may be started.
        num_workers: that have to fit.
        use_gpu: each needs a GPU, too.

    Raises:
        ConfigError: they do not fit with one CPU each.
    """
    num_slots = _num_slots(resources, 1, use_gpu)
    if num_slots < num_workers:
        _refuse(resources, num_workers, num_slots, use_gpu)
        return 1
    sizes = [num_cpus for num_cpus, _, _ in _nodes(resources)]
    num_cpus_in_all = sum(num_cpus * count for num_cpus, _, count in _nodes(resources))
    fitting = (
        num_cpus
        for num_cpus in range(max(sizes), 1, -1)
        if num_cpus * num_workers < num_cpus_in_all
        and _num_slots(resources, num_cpus, use_gpu) >= num_workers
    )
    return next(fitting, 1)


def warn_of_idle_gpus(num_gpus: int) -> None:
    """Say that a training in this process uses one GPU alone."""
    if num_gpus > 1:
        log.warning(
            "this machine has %d GPUs, and --num-workers 0 trains on one of them; --num-workers %d "
            "takes all",
            num_gpus,
            num_gpus,
        )


def _refuse(resources: ClusterResources, num_workers: int, num_slots: int, use_gpu: bool) -> None:
    """Refuse workers that do not fit, unless nobody here can know whether nodes will come."""
    if ray_cluster.may_grow_unseen():
        log.warning(
            "%d workers do not fit on what the cluster has (%s): waiting for it to grow, as far as "
            "it does",
            num_workers,
            resources.describe(),
        )
        return
    if not ray_cluster.in_cluster():
        raise ConfigError(
            f"--num-workers {num_workers}: this machine has {resources.num_cpus} CPUs; use fewer, "
            "or a cluster (RAY_ADDRESS)"
        )
    needs = "a GPU and a CPU" if use_gpu else "a CPU"
    raise ConfigError(
        f"--num-workers {num_workers}: each needs {needs} on one node, and there is room for "
        f"{num_slots}: the cluster has {resources.describe()}; use fewer, or MIN:MAX"
    )


def _nodes(resources: ClusterResources) -> Iterator[tuple[int, int, int]]:
    """Yield (CPUs, GPUs, count) of the nodes, and of those that may be started, by type."""
    sizes = [(node.num_cpus, node.num_gpus) for node in resources.nodes]
    yield from ((*size, 1) for size in sizes)
    there = Counter(sizes)
    for kind in resources.node_types:
        # Those of them that are there already are among the nodes.
        num_there = min(there[kind.num_cpus, kind.num_gpus], kind.max_count)
        there[kind.num_cpus, kind.num_gpus] -= num_there
        yield kind.num_cpus, kind.num_gpus, kind.max_count - num_there


def _num_slots(resources: ClusterResources, num_cpus: int, use_gpu: bool) -> int:
    """Return how many workers of so many CPUs there is room for, each on one node."""

    def slots(cpus: int, gpus: int) -> int:
        return min(cpus // num_cpus, gpus if use_gpu else cpus)

    nodes = list(_nodes(resources))
    num_there = len(resources.nodes)
    total = sum(slots(cpus, gpus) for cpus, gpus, _ in nodes[:num_there])
    kinds = {(kind.num_cpus, kind.num_gpus) for kind in resources.node_types}
    num_left = resources.max_started - sum(
        (node.num_cpus, node.num_gpus) in kinds for node in resources.nodes
    )
    # The autoscaler has a limit for all types together: at best it starts the largest ones.
    by_room = sorted(nodes[num_there:], key=lambda kind: slots(*kind[:2]), reverse=True)
    for cpus, gpus, count in by_room:
        num_started = max(0, min(count, num_left))
        total += slots(cpus, gpus) * num_started
        num_left -= num_started
    return total


def _num_gpus(resources: ClusterResources) -> int:
    return sum(gpus * count for _, gpus, count in _nodes(resources))
