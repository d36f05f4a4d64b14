"""Score shards on a Ray cluster: Ray Data schedules them over actors, one row each.

In: shards that have no commit yet. Out: a ShardSummary per shard, in any order. Invariant: only
shard ids and summaries travel through Ray Data; a shard whose actor or node is lost is scheduled
again, and what counts is its commit in the store.

Each actor is bound to its node, so that every node keeps the CPU that the layout leaves it. When a
node is lost or a new one comes, the data set ends and the rest starts again, on the nodes that are
there then: shards in flight are done again.

A shard whose forward passes failed with their device waits until the others are done; then it has
other processes to run in, MAX_DEVICE_FAILURES times in all. An actor whose device failed ends at
its next call, so that Ray starts another one.
"""

import itertools
import logging
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imgcls import ray_cluster
from imgcls.errors import ConfigError, DeviceFailedError, ImgclsError, ShardFailedError
from imgcls.inference.passes import describe_error
from imgcls.runs.plan import Plan, Shard, read_plan
from imgcls.runs.run import Run
from imgcls.scoring.executors.placement import (
    ActorRequest,
    Placement,
    cpu_only_nodes,
    lay_out_actors,
    num_idle_gpus,
)
from imgcls.scoring.executors.ray_decoders import DecodersOnRay
from imgcls.scoring.executors.ray_metrics import RayMetrics
from imgcls.scoring.reporting.run_log import KeptLines
from imgcls.scoring.shard.worker import (
    SHARDS_IN_FLIGHT,
    ShardSummary,
    ShardWorker,
    WorkerOptions,
)
from imgcls.storage.records import parse_record, record_text

log = logging.getLogger(__name__)

# A crashing actor is replaced and its shards tried again this often.
MAX_ACTOR_RESTARTS = 3
# A data set that ends so often without a single shard done ends the run, resumable.
MAX_FRUITLESS_TRIES = 3
# So often a shard may find that the device fails, each time in another process.
MAX_DEVICE_FAILURES = 3
# Tests only say that there are GPUs. Set where they do, the CPU stands in for one.
LOGICAL_GPUS = "IMGCLS_GPUS_ARE_LOGICAL"
LOOK_FOR_NODES_EVERY_S = 10.0
# Ray asks a silent node five times, every 3 s, and waits 10 s for the last answer.
NODE_IS_DEAD_WITHIN_S = 30.0
# To start again costs each actor the shards it is at, and its start: so many must be left for each.
MIN_SHARDS_LEFT_PER_ACTOR = 2 * SHARDS_IN_FLIGHT
# Ray Data keeps an object per row of the data set.
MAX_SHARDS_AT_ONCE = 5_000


def run_on_ray(
    request: ActorRequest, plan: Plan, options: WorkerOptions, todo: list[Shard]
) -> Generator[ShardSummary]:
    """Score shards on the connected cluster, again on other nodes whenever they change.

    Raises:
        ConfigError: the cluster cannot hold the actors asked for.
        ShardFailedError: actors or nodes were lost again and again, or none is left.
    """
    metrics = RayMetrics(plan.run_id)
    left = {shard.shard_id: shard for shard in todo}
    num_device_failures: Counter[str] = Counter()
    num_tries = num_fruitless = 0
    while left:
        placements = _placements(request, plan, left, is_first=num_tries == 0)
        num_tries += 1
        num_fruitless += 1
        shards = list(itertools.islice(left.values(), MAX_SHARDS_AT_ONCE))
        # Closed before Ray is: an iteration that outlives it ends the process without a word.
        try:
            with closing(_schedule(plan, options, shards, placements)) as summaries:
                has_grown = _Growth(request, len(placements))
                for summary in summaries:
                    num_fruitless = 0
                    if summary.error_kind == DeviceFailedError.__name__:
                        num_device_failures[summary.shard_id] += 1
                        if num_device_failures[summary.shard_id] < MAX_DEVICE_FAILURES:
                            told = "shard %s waits for another process, the device failed on %s: %s"
                            log.warning(told, summary.shard_id, summary.node, summary.error_message)
                            continue
                    shard = left.pop(summary.shard_id)
                    metrics.add(shard.num_images, summary)
                    yield summary
                    if has_grown(left):
                        break
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            if num_fruitless >= MAX_FRUITLESS_TRIES:
                raise ShardFailedError(
                    f"Ray gave up on a worker: {reason}. Look at the cluster; --run-id "
                    f"{plan.run_id} does what is left."
                ) from error
            log.warning("Ray gave up, %d shards start again: %s", len(left), reason)
            _wait_for_other_nodes(placements)


