"""Who scores the shards of a run: this process, or actors on a Ray cluster.

In: a ScoreConfig. Out: an Executor: how many workers it has, what they can read, and a summary per
shard. Invariant: neither torch nor Ray is imported where the flags and this machine do not ask for
them: `imgcls plan` asks the same executor as the night, and starts fast.
"""

import logging
from abc import abstractmethod
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imgcls import ray_cluster
from imgcls.closing import Closing
from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ConfigError
from imgcls.image.formats.abilities import Abilities, abilities_here
from imgcls.runs.plan import Plan, Shard
from imgcls.scoring.executors.placement import ActorRequest, lay_out_actors
from imgcls.scoring.planning.decoders import abilities_of_cluster

if TYPE_CHECKING:
    from imgcls.scoring.shard.worker import ShardSummary

log = logging.getLogger(__name__)

# Without one of these (NVIDIA, NVIDIA under WSL, AMD) torch finds no GPU.
_GPU_DRIVERS: Final = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


class Executor(Closing):
    """The workers of a run, inside a `with` block; what they need is opened at the first use."""

    def __init__(self, config: ScoreConfig) -> None:
        self._config = config
        self._request = actor_request(config)
        self._opened = ExitStack()

    @abstractmethod
    def count(self) -> int:
        """Return how many workers will share the shards, as far as can be told now.

        Raises:
            ConfigError: there is no room for what the flags ask for.
        """

    @abstractmethod
    def abilities(self) -> Abilities:
        """Return what the decoders of all workers can read."""

    @abstractmethod
    def run(self, plan: Plan, todo: list[Shard]) -> Generator["ShardSummary"]:
        """Score and commit shards, each by a ShardWorker; yield a summary of each, in any order.

        A shard may be tried twice or by two workers: its first commit counts. Close the generator
        before the block ends.
        """

    def close(self) -> None:
        """End what was opened for the workers."""
        self._opened.close()


class LocalExecutor(Executor):
    """This process is the one worker."""

    def count(self) -> int:
        """Return 1."""
        return 1

    def abilities(self) -> Abilities:
        """Return what this process can read."""
        return abilities_here()

    def run(self, plan: Plan, todo: list[Shard]) -> Generator["ShardSummary"]:
        """Score shards here."""
        from imgcls.scoring.executors.local import run_locally
        from imgcls.scoring.shard.worker import WorkerOptions

        warn_of_idle_gpus(self._config.device)
        return run_locally(plan, WorkerOptions.of(self._config), todo)


class RayExecutor(Executor):
    """Actors of a Ray cluster, which is connected to at the first use."""

    _num_workers = 0

    def count(self) -> int:
        """Return how many actors have room.

        Raises:
            ConfigError: the cluster cannot hold the actors asked for.
        """
        if not self._num_workers:
            resources = self._opened.enter_context(ray_cluster.connected())
            self._num_workers = len(lay_out_actors(resources, self._request))
        return self._num_workers

    def abilities(self) -> Abilities:
        """Return what every node can read."""
        self.count()
        return abilities_of_cluster()

    def run(self, plan: Plan, todo: list[Shard]) -> Generator["ShardSummary"]:
        """Score shards on the actors."""
        self.count()
        from imgcls.scoring.executors.ray_data import run_on_ray
        from imgcls.scoring.shard.worker import WorkerOptions

        return run_on_ray(self._request, plan, WorkerOptions.of(self._config), todo)


# By the names of --executor.
EXECUTORS: Final[dict[str, type[Executor]]] = {"local": LocalExecutor, "ray": RayExecutor}


def open_executor(config: ScoreConfig) -> Executor:
    """Return the executor that the flags name, for a `with` block.

    Raises:
        ConfigError: there is none of that name, or no cluster could give what the flags ask for.
    """
    return EXECUTORS[name_executor(config.executor, config.device)](config)


def name_executor(asked: str, device: str) -> str:
    """Return a name of EXECUTORS for the value of --executor.

    auto takes Ray inside a Ray job, when RAY_ADDRESS is set, and on a machine with several GPUs,
    because one process works with one of them.

    Raises:
        ConfigError: there is none of that name.
    """
    if asked == "auto":
        is_on_ray = ray_cluster.in_cluster() or (device != "cpu" and num_gpus_here() > 1)
        return "ray" if is_on_ray else "local"
    if asked not in EXECUTORS:
        raise ConfigError(f"--executor {asked}: is not one of auto, {', '.join(EXECUTORS)}")
    return asked


def num_gpus_here() -> int:
    """Return how many GPUs torch can use on this machine."""
    if not any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def warn_of_idle_gpus(device: str) -> None:
    """Say so where this process works with one of several GPUs."""
    num_gpus = num_gpus_here()
    if device != "cpu" and num_gpus > 1:
        log.warning(
            "--executor local works with one of the %d GPUs of this machine; --executor ray takes "
            "all of them",
            num_gpus,
        )


def actor_request(config: ScoreConfig) -> ActorRequest:
    """Return what the flags ask for.

    Raises:
        ConfigError: no cluster could give that.
    """
    request = ActorRequest(
        config.num_actors, config.cpus_per_actor, config.gpus_per_actor, config.device
    )
    request.check()
    return request
