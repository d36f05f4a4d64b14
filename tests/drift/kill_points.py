"""Hold and release a night in forked processes that are killed before or after their n-th write.

`python -m tests.drift.kill_points SOURCE MODEL OUTPUT ROOT decisive|all` prints a JSON line each.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from imgcls import logs
from imgcls.config.scoring import NightlyConfig, ReleaseConfig
from imgcls.errors import ImgclsError
from imgcls.nightly import nightly
from imgcls.scoring import driver
from imgcls.scoring.planning import checks
from imgcls.scoring.publishing.hold import release
from imgcls.storage import remote
from imgcls.storage.stores import local
from tests.scoring.faults.crash_points import CLIENTS, WRITES, die_at

assert CLIENTS, "imported once, before any fork"
RUN = "nightly-2026-11-22-2"
# Of the names of what is written: those that decide what a next start does.
DECISIVE = ("held.json", "released.json")


def die_beside(name: str, when: str) -> None:
    """Patch every write of every store: one of this name kills this process."""

    def patched(write: Callable[..., str]) -> Callable[..., str]:
        def write_or_die(path: Any, *args: Any, **how: Any) -> str:
            is_it = str(path).endswith(name)
            if is_it and when == "before":
                os.kill(os.getpid(), 9)
            try:
                return write(path, *args, **how)
            finally:
                if is_it:
                    os.kill(os.getpid(), 9)

        return write_or_die

    for store in (local, remote):
        for each in WRITES:
            setattr(store, each, patched(getattr(store, each)))


def run(do: Callable[[], object], prepare: Callable[[], None] = lambda: None) -> int:
    """Do something in a forked process; return its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        prepare()
        try:
            do()
        except ImgclsError as error:
            os._exit(error.exit_code)
        except BaseException:  # noqa: BLE001 - told, and turned into the exit code
            logs.configure()
            driver.log.exception("it failed")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_visible(output: str) -> int:
    """Return how many rows a reader sees, in a process of its own: a fork wants no threads."""
    from imgcls.runs.published import list_published

    return sum(manifest.counts["rows"] for _, manifest in list_published(output))


def main(source: str, model: str, output: str, root: str, points: str) -> None:
    """Kill the night, then the release, at each point in turn."""
    checks.MIN_SHARD_SIZE = 12
    for number in itertools.count():
        for when in ("before", "after"):
            there = f"{root}/{number:03d}-{when}"
            shutil.copytree(output, there)
            config = NightlyConfig(
                source, model, there, date="2026-11-22", executor="local", carry=("camera",),
                shard_size=20, num_decoders=1, drift="hold",
            )  # fmt: skip
            name = DECISIVE[number % len(DECISIVE)]
            is_of_release = name == "released.json"

            def prepare(number: int = number, name: str = name, when: str = when) -> None:
                if points == "all":
                    die_at(number + 1, when, "")
                else:
                    die_beside(name, when)

            night = lambda config=config: nightly(config)  # noqa: E731
            let_go = lambda there=there: release(ReleaseConfig(there, RUN))  # noqa: E731
            kills_release = points == "all" or is_of_release
            killed = 0 if is_of_release and points != "all" else run(night, prepare)
            held = run(night)
            if held == 0:  # an earlier start held it: this one found nothing new
                held = run(lambda config=config: driver.refuse_held(driver.Run(config.output, RUN)))
            visible = count_visible(there)
            killed_release = run(let_go, prepare) if kills_release else 0
            released = run(let_go)
            record = {
                "output": there, "killed": killed if killed < 0 else killed_release or killed,
                "held": held, "visible": visible, "released": released,
            }  # fmt: skip
            print(json.dumps(record), flush=True)  # noqa: T201 - this program's output
        is_through = killed >= 0 and killed_release >= 0 and points == "all"
        if is_through or (points != "all" and number + 1 == len(DECISIVE)):
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