def _wait_for_other_nodes(placements: list[Placement]) -> None:
    """Wait until a node that actors were bound to is gone, or it is clear that none is.

    An actor's connection breaks some seconds before Ray calls its node dead.
    """
    bound = {placement.node_id for placement in placements} - {""}
    until_s = time.monotonic() + NODE_IS_DEAD_WITHIN_S
    while time.monotonic() < until_s:
        if not bound <= {node.node_id for node in ray_cluster.current_resources().nodes}:
            return
        time.sleep(0.5)


def _placements(
    request: ActorRequest, plan: Plan, left: dict[str, Shard], *, is_first: bool
) -> list[Placement]:
    """Lay out the actors on the nodes there are; of an earlier try, as many as still fit."""
    num_images = sum(shard.num_images for shard in left.values())
    resources = ray_cluster.current_resources()
    try:
        placements = lay_out_actors(resources, request, num_images, or_fewer=not is_first)
    except ConfigError as error:
        if is_first:
            raise
        raise ShardFailedError(
            f"no node is left that holds an actor ({resources.describe()}). Look at the cluster; "
            f"--run-id {plan.run_id} does what is left."
        ) from error
    num_idle = num_idle_gpus(resources, placements)
    if num_idle and not request.num_actors:
        log.warning(
            "%d of %d GPUs idle: an actor needs a CPU of its own beside its GPU, and a node keeps "
            "one for Ray; the cluster has %s",
            num_idle,
            resources.num_gpus,
            resources.describe(),
        )
    placements = placements[: max(1, len(left))]
    num_waiting = sum(1 for placement in placements if not placement.node_id)
    log.info(
        "Ray: %d actors on %d nodes, of %s CPUs and %s GPUs%s",
        len(placements),
        len({placement.node_id for placement in placements if placement.node_id}),
        "/".join(map(str, sorted({placement.num_cpus for placement in placements}))),
        "/".join(f"{gpus:g}" for gpus in sorted({p.num_gpus for p in placements})),
        f"; {num_waiting} of them wait for the autoscaler" if num_waiting else "",
    )
    return placements


class _Growth:
    """Tells, now and then, whether nodes have come that are worth starting again for."""

    def __init__(self, request: ActorRequest, num_actors: int) -> None:
        self._request, self._num_actors = request, num_actors
        self._looked_s = time.monotonic()

    def __call__(self, left: dict[str, Shard]) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_FOR_NODES_EVERY_S:
            return False
        self._looked_s = now_s
        # Nodes that are not there yet need no new start: their actors are waiting already.
        there = replace(ray_cluster.current_resources(), node_types=())
        try:
            num_actors = len(lay_out_actors(there, self._request, or_fewer=True))
        except ConfigError:
            return False
        if num_actors <= self._num_actors or len(left) < MIN_SHARDS_LEFT_PER_ACTOR * num_actors:
            return False
        log.info("room for %d actors instead of %d: starting again", num_actors, self._num_actors)
        return True


def _schedule(
    plan: Plan,
    options: WorkerOptions,
    shards: list[Shard],
    placements: list[Placement],
) -> Generator[ShardSummary]:
    """Let Ray Data schedule the shards, one row each, over a fixed pool of actors."""
    _quiet()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items(
        [asdict(shard) for shard in shards], override_num_blocks=len(shards)
    ).map_batches(
        ShardActor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=len(placements),
            # One waits in line, so that no actor waits for Ray Data when another ends.
            max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT + 1,
            max_concurrent_calls_per_actor=SHARDS_IN_FLIGHT,
            enable_true_multi_threading=True,
        ),
        fn_constructor_kwargs={
            "run": plan.run,
            "options": options,
            "num_sharing": _num_sharing_helpers(options, placements),
        },
        num_cpus=min(placement.num_cpus for placement in placements),
        num_gpus=placements[0].num_gpus,
        ray_remote_args_fn=_arguments_of(placements),
    )
    # type: it is a generator, and typed as an iterator.
    with closing(iter(dataset.iter_rows())) as rows:  # type: ignore[type-var]
        for row in rows:
            yield parse_record(row["summary"], "a summary", ImgclsError, ShardSummary)


