"""Decode and preprocess in child processes, so that no image can take the job with it.

In: (index, encoded bytes) from any iterable. Out: one `Decoded` per item, in order of completion.
Invariant: one result for every item, equal bit for bit to `decode_one` in process, whatever the
number of children. What a `TaskTaker` does instead is up to that.

A pool starts its children at once and returns: make it before the model loads. Several threads may
share it.
"""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from imgcls.closing import Closing
from imgcls.errors import ConfigError, DecodeError
from imgcls.image.crops import Crop, decode_one
from imgcls.image.decoders.memory import memory_limits, pool_memory_bytes
from imgcls.image.decoders.scheduler import WALL_LIMIT_S, Engine, Task
from imgcls.image.facts.source import Look
from imgcls.image.fit.view import ALL, Part
from imgcls.image.formats.sniff import family_of
from imgcls.image.spec import DecodeSpec, PreprocessSpec

__all__ = ["Crop", "Decoded", "DecoderPool", "decode_one"]

_MIN_IN_FLIGHT: Final = 64
_IN_FLIGHT_PER_PROCESS: Final = 16
_MAX_IN_FLIGHT_BYTES: Final = 256 << 20
# Of crops that nobody has taken yet: a picture of 50 megapixels is 200 MB of tiles.
_MAX_DONE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What became of one item: crops, or the reason why there are none."""

    index: int
    error: Exception | None
    crops: list[Crop]
    format: str | None = None
    """Family by content, see sniff.py; None where it tells nothing or nothing was read."""


class TaskTaker(Protocol):
    """Does some of a pool's tasks instead of its processes. Thread-safe."""

    @property
    def capacity(self) -> int:
        """How many tasks it can have at a time."""
        ...

    def num_decoded(self) -> int:
        """Return how many tasks it has done so far."""
        ...

    def take(self, task: Task, give_back: Callable[[Task], None]) -> bool:
        """Take a task, or return False; later finish it or give it back, from any thread."""
        ...


class DecoderPool(Closing):
    """A few persistent decoder processes.

    Use it as a context manager, or call `close`; children also end when this process ends in any
    way. All together they take at most `memory_bytes`, by default their share of this machine; an
    image too large for a process's part of it waits until no other such one is decoded.
    """

    def __init__(
        self,
        decode_spec: DecodeSpec,
        preprocess_spec: PreprocessSpec,
        num_processes: int,
        *,
        wall_limit_s: float = WALL_LIMIT_S,
        memory_bytes: int = 0,
        look: Look = "none",
    ) -> None:
        if num_processes < 1:
            raise ConfigError(f"num_decoders={num_processes}: a decoder pool needs at least one")
        if preprocess_spec.channels != decode_spec.num_channels:
            raise ConfigError(
                f"the decode spec gives {decode_spec.num_channels} channels, "
                f"the preprocess spec takes {preprocess_spec.channels}"
            )
        self._num_processes = num_processes
        self.pixel_type: Final = decode_spec.pixel_type
        self.memory: Final = memory_limits(
            num_processes,
            decode_spec.max_pixels,
            memory_bytes or pool_memory_bytes(num_processes),
        )
        self._engine = Engine(
            decode_spec, preprocess_spec, num_processes, wall_limit_s, self.memory, look
        )
        self._max_in_flight = max(_MIN_IN_FLIGHT, _IN_FLIGHT_PER_PROCESS * num_processes)
        self._taker: TaskTaker | None = None
        self._finalize = weakref.finalize(self, self._engine.close)

    def decode_many(
        self,
        items: Iterable[tuple[int, bytes | BaseException]],
        part_of: Callable[[int], Part] = lambda _: ALL,
    ) -> Iterator[Decoded]:
        """Decode items as they come; yield results as they are done.

        A thread pulls the items, a bounded number ahead of the consumer. An exception among them
        comes back as `Decoded.error`; one raised by the iterable itself is raised here. Closing the
        generator early closes the iterable, where that can be closed.

        Raises:
            ImgclsError: the pool is closed, or its processes do not start.
        """
        stream = _Stream(self._submit, items, self._max_in_flight, part_of)
        try:
            yield from stream.results()
        finally:
            stream.cancel()

    def share_with(self, taker: TaskTaker) -> None:
        """Let `taker` have every task first, from the next `decode_many` on; the rest is done here.

        So each side has as much as it can do, whichever is faster.
        """
        self._taker = taker
        self._max_in_flight += taker.capacity

    def _submit(self, task: Task) -> None:
        if self._taker is None or not self._taker.take(task, self._engine.submit):
            self._engine.submit(task)

    def num_taken(self) -> int:
        """Return how many images were decoded elsewhere than in the children, for statistics."""
        return 0 if self._taker is None else self._taker.num_decoded()

    @property
    def num_processes(self) -> int:
        """How many children there are."""
        return self._num_processes

    def busy_s(self) -> float:
        """Return the seconds that all children together were at work so far, for statistics."""
        return self._engine.busy_s()

    def unconfined(self) -> str:
        """Return what the sandbox of the children lacks, "" where it is whole."""
        return self._engine.unconfined()

    def pids(self) -> list[int]:
        """Return the process ids of the children, for statistics."""
        return self._engine.pids()

    def close(self) -> None:
        """End the children; a `decode_many` still running raises."""
        self._finalize()


