import pytest

from imgcls.errors import ConfigError
from imgcls.ray_cluster import ClusterResources, NodeType
from imgcls.scoring.executors.placement import (
    ActorRequest,
    Placement,
    cpu_only_nodes,
    lay_out_actors,
    num_idle_gpus,
    usable_cpus,
)
from tests.kit.ray_nodes import nodes_of

ANY = ActorRequest()


def laid_out(
    resources: ClusterResources, request: ActorRequest = ANY, num_images: int = 0
) -> list[tuple[str, int, float]]:
    placements = lay_out_actors(resources, request, num_images)
    return [(place.node_id, place.num_cpus, place.num_gpus) for place in placements]


@pytest.mark.parametrize(
    ("nodes", "placed"),
    [
        ([(2, 0)], [("node-0", 1, 0)]),
        ([(1, 0)], [("node-0", 1, 0)]),
        ([(16, 1)], [("node-0", 15, 1)]),
        # A head without CPUs holds none, and unlike nodes hold unlike actors.
        ([(0, 0), (8, 0), (4, 0)], [("node-1", 7, 0), ("node-2", 3, 0)]),
        # Where there are GPUs, they score.
        ([(0, 0), (9, 2), (32, 0)], [("node-1", 4, 1), ("node-1", 4, 1)]),
        ([(9, 4), (5, 1)], [("node-0", 2, 1)] * 4 + [("node-1", 4, 1)]),
        # More GPUs than CPUs to feed them.
        ([(3, 4)], [("node-0", 1, 1)] * 2),
    ],
)
def test_by_default_an_actor_per_gpu_or_else_per_node(
    nodes: list[tuple[int, int]], placed: list[tuple[str, int, float]]
) -> None:
    assert laid_out(nodes_of(*nodes)) == placed


@pytest.mark.parametrize(
    ("nodes", "request_", "num_idle"),
    [
        ([(16, 8)], ANY, 0),
        ([(3, 4)], ANY, 2),  # CPUs for two of them
        ([(3, 4), (9, 2)], ANY, 2),
        ([(16, 4)], ActorRequest(cpus_per_actor=7), 2),
        ([(16, 4)], ActorRequest(gpus_per_actor=0.3), 0),
        ([(16, 2)], ActorRequest(device="cpu"), 0),
        ([(16, 0)], ANY, 0),
    ],
)
def test_gpus_that_no_actor_has_a_cpu_for_are_counted(
    nodes: list[tuple[int, int]], request_: ActorRequest, num_idle: int
) -> None:
    resources = nodes_of(*nodes)
    assert num_idle_gpus(resources, lay_out_actors(resources, request_)) == num_idle


@pytest.mark.parametrize(
    ("request_", "placed"),
    [
        (ActorRequest(num_actors=1), [("node-0", 7, 0)]),
        (ActorRequest(num_actors=3), [("node-0", 3, 0), ("node-0", 3, 0), ("node-1", 3, 0)]),
        (ActorRequest(cpus_per_actor=3), [("node-0", 3, 0), ("node-0", 3, 0), ("node-1", 3, 0)]),
        (ActorRequest(num_actors=2, cpus_per_actor=1), [("node-0", 1, 0), ("node-1", 1, 0)]),
        (ActorRequest(num_actors=10), [("node-0", 1, 0)] * 7 + [("node-1", 1, 0)] * 3),
    ],
)
def test_what_is_asked_for_is_spread_over_the_nodes(
    request_: ActorRequest, placed: list[tuple[str, int, float]]
) -> None:
    assert laid_out(nodes_of((8, 0), (4, 0)), request_) == placed


