"""Start each of some runs twice at once, in forked processes.

A program of its own, as crash_points.py is. `python -m tests.scoring.faults.forked_twins SOURCE
MODEL OUTPUT COUNT` prints one JSON line per pair: the exit codes of both.
"""

import json
import os
import sys

from imgcls import logs
from imgcls.config.scoring import ScoreConfig
from imgcls.scoring import driver
from imgcls.scoring.planning import checks


def start(config: ScoreConfig) -> int:
    """Fork a process that scores; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            driver.score(config)
        except BaseException:  # noqa: BLE001 - told, and turned into the exit code
            logs.configure()
            driver.log.exception("the run failed")
            os._exit(1)
        os._exit(0)
    return pid


def main(source: str, model: str, output: str, count: str) -> None:
    """Run the pairs one after the other, the two of each together."""
    checks.MIN_SHARD_SIZE = 8
    for number in range(int(count)):
        config = ScoreConfig(
            source,
            model,
            output,
            run_id=f"run-{number:02d}",
            date="2026-11-22",
            executor="local",
            shard_size=8,
            num_decoders=1,
        )
        twins = [start(config), start(config)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in twins]
        print(json.dumps(codes), flush=True)  # noqa: T201 - this program's output


if __name__ == "__main__":
    main(*sys.argv[1:])
