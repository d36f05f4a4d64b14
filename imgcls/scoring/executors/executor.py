"""Who scores the shards of a run: this process, or actors on a Ray cluster.

In: a ScoreConfig. Out: how many workers there are, and a summary per shard from any of them.
Invariant: Ray is neither imported nor connected to before it is needed, and what was connected is
let go when the `with` block ends.
"""

import logging
import os
import socket
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace

from imgcls import ray_cluster
from imgcls.closing import Closing
from imgcls.config.scoring import ScoreConfig
from imgcls.errors import DeviceFailedError, StorageError
from imgcls.image.formats.abilities import Abilities
from imgcls.runs.plan import Plan, Shard
from imgcls.scoring.executors.placement import lay_out_actors
from imgcls.scoring.executors.where import actor_request, num_gpus_here, use_ray
from imgcls.scoring.planning.decoders import abilities_of
from imgcls.scoring.shard.worker import (
    SHARDS_IN_FLIGHT,
    ShardSummary,
    ShardWorker,
    WorkerOptions,
)

log = logging.getLogger(__name__)


class Workers(Closing):
    """The workers of a config, inside a `with` block; connected at the first use."""

    def __init__(self, config: ScoreConfig) -> None:
        self._config = config
        self._request = actor_request(config)
        self._num_workers = 0
        self._opened = ExitStack()

    def count(self) -> int:
        """Return how many workers will share the shards, as far as can be told now.

        Raises:
            ConfigError: the cluster cannot hold the actors asked for.
        """
        if not self._num_workers:
            self._num_workers = 1
            if self._uses_ray():
                resources = self._opened.enter_context(ray_cluster.connected())
                self._num_workers = len(lay_out_actors(resources, self._request))
        return self._num_workers

    def abilities(self) -> Abilities:
        """Return what the decoders of all workers can read."""
        self.count()
        return abilities_of(on_cluster=self._uses_ray())

    def run(self, plan: Plan, todo: list[Shard]) -> Generator[ShardSummary]:
        """Score shards; yield a summary of each, in any order. Close it before the block ends."""
        self.count()
        options = worker_options(self._config)
        if not self._uses_ray():
            return run_locally(plan, options, todo)
        from imgcls.scoring.executors.ray_data import run_on_ray

        return run_on_ray(self._request, plan, options, todo)

    def _uses_ray(self) -> bool:
        return use_ray(self._config.executor, self._config.device)

    def close(self) -> None:
        """End what was opened for the workers."""
        self._opened.close()


def warn_of_idle_gpus(device: str) -> None:
    """Say so where this process works with one of several GPUs."""
    num_gpus = num_gpus_here()
    if device != "cpu" and num_gpus > 1:
        log.warning(
            "--executor local works with one of the %d GPUs of this machine; --executor ray takes "
            "all of them",
            num_gpus,
        )


def worker_options(config: ScoreConfig) -> WorkerOptions:
    """Pick the values of a config that a worker needs, with the CPUs of this process."""
    return WorkerOptions(
        num_cpus=len(os.sched_getaffinity(0)),
        device=config.device,
        batch_size=config.batch_size,
        num_decoders=config.num_decoders,
        cpu_helpers=config.cpu_helpers,
    )


def run_locally(plan: Plan, options: WorkerOptions, todo: list[Shard]) -> Generator[ShardSummary]:
    """Score shards in this process, SHARDS_IN_FLIGHT at a time.

    It ends early where the device fails: nothing more comes of it in this process.
    """
    warn_of_idle_gpus(options.device)
    here = {"node": socket.gethostname(), "actor": str(os.getpid())}
    try:
        made = ShardWorker(plan, options)
    except (StorageError, DeviceFailedError) as error:
        # As an actor tells it: by its shards, which wait for the next start.
        yield from (ShardSummary.of_error(shard, error) for shard in todo)
        return
    with made as worker:
        threads = ThreadPoolExecutor(SHARDS_IN_FLIGHT, thread_name_prefix="shard")
        try:
            for summary in _as_completed(threads, worker, todo):
                yield replace(summary, node=here["node"], actor=here["actor"])
                if summary.error_kind == DeviceFailedError.__name__:
                    return
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _as_completed(
    threads: ThreadPoolExecutor, worker: ShardWorker, todo: Iterable[Shard]
) -> Iterator[ShardSummary]:
    running: set[Future[ShardSummary]] = set()
    for shard in todo:
        running.add(threads.submit(worker.score, shard))
        if len(running) > SHARDS_IN_FLIGHT:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    for future in running:
        yield future.result()