@dataclass(frozen=True, slots=True)
class _Ended:
    """The feeder's last word: how many items there were, or why there will be no more."""

    num_items: int
    error: BaseException | None


class _Stream:
    """One call of `decode_many`: its feeder thread, its results, its bound on both."""

    def __init__(
        self,
        submit: Callable[[Task], None],
        items: Iterable[tuple[int, bytes | BaseException]],
        max_in_flight: int,
        part_of: Callable[[int], Part],
    ) -> None:
        self._submit, self._items, self._part_of = submit, items, part_of
        self._max_in_flight = max_in_flight
        self._done: queue.SimpleQueue[tuple[Decoded, int] | _Ended] = queue.SimpleQueue()
        self._is_cancelled = False
        self._num_in_flight = self._bytes_in_flight = self._bytes_done = 0
        self._room = threading.Condition()
        feeder = threading.Thread(target=self._feed, name="imgcls-decode-feeder", daemon=True)
        feeder.start()

    def results(self) -> Iterator[Decoded]:
        num_yielded, num_items = 0, None
        while num_yielded != num_items:
            match self._done.get():
                case _Ended(error=None) as end:
                    num_items = end.num_items
                case _Ended(error=error):
                    assert error is not None
                    raise error
                case (decoded, num_bytes):
                    with self._room:
                        self._num_in_flight -= 1
                        self._bytes_in_flight -= num_bytes
                        was_full = self._bytes_done >= _MAX_DONE_BYTES
                        self._bytes_done -= _num_bytes(decoded)
                        # In bursts: a change of threads costs as much as feeding an image does.
                        if was_full or self._num_in_flight <= self._max_in_flight * 3 // 4:
                            self._room.notify()
                    num_yielded += 1
                    yield decoded

    def cancel(self) -> None:
        with self._room:
            self._is_cancelled = True
            self._room.notify()

    def _feed(self) -> None:
        num_items = 0
        try:
            for index, item in self._items:
                if not self._wait_for_room(len(item) if isinstance(item, bytes) else 0):
                    break
                num_items += 1
                self._start(index, item)
            self._done.put(_Ended(num_items, None))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that consumes
            self._done.put(_Ended(num_items, error))
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                # The consumer has gone, or has the first error already.
                with contextlib.suppress(Exception):
                    close()

    def _wait_for_room(self, num_bytes: int) -> bool:
        """Wait until one more item fits, one larger than the bound alone; False when cancelled."""

        def has_room() -> bool:
            fits = self._bytes_in_flight + num_bytes <= _MAX_IN_FLIGHT_BYTES
            fits = fits and self._bytes_done < _MAX_DONE_BYTES
            return self._num_in_flight == 0 or (fits and self._num_in_flight < self._max_in_flight)

        with self._room:
            self._room.wait_for(lambda: self._is_cancelled or has_room())
            self._num_in_flight += 1
            self._bytes_in_flight += num_bytes
            return not self._is_cancelled

    def _start(self, index: int, item: bytes | BaseException) -> None:
        if isinstance(item, Exception):
            self._done.put((Decoded(index, item, []), 0))
            return
        if isinstance(item, BaseException):  # KeyboardInterrupt and its like are nobody's row
            raise item

        def finish(result: list[Crop] | Exception) -> None:
            if isinstance(result, list):
                decoded = Decoded(index, None, result, family_of(item))
                with self._room:
                    self._bytes_done += _num_bytes(decoded)
                self._done.put((decoded, len(item)))
            elif isinstance(result, DecodeError):
                self._done.put((Decoded(index, result, [], family_of(item)), len(item)))
            else:
                self._done.put(_Ended(0, result))

        self._submit(Task(item, finish, lambda: not self._is_cancelled, self._part_of(index)))


def _num_bytes(decoded: Decoded) -> int:
    return sum(crop.x_CHW.nbytes for crop in decoded.crops)
