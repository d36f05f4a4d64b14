"""Run a night in forked processes that are killed before or after their n-th write.

A program of its own, because a fork wants a process without threads: it imports everything once,
then forks per point. `python -m tests.scoring.faults.crash_points SOURCE MODEL OUTPUT_ROOT
[POINT ...]` prints one JSON line per point; without points it continues until a night comes
through untouched.
"""

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from imgcls import logs
from imgcls.config.scoring import NightlyConfig
from imgcls.nightly import nightly
from imgcls.scoring import driver
from imgcls.scoring.planning import checks
from imgcls.storage import remote
from imgcls.storage.stores import azure, gcs, local, s3

WRITES = ("put", "put_new", "put_if_match")
# Imported here, once, and not by each of hundreds of forks; none has made a client or a thread yet.
CLIENTS = (azure, gcs, s3)


def die_at(point: int, when: str) -> None:
    """Patch every write of every store: the `point`-th one kills this process."""
    counter = iter(range(1, 1_000_000))

    def patched(write: Callable[..., str]) -> Callable[..., str]:
        def write_or_die(*args: Any, **how: Any) -> str:
            is_the_point = next(counter) == point
            if is_the_point and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return write(*args, **how)
            finally:
                # Also after one that was refused, as the probe's are.
                if is_the_point:
                    os.kill(os.getpid(), signal.SIGKILL)

        return write_or_die

    for store in (local, remote):
        for name in WRITES:
            setattr(store, name, patched(getattr(store, name)))


def run_night(config: NightlyConfig, point: int = 0, when: str = "") -> int:
    """Run the night in a forked process; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        if point:
            die_at(point, when)
        try:
            nightly(config)
        except BaseException:  # noqa: BLE001 - told, and turned into the exit code
            logs.configure()
            driver.log.exception("the night failed")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(source: str, model: str, root: str, *points: str) -> None:
    """Kill at each point in turn, until a run comes through untouched; finish each killed one."""
    checks.MIN_SHARD_SIZE = 12
    for when in ("before", "after"):
        for point in map(int, points) if points else itertools.count(1):
            config = NightlyConfig(
                source,
                model,
                f"{root}/{when}-{point:03d}",
                date="2026-11-22",
                executor="local",
                shard_size=12,
                num_decoders=1,
            )
            killed = run_night(config, point, when)
            finished = run_night(config)
            record = {"output": config.output, "killed": killed, "finished": finished}
            print(json.dumps(record), flush=True)  # noqa: T201 - this program's output
            if killed == 0:
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
