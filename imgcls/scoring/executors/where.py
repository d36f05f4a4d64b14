"""Whether a run is scored in this process or on Ray, and by how many workers.

In: the flags. Out: plain values. Invariant: neither torch nor Ray is imported where the flags and
this machine do not ask for them: `imgcls plan` tells what a night would do, and starts fast.
"""

from pathlib import Path
from typing import Final

from imgcls import ray_cluster
from imgcls.config.scoring import ScoreConfig
from imgcls.scoring.executors.placement import ActorRequest, lay_out_actors

# Without one of these (NVIDIA, NVIDIA under WSL, AMD) torch finds no GPU.
_GPU_DRIVERS: Final = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def use_ray(executor: str, device: str = "auto") -> bool:
    """Resolve --executor.

    auto takes Ray inside a Ray job, when RAY_ADDRESS is set, and on a machine with several GPUs,
    because one process works with one of them.
    """
    if executor != "auto":
        return executor == "ray"
    return ray_cluster.in_cluster() or (device != "cpu" and num_gpus_here() > 1)


def num_gpus_here() -> int:
    """Return how many GPUs torch can use on this machine."""
    if not any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


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


def count_workers(config: ScoreConfig) -> int:
    """Return how many workers would share the shards of a run, as far as can be told now.

    Raises:
        ConfigError: the cluster cannot hold the actors asked for.
    """
    request = actor_request(config)
    if not use_ray(config.executor, config.device):
        return 1
    with ray_cluster.connected() as resources:
        return len(lay_out_actors(resources, request))
