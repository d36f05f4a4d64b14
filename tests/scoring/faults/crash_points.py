"""Run a night in forked processes that are killed before or after their n-th write.

A program of its own, because a fork wants a process without threads: it imports everything once,
then forks per point. `python -m tests.scoring.faults.crash_points SOURCE MODEL OUTPUT_ROOT` prints
a line of JSON per point, until a night comes through untouched. Points may be named after it;
`--about TEXT` counts only writes with TEXT in their name, `--earlier OUTPUT` begins each night in a
copy of that one; `--write-tiles`, `--heatmaps all`, `--unit KEY` and `--delta` go to the night.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from imgcls import logs
from imgcls.config.scoring import NightlyConfig
from imgcls.nightly import nightly
from imgcls.scoring import driver
from imgcls.scoring.planning import checks
from imgcls.scoring.publishing import lease
from imgcls.scoring.reporting import progress_file
from imgcls.storage import remote
from imgcls.storage.stores import azure, gcs, local, s3

WRITES = ("put", "put_new", "put_if_match")
# Imported here, once, and not by each of hundreds of forks; none has made a client or a thread yet.
CLIENTS = (azure, gcs, s3)


def die_at(point: int, when: str, about: str) -> None:
    """Patch every write of every store: the `point`-th one about something kills this process."""
    counter = iter(range(1, 1_000_000))

    def patched(write: Callable[..., str]) -> Callable[..., str]:
        def write_or_die(name: str, *args: Any, **how: Any) -> str:
            is_the_point = about in name and next(counter) == point
            if is_the_point and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return write(name, *args, **how)
            finally:
                # Also after one that was refused, as the probe's are.
                if is_the_point:
                    os.kill(os.getpid(), signal.SIGKILL)

        return write_or_die

    for store in (local, remote):
        for name in WRITES:
            setattr(store, name, patched(getattr(store, name)))


def run_night(config: NightlyConfig, point: int = 0, when: str = "", about: str = "") -> int:
    """Run the night in a forked process; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        if point:
            die_at(point, when, about)
        try:
            nightly(config)
        except BaseException:  # noqa: BLE001 - told, and turned into the exit code
            logs.configure()
            driver.log.exception("the night failed")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(arguments: Sequence[str]) -> None:
    """Kill at each point in turn, until a run comes through untouched; finish each killed one."""
    parser = argparse.ArgumentParser()
    for name in ("source", "model", "root"):
        parser.add_argument(name)
    parser.add_argument("points", nargs="*", type=int)
    parser.add_argument("--about", default="")
    parser.add_argument("--write-tiles", action="store_true")
    parser.add_argument("--heatmaps", default="none")
    parser.add_argument("--unit", default="")
    parser.add_argument("--delta", action="store_true")
    parser.add_argument("--earlier", default="")
    given = parser.parse_args(arguments)
    checks.MIN_SHARD_SIZE = 12
    # On a busy machine a night that lasts would write once more.
    progress_file.WRITE_EVERY_S = lease.HEARTBEAT_S = 3600.0
    for when in ("before", "after"):
        for point in given.points or itertools.count(1):
            config = NightlyConfig(
                given.source,
                given.model,
                f"{given.root}/{when}-{point:03d}",
                date="2026-11-22",
                executor="local",
                shard_size=12,
                num_decoders=1,
                write_tiles=given.write_tiles,
                heatmaps=given.heatmaps,
                unit=given.unit,
                delta=given.delta,
            )
            if given.earlier:
                shutil.copytree(given.earlier, config.output)
            killed = run_night(config, point, when, given.about)
            finished = run_night(config)
            record = {"output": config.output, "killed": killed, "finished": finished}
            print(json.dumps(record), flush=True)  # noqa: T201 - this program's output
            if killed == 0:
                break


if __name__ == "__main__":
    main(sys.argv[1:])