@pytest.mark.parametrize(("share", "num_actors"), [(0.5, 4), (0.25, 8), (0.3, 6), (1.0, 2)])
def test_gpus_may_be_shared(share: float, num_actors: int) -> None:
    placed = laid_out(nodes_of((16, 2)), ActorRequest(gpus_per_actor=share))
    assert placed == [("node-0", 15 // num_actors, share)] * num_actors


def test_device_cpu_takes_no_gpu_and_every_node() -> None:
    placed = laid_out(nodes_of((4, 1), (4, 0)), ActorRequest(device="cpu"))
    assert placed == [("node-0", 3, 0), ("node-1", 3, 0)]


@pytest.mark.parametrize("sizes", [[(2, 0)], [(8, 2), (3, 0)], [(5, 0), (0, 0), (64, 1)]])
@pytest.mark.parametrize("num_actors", [0, 1, 2])
def test_every_node_of_several_cpus_keeps_one(
    sizes: list[tuple[int, int]], num_actors: int
) -> None:
    for device in ("auto", "cpu"):
        try:
            placed = laid_out(nodes_of(*sizes), ActorRequest(num_actors, device=device))
        except ConfigError:
            continue
        for number, (num_cpus, _) in enumerate(sizes):
            taken = sum(cpus for node, cpus, _ in placed if node == f"node-{number}")
            assert taken <= usable_cpus(num_cpus) < max(2, num_cpus)


@pytest.mark.parametrize(
    ("nodes", "request_", "words"),
    [
        ([(8, 0), (8, 0)], ActorRequest(8, 4), r"8 actors of 4 CPUs .* 2 do.* 2 nodes of 8 CPUs"),
        ([(0, 0)], ActorRequest(), r"any actors .* 0 do.* 1 node of 0 CPUs, 0 GPUs"),
        # 32 CPUs in the cluster, but no node with so many.
        ([(8, 0)] * 4, ActorRequest(cpus_per_actor=16), r"16 CPUs .* 4 nodes of 8 CPUs"),
        ([(8, 1), (4, 0)], ActorRequest(2, gpus_per_actor=1), "1 node of 8 CPUs, 1 GPUs; 1 node"),
        ([(8, 0)], ActorRequest(gpus_per_actor=0.5), "--gpus-per-actor 0.5: .* no GPU"),
        ([(8, 0)], ActorRequest(device="cuda"), "no CUDA device .*1 node of 8 CPUs"),
        ([(8, 4)], ActorRequest(gpus_per_actor=1.5), "--gpus-per-actor 1.5"),
        ([(8, 4)], ActorRequest(gpus_per_actor=2), "--gpus-per-actor 2: an actor works with one"),
        ([(8, 4)], ActorRequest(gpus_per_actor=1, device="cpu"), "--device cpu"),
        ([(8, 0)], ActorRequest(num_actors=-1), "--num-actors -1"),
        ([(8, 0)], ActorRequest(cpus_per_actor=-2), "--cpus-per-actor -2"),
    ],
)
def test_what_cannot_be_scheduled_is_refused_with_what_there_is(
    nodes: list[tuple[int, int]], request_: ActorRequest, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        lay_out_actors(nodes_of(*nodes), request_)


GROWING = ClusterResources(
    nodes_of((0, 0), (8, 1)).nodes, (NodeType("gpu", 8, 1, 4), NodeType("cpu", 16, 0, 2))
)


@pytest.mark.parametrize(
    ("request_", "num_images", "placed"),
    [
        (ActorRequest(), 500, [("node-1", 7, 1)]),
        (ActorRequest(), 25_000, [("node-1", 7, 1), ("", 7, 1), ("", 7, 1)]),
        (ActorRequest(), 10**8, [("node-1", 7, 1)] + [("", 7, 1)] * 3),
        (ActorRequest(num_actors=2), 500, [("node-1", 7, 1), ("", 7, 1)]),
    ],
)
def test_a_cluster_that_grows_is_asked_for_what_the_images_are_worth(
    request_: ActorRequest, num_images: int, placed: list[tuple[str, int, float]]
) -> None:
    assert laid_out(GROWING, request_, num_images) == placed


def test_a_cluster_that_starts_from_nothing_gets_one_actor_and_has_a_limit() -> None:
    empty = ClusterResources(nodes_of((0, 0)).nodes, GROWING.node_types)
    assert laid_out(empty) == [("", 7, 1)]
    with pytest.raises(ConfigError, match=r"5 actors .* 4 do: .* at most 4 of type gpu"):
        lay_out_actors(empty, ActorRequest(num_actors=5))


def test_after_a_loss_as_many_as_fit_go_on() -> None:
    request = ActorRequest(num_actors=3, cpus_per_actor=1)
    left = nodes_of((1, 0), (1, 0))
    assert lay_out_actors(left, request, or_fewer=True) == [
        Placement("node-0", 1, 0),
        Placement("node-1", 1, 0),
    ]
    with pytest.raises(ConfigError):
        lay_out_actors(nodes_of((0, 0)), request, or_fewer=True)


def test_nodes_that_can_help_have_cpus_and_no_gpu() -> None:
    found = cpu_only_nodes(nodes_of((0, 0), (9, 2), (32, 0), (1, 0)))
    assert [node.node_id for node in found] == ["node-2", "node-3"]
