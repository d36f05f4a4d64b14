"""How many actors score, where, and what each of them owns.

In: the cluster node by node, and what was asked for. Out: one Placement per actor. Invariants: an
actor fits on one node, and a node with more than one CPU keeps one, because Ray's own tasks need it
(https://github.com/ray-project/ray/issues/44687); what cannot be scheduled is refused here, before
anything is written.
"""

import math
from dataclasses import dataclass

from imgcls.config.choices import Device
from imgcls.errors import ConfigError
from imgcls.ray_cluster import ClusterResources, NodeResources

# A node that is not there yet takes minutes to come: it has to be worth so many images.
IMAGES_PER_NEW_NODE = 10_000


@dataclass(frozen=True)
class ActorRequest:
    """What the flags ask for; 0 leaves it to the cluster."""

    num_actors: int = 0
    cpus_per_actor: int = 0
    gpus_per_actor: float = 0.0
    device: Device = "auto"

    def check(self) -> None:
        """Refuse what no cluster could give.

        Raises:
            ConfigError: a negative number, or more than one GPU for an actor.
        """
        for name in ("num_actors", "cpus_per_actor", "gpus_per_actor"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative; 0 "
                    "derives it from the cluster"
                )
        if self.gpus_per_actor > 1:
            raise ConfigError(
                f"--gpus-per-actor {self.gpus_per_actor:g}: an actor works with one GPU, others "
                "would idle; give 1 or a share of one such as 0.5, and more --num-actors"
            )
        if self.gpus_per_actor and self.device == "cpu":
            raise ConfigError(
                f"--gpus-per-actor {self.gpus_per_actor:g} with --device cpu: give one of them"
            )


@dataclass(frozen=True)
class Placement:
    """One actor's node and share of it; no node: wherever the autoscaler makes room for it."""

    node_id: str
    num_cpus: int
    num_gpus: float


@dataclass
class _Room:
    """A node with room for `max_actors`, of which `num_actors` are taken."""

    node_id: str
    usable_cpus: int
    max_actors: int
    num_actors: int = 0


def lay_out_actors(
    resources: ClusterResources,
    request: ActorRequest,
    num_images: int = 0,
    *,
    or_fewer: bool = False,
) -> list[Placement]:
    """Place the actors: one per GPU, or where there are none, one per node.

    Args:
        resources: the cluster as it is now, and what its autoscaler may add.
        request: the flags.
        num_images: how many are left to score; only for them new nodes are waited for. 0: unknown.
        or_fewer: of the actors asked for, as many as fit, if only one does.

    Raises:
        ConfigError: the cluster cannot hold the actors asked for, or none at all.
    """
    request.check()
    has_gpus = any(kind.num_gpus for kind in resources.node_types) or resources.num_gpus > 0
    if request.device == "cuda" and not has_gpus:
        raise ConfigError(f"--device cuda: no CUDA device in the cluster ({resources.describe()})")
    num_gpus = (request.gpus_per_actor or 1.0) if has_gpus and request.device != "cpu" else 0.0
    if request.gpus_per_actor and not num_gpus:
        raise ConfigError(
            f"--gpus-per-actor {request.gpus_per_actor:g}: the cluster has no GPU "
            f"({resources.describe()})"
        )
    rooms = [
        _room(node.node_id, node.num_cpus, node.num_gpus, request, num_gpus)
        for node in resources.nodes
    ]
    room_now = sum(room.max_actors for room in rooms)
    # An actor without a GPU takes a node of its own, unless it was told to take less.
    fills_nodes = num_gpus or request.cpus_per_actor
    by_default = room_now if fills_nodes else sum(1 for room in rooms if room.max_actors)
    new = _new_nodes(resources, request, num_gpus)
    there = room_now if request.num_actors else by_default
    wanted = request.num_actors
    if not wanted:
        worth = math.ceil(num_images / IMAGES_PER_NEW_NODE)
        wanted = max(there, min(max(1, worth), there + len(new)))
    elif or_fewer:
        wanted = min(wanted, there + len(new))
    if not 0 < wanted <= there + len(new):
        raise ConfigError(_refusal(resources, request, num_gpus, room_now + len(new)))
    _take(rooms, min(wanted, there))
    placements = [
        Placement(
            room.node_id, request.cpus_per_actor or room.usable_cpus // room.num_actors, num_gpus
        )
        for room in rooms
        for _ in range(room.num_actors)
    ]
    return placements + new[: wanted - len(placements)]


