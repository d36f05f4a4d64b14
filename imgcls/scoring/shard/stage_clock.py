"""What the stages of a worker did: how much, how long, and what they waited for.

In: seconds of work, as the stages measure them. Out: per stage its items, and the seconds it was
busy, waiting for input and waiting for room. Invariant: a second of a stage's worker is in exactly
one of the three, so that summaries of several shards and workers simply add up, and two shards that
overlap in one worker are not counted twice.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

# In the order in which an image passes them. `rows` makes rows of predictions, `write` stores them.
STAGES: Final = ("get", "decode", "predict", "rows", "write")
# Beside `decode`, where there were any: images that other nodes decoded (remote_decode.py), and
# those that the GPU did (gpu_decode.py). Only counted: no decoder process took time for them.
DECODE_REMOTE: Final = "decode_remote"
DECODE_GPU: Final = "decode_gpu"
_ONLY_COUNTED: Final = {
    DECODE_REMOTE: "nodes without a GPU decoded",
    DECODE_GPU: "the GPU decoded",
}
# A model that waits longer than this share of its time for crops starves, if what makes them is at
# work for most of its own.
STARVES_FROM_FRACTION, AT_WORK_FROM_FRACTION = 0.2, 0.5
StageDicts = dict[str, dict[str, float]]

T = TypeVar("T")


@dataclass(frozen=True)
class StageTimes:
    """What one stage did. Seconds are those of all its workers together."""

    items: int = 0
    busy_s: float = 0.0
    waiting_for_input_s: float = 0.0
    waiting_for_room_s: float = 0.0
    workers: int = 1
    """How many worked at a time in one scoring worker: threads, processes or shards."""

    @property
    def total_s(self) -> float:
        """All seconds of all its workers."""
        return self.busy_s + self.waiting_for_input_s + self.waiting_for_room_s

    @property
    def busy_fraction(self) -> float:
        """Share of the time that it was at work; 0 before it began."""
        return self.busy_s / self.total_s if self.total_s else 0.0

    @property
    def items_per_s(self) -> float:
        """Items per second of wall-clock time, per scoring worker; 0 before it began."""
        return self.items * self.workers / self.total_s if self.total_s else 0.0


class StageClock:
    """Collects what the stages of one worker do; any thread may add to it.

    Args:
        decoder_busy_s: how long all decoders were at work since they began.
        predictor_busy_s: how long the model was, over all batches at a time.
        num_decoders: decoder processes.
        num_streams: batches that run through the model at a time.
        num_on_gpu: how many of the images decoded so far the GPU decoded.
    """

    def __init__(
        self,
        decoder_busy_s: Callable[[], float],
        predictor_busy_s: Callable[[], float],
        *,
        num_decoders: int,
        num_streams: int,
        num_on_gpu: Callable[[], int] = lambda: 0,
    ) -> None:
        self._num_on_gpu, self._counted_on_gpu = num_on_gpu, num_on_gpu()
        self._counters = {"decode": decoder_busy_s, "predict": predictor_busy_s}
        self._workers = {"decode": num_decoders, "predict": num_streams}
        self._counted_s = {stage: counter() for stage, counter in self._counters.items()}
        self._lock = threading.Lock()
        self._items = dict.fromkeys((*STAGES, *_ONLY_COUNTED), 0)
        self._busy_s = dict.fromkeys((*STAGES, *_ONLY_COUNTED), 0.0)
        self._get_room_s = 0.0
        self._num_bytes = 0
        self._num_shards = self._most_shards = 0
        self._since_s = 0.0

    @contextmanager
    def shard(self) -> Iterator[None]:
        """Count the time while shards are at work; those that overlap share it."""
        with self._lock:
            if self._num_shards == 0 and self._since_s == 0.0:
                self._since_s = time.perf_counter()
            self._num_shards += 1
            self._most_shards = max(self._most_shards, self._num_shards)
        try:
            yield
        finally:
            with self._lock:
                self._num_shards -= 1

    def add(self, stage: str, *, items: int = 0, busy_s: float = 0.0) -> None:
        """Count work of one of STAGES, or items of DECODE_REMOTE."""
        with self._lock:
            self._items[stage] += items
            self._busy_s[stage] += busy_s

    @contextmanager
    def busy(self, stage: str, items: int = 0) -> Iterator[None]:
        """Count the time inside as work of one of STAGES."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, items=items, busy_s=time.perf_counter() - start_s)

    def reads(self, results: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """Pass (index, body or error) on, counting the wait for each and until it is taken."""
        source = iter(results)
        items, num_bytes, busy_s, room_s = 0, 0, 0.0, 0.0
        now_s = time.perf_counter()
        try:
            while True:
                asked_s = now_s
                result = next(source, None)
                now_s = time.perf_counter()
                busy_s += now_s - asked_s
                if result is None:
                    return
                items += 1
                num_bytes += len(result[1]) if isinstance(result[1], bytes) else 0
                given_s = now_s
                yield result
                now_s = time.perf_counter()
                room_s += now_s - given_s
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
            # Once per shard: a lock per image would cost as much as all else here.
            self.add("get", items=items, busy_s=busy_s)
            with self._lock:
                self._get_room_s += room_s
                self._num_bytes += num_bytes

    def take(self) -> tuple[StageDicts, int]:
        """Return what was done since the last call, and the bytes read; then begin at 0 again."""
        with self._lock:
            for stage, counter in self._counters.items():
                before_s, self._counted_s[stage] = self._counted_s[stage], counter()
                self._busy_s[stage] = self._counted_s[stage] - before_s
            # Of another shard, whose images are counted when it ends, there may be more already.
            on_gpu = min(self._num_on_gpu() - self._counted_on_gpu, self._items["decode"])
            self._counted_on_gpu += on_gpu
            self._items["decode"] -= on_gpu
            self._items[DECODE_GPU] += on_gpu
            now_s = time.perf_counter()
            wall_s, self._since_s = now_s - self._since_s, now_s
            stages: StageDicts = {}
            room_fraction = _fraction(self._get_room_s, self._busy_s["get"])
            for stage in STAGES:
                busy_s = self._busy_s[stage]
                workers = self._workers.get(stage, self._most_shards)
                idle_s = max(0.0, wall_s * workers - busy_s)
                room_s = 0.0
                if stage == "get":
                    room_s = min(idle_s, self._get_room_s)
                elif stage == "decode":
                    # A decoder is idle for the same reason as its feeder, which reads.
                    room_s = idle_s * room_fraction
                times = StageTimes(self._items[stage], busy_s, idle_s - room_s, room_s, workers)
                stages[stage] = asdict(times)
                self._items[stage], self._busy_s[stage] = 0, 0.0
            for stage in _ONLY_COUNTED:
                if self._items[stage]:
                    stages[stage] = asdict(StageTimes(self._items[stage]))
                    self._items[stage] = 0
            num_bytes, self._num_bytes, self._get_room_s = self._num_bytes, 0, 0.0
            return stages, num_bytes


def _fraction(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest else 0.0


def add_stages(first: StageDicts, second: StageDicts) -> StageDicts:
    """Return the sum of two summaries' stages; `workers` is the larger one's."""
    total: StageDicts = {}
    for stage in {**first, **second}:
        one, other = (StageTimes(**stages.get(stage, {})) for stages in (first, second))  # type: ignore[arg-type]  # written by asdict: floats where counts are
        total[stage] = asdict(
            StageTimes(
                one.items + other.items,
                one.busy_s + other.busy_s,
                one.waiting_for_input_s + other.waiting_for_input_s,
                one.waiting_for_room_s + other.waiting_for_room_s,
                max(one.workers, other.workers),
            )
        )
    return total


def describe_bottleneck(stages: StageDicts) -> str:
    """Name the stage that the others wait for, in one line; "" before anything was done."""
    times = _by_busy_fraction(stages)
    if not any(of_stage.items for of_stage in times.values()):
        return ""
    (slowest, of_slowest), *others = times.items()
    rest = ", ".join(f"{stage} {of_stage.busy_fraction:.0%}" for stage, of_stage in others)
    elsewhere = [
        f"; {who} {stages[stage]['items']} images more"
        for stage, who in _ONLY_COUNTED.items()
        if stage in stages
    ]
    return (
        f"bottleneck: {slowest}, busy {of_slowest.busy_fraction:.0%} of its time at "
        f"{of_slowest.items_per_s:.1f} images/s per worker (others: {rest})" + "".join(elsewhere)
    )


def describe_starvation(stages: StageDicts) -> str:
    """Say that the model waits for crops because they can't be made faster; "" if it does not."""
    times = _by_busy_fraction(stages)
    if not times:
        return ""
    slowest, of_slowest = next(iter(times.items()))
    predict = times["predict"]
    waiting_fraction = predict.waiting_for_input_s / predict.total_s if predict.total_s else 0.0
    if (
        slowest not in ("get", "decode")
        or of_slowest.busy_fraction < AT_WORK_FROM_FRACTION
        or waiting_fraction < STARVES_FROM_FRACTION
    ):
        return ""
    return (
        f"the model waits for images {waiting_fraction:.0%} of its time, {slowest} is busy "
        f"{of_slowest.busy_fraction:.0%} of its"
    )


def _by_busy_fraction(stages: StageDicts) -> dict[str, StageTimes]:
    """Return the times of STAGES, the busiest first."""
    times = [
        (stage, StageTimes(**values))  # type: ignore[arg-type]  # see add_stages
        for stage, values in stages.items()
        if stage not in _ONLY_COUNTED
    ]
    return dict(sorted(times, key=lambda item: -item[1].busy_fraction))
