"""Score shards in this process, several at a time, with one model and one pool of decoders.

In: shards that have no commit yet. Out: a summary of each, in order of completion. Invariant: what
keeps the device or the store from working is told by summaries, as an actor tells it.
"""

import os
import socket
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace

from imgcls.errors import DeviceFailedError, StorageError
from imgcls.runs.plan import Plan, Shard
from imgcls.scoring.shard.worker import (
    SHARDS_IN_FLIGHT,
    ShardSummary,
    ShardWorker,
    WorkerOptions,
)


def run_locally(plan: Plan, options: WorkerOptions, todo: list[Shard]) -> Generator[ShardSummary]:
    """Score shards in this process, SHARDS_IN_FLIGHT at a time.

    It ends early where the device fails: nothing more comes of it in this process.
    """
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