def usable_cpus(num_cpus: int) -> int:
    """Return the CPUs of a node that actors may take."""
    return num_cpus - 1 if num_cpus > 1 else num_cpus


def cpu_only_nodes(resources: ClusterResources) -> list[NodeResources]:
    """Return the nodes that no actor with a GPU is placed on, and that have CPUs to help it."""
    return [node for node in resources.nodes if node.num_cpus and not node.num_gpus]


def num_idle_gpus(resources: ClusterResources, placements: list[Placement]) -> int:
    """Return how many whole GPUs the actors leave unused, on nodes there and where they compute."""
    taken = sum(placement.num_gpus for placement in placements if placement.node_id)
    return int(resources.num_gpus - taken + 1e-6) if placements[0].num_gpus else 0


def _room(
    node_id: str, num_cpus: int, num_gpus: int, request: ActorRequest, gpus_per_actor: float
) -> _Room:
    usable = usable_cpus(num_cpus)
    max_actors = usable // max(1, request.cpus_per_actor)
    if gpus_per_actor:
        max_actors = min(max_actors, _gpu_slots(num_gpus, gpus_per_actor))
    return _Room(node_id, usable, max_actors)


def _gpu_slots(num_gpus: int, gpus_per_actor: float) -> int:
    # A share is a share of one GPU; Ray counts in ten-thousandths.
    return num_gpus * int(1.0001 // gpus_per_actor)


def _take(rooms: list[_Room], num_actors: int) -> None:
    """Spread actors over the nodes: the next one where none is, or else where it gets the most."""

    def worth(room: _Room) -> tuple[bool, float]:
        return room.num_actors == 0, room.usable_cpus / (room.num_actors + 1)

    for _ in range(num_actors):
        free = [room for room in rooms if room.num_actors < room.max_actors]
        max(free, key=worth).num_actors += 1


def _new_nodes(
    resources: ClusterResources, request: ActorRequest, gpus_per_actor: float
) -> list[Placement]:
    """Return the actors that nodes not yet there could hold: of the type that holds the most."""
    holds: list[list[Placement]] = [[]]
    for kind in resources.node_types:
        room = _room("", kind.num_cpus, kind.num_gpus, request, gpus_per_actor)
        per_node = (
            room.max_actors if gpus_per_actor or request.cpus_per_actor else min(1, room.max_actors)
        )
        if not per_node:
            continue
        there = sum(
            1
            for node in resources.nodes
            if (node.num_cpus, node.num_gpus) == (kind.num_cpus, kind.num_gpus)
        )
        num_cpus = request.cpus_per_actor or room.usable_cpus // per_node
        count = per_node * max(0, kind.max_count - there)
        holds.append([Placement("", num_cpus, gpus_per_actor)] * count)
    return max(holds, key=len)


def _refusal(
    resources: ClusterResources, request: ActorRequest, gpus_per_actor: float, room: int
) -> str:
    num_actors = request.num_actors or "any"
    cpus = request.cpus_per_actor or 1
    return (
        f"{num_actors} actors of {cpus} CPUs and {gpus_per_actor:g} GPUs do not fit, {room} do: "
        f"the cluster has {resources.describe()}. An actor needs a node that holds it, and a node "
        "with several CPUs keeps one for Ray. Lower --num-actors, --cpus-per-actor or "
        "--gpus-per-actor, or add nodes."
    )
