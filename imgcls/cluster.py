"""Connect to Ray: the cluster we are on, or one of our own that ends with us.

In: the environment. Out: a connected driver and what the cluster has. Invariant: a Ray that we did
not start is never stopped, and one that we started leaves no process and no folder behind.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Ray Data and Ray Train print their own progress to stdout, which belongs to our one JSON line.
_QUIET_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


MAX_TEMP_DIR_CHARS = 24


@dataclass(frozen=True)
class ClusterResources:
    """What is there to schedule on, over all living nodes."""

    num_nodes: int
    num_cpus: int
    num_gpus: int


def in_cluster() -> bool:
    """Return whether this process was started inside a Ray job or pointed at a cluster."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


@contextmanager
def connected() -> Iterator[ClusterResources]:
    """Connect this process as a Ray driver, to a Ray of its own where there is no cluster."""
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield _resources()
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
        yield _resources()
    finally:
        ray.shutdown()
        if temp_dir:
            shutil.rmtree(temp_dir, ignore_errors=True)


def _resources() -> ClusterResources:
    import ray

    total = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray has no types here
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # nor here
    return ClusterResources(
        num_nodes=len([node for node in nodes if node["Alive"]]),
        num_cpus=int(total.get("CPU", 0)),
        num_gpus=int(total.get("GPU", 0)),
    )