def _num_sharing_helpers(options: WorkerOptions, placements: list[Placement]) -> int:
    """Return how many actors with a GPU may share the nodes without; 0: those are left alone."""
    if options.cpu_helpers == "off" or not placements[0].num_gpus:
        return 0
    return len(placements) if cpu_only_nodes(ray_cluster.current_resources()) else 0


def _quiet() -> None:
    """Keep Ray Data's remarks in its own log file; a pool that fills its nodes alarms it."""
    for handler in logging.getLogger("ray.data").handlers:
        # Others' handlers may hang there too, and serve all of their process.
        is_rays = type(handler).__module__.startswith("ray.")
        if is_rays and isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)


def _arguments_of(placements: list[Placement]) -> Callable[[], dict[str, Any]]:
    """Return what Ray Data calls before it starts an actor: node, share, and finite retries.

    Ray's default is to retry a crash for ever.
    """
    next_placement = itertools.cycle(placements)

    def arguments() -> dict[str, Any]:
        placement = next(next_placement)
        bound: dict[str, Any] = {}
        if placement.node_id:
            bound = {
                "scheduling_strategy": NodeAffinitySchedulingStrategy(placement.node_id, soft=False)
            }
        return bound | {
            "num_cpus": placement.num_cpus,
            "max_restarts": MAX_ACTOR_RESTARTS,
            "max_task_retries": MAX_ACTOR_RESTARTS,
        }

    return arguments


class ShardActor:
    """A ShardWorker as Ray Data wants it: one batch of one shard in, one summary out."""

    def __init__(self, run: Run, options: WorkerOptions, num_sharing: int) -> None:
        self._run = run
        self._make_remote = partial(DecodersOnRay, num_sharing=num_sharing) if num_sharing else None
        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray has none
        self._node = f"{address}-{context.get_node_id()[:8]}"
        self._kept = KeptLines()
        logging.getLogger("imgcls").addHandler(self._kept)
        assigned: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call]  # nor here
        self._options = replace(options, num_cpus=int(assigned.get("CPU", 1)))
        if assigned.get("GPU", 0) and not os.environ.get(LOGICAL_GPUS):
            # "auto" would hold the GPU and compute on the CPU where the driver is broken.
            self._options = replace(self._options, device="cuda")
        self._starting = threading.Lock()
        self._worker: ShardWorker | None = None
        self._is_lost = False
        # Ray would restart an actor whose constructor fails, and hide the reason: the shards tell.
        with suppress(Exception):
            self._start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the one shard of this batch."""
        shard = Shard(
            shard_id=str(batch["shard_id"][0]),
            path=str(batch["path"][0]),
            row_group=int(batch["row_group"][0]),
            num_images=int(batch["num_images"][0]),
        )
        if self._is_lost:
            # Ray takes it for a crash, starts another actor, and gives it this shard.
            os._exit(1)
        try:
            summary = self._start().score(shard)
            self._is_lost |= summary.error_kind == DeviceFailedError.__name__
        except ImgclsError as error:
            summary = ShardSummary.of_error(shard, error)
        except Exception as error:  # noqa: BLE001 - Ray would take it for a worker that was lost
            log.warning("%s", traceback.format_exc())
            told = f"unexpected {type(error).__name__} in a worker: {error}"
            summary = ShardSummary.of_error(shard, ImgclsError(told))
        summary = replace(
            summary, node=self._node, actor=str(os.getpid()), log_lines=self._kept.take()
        )
        return {"summary": [record_text(summary).decode()]}

    def _start(self) -> ShardWorker:
        """Return the worker; one that the store kept from starting is tried again."""
        with self._starting:
            if self._worker is None:
                if self._options.device == "cuda":
                    refuse_without_cuda(self._node)
                plan = read_plan(self._run)
                assert plan is not None, "the driver wrote the plan before it started actors"
                self._worker = ShardWorker(plan, self._options, self._make_remote)
            return self._worker


def refuse_without_cuda(node: str) -> None:
    """Refuse to work with a GPU that torch cannot use.

    Raises:
        DeviceFailedError: with the node, and torch's reason.
    """
    import torch

    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "torch sees none"
    except Exception as error:  # noqa: BLE001 - whatever it says is the reason
        reason = describe_error(error)
    raise DeviceFailedError(
        f"node {node} holds a GPU for this actor that torch cannot use ({reason}). Mend its driver "
        "or take the node out; --device cpu scores without GPUs"
    )
