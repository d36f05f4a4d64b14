"""The parent's side: one thread that feeds decoder processes, watches and replaces them.

In: tasks from any thread. Out: one call of `task.finish` per task, from the engine's thread.
Invariant: every accepted task is finished exactly once, whatever becomes of the processes.

    task -> waiting -> a process -> crops or error -> finish
                  ^         | died: the task it was at, once more, alone; again: decoder_crash
                  |         | needs more memory than its share: once more, alone
                  +---------+ its other tasks: back in line
                            | a frame beyond WALL_LIMIT_S: killed, timeout
"""

import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from imgcls.errors import (
    DecoderCrashError,
    DecodeTimeoutError,
    ImageTooLargeError,
    ImgclsError,
)
from imgcls.image.crops import Crop
from imgcls.image.decoders.memory import MemoryLimits
from imgcls.image.decoders.process import DecoderProcess
from imgcls.image.decoders.protocol import error_from
from imgcls.image.facts.source import Look
from imgcls.image.fit.view import ALL, Part
from imgcls.image.spec import DecodeSpec, PreprocessSpec

WALL_LIMIT_S: Final = 10.0
_START_LIMIT_S: Final = 60.0
_MAX_FAILED_STARTS: Final = 3
_DYING_S: Final = 2.0  # a child that cannot start tells why, then ends
_CHECK_EVERY_S: Final = 0.1

# What comes of a message that no child of ours writes.
_MAD: Final = (ValueError, LookupError, TypeError, RecursionError, OverflowError)

_log = logging.getLogger(__name__)


class Task:
    """One image on its way through the engine."""

    __slots__ = ("data", "finish", "is_alone", "is_wanted", "part", "was_crashed_on")

    def __init__(
        self,
        data: bytes,
        finish: Callable[[list[Crop] | Exception], None],
        is_wanted: Callable[[], bool],
        part: Part = ALL,
    ) -> None:
        self.data, self.finish, self.is_wanted, self.part = data, finish, is_wanted, part
        self.was_crashed_on = False
        self.is_alone = False  # wants a process with nothing else in it, and the most memory


class Engine:
    """Owns the processes; all its state but the inbox belongs to its thread."""

    def __init__(
        self,
        decode_spec: DecodeSpec,
        preprocess_spec: PreprocessSpec,
        num_processes: int,
        wall_limit_s: float,
        memory: MemoryLimits,
        look: Look,
    ) -> None:
        self._specs, self._look = (decode_spec, preprocess_spec), look
        self._memory = memory
        self._unconfined: str | None = None  # why there is no sandbox, once a process has told
        self._wall_limit_s = wall_limit_s
        self._inbox: deque[Task] = deque()
        self._waiting: deque[Task] = deque()
        self._alone: deque[Task] = deque()
        self._failed_starts = 0
        self._failure: Exception | None = None
        self._lock = threading.Lock()  # of inbox, failure and wake_fd: no task comes after the end
        self._selector = selectors.DefaultSelector()
        self._has_room = True  # for another task in some process, when last looked
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._processes: list[DecoderProcess[Task]] = []
        self._unsent: set[DecoderProcess[Task]] = set()
        self._busy_s_of_replaced = 0.0
        self._num_processes = num_processes
        self._next_check_s = 0.0
        self._is_started = threading.Event()
        self._is_confinement_known = threading.Event()
        self._thread = threading.Thread(target=self._run, name="imgcls-decoders", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Accept a task from any thread; after the end it is finished at once with the reason."""
        with self._lock:
            failure = self._failure
            if failure is None:
                self._inbox.append(task)
        if failure is not None:
            task.finish(failure)
        elif self._has_room:  # else it looks by itself when a process is done with something
            self._wake()

    def close(self) -> None:
        """Kill the processes, finish what is left with an error, and join the thread."""
        self._end(ImgclsError("the decoder pool is closed"))
        if threading.current_thread() is not self._thread:  # where garbage collection may call it
            self._thread.join()

    def pids(self) -> list[int]:
        """Return the process ids of the children."""
        self._is_started.wait()
        return [process.pid for process in self._processes]

    def unconfined(self) -> str:
        """Return what the sandbox of the children lacks, "" for nothing; wait for the first one."""
        self._is_confinement_known.wait()
        if self._unconfined is None:
            assert self._failure is not None
            raise self._failure
        return self._unconfined

    def busy_s(self) -> float:
        """Return the seconds that all children together were at work so far, for statistics."""
        return self._busy_s_of_replaced + sum(p.busy_s for p in list(self._processes))

    def _wake(self) -> None:
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _end(self, failure: Exception) -> None:
        with self._lock:
            self._failure = self._failure or failure
        self._wake()

    def _run(self) -> None:
        try:
            # Here, for a child dies with the thread that started it, see child.main.
            for _ in range(self._num_processes):
                self._add_process()
            self._is_started.set()
            while self._failure is None:
                self._dispatch()
                is_idle = all(p.is_ready and not p.tasks for p in self._processes)
                for key, _ in self._selector.select(None if is_idle else _CHECK_EVERY_S):
                    if key.data is None:
                        os.eventfd_read(self._wake_fd)
                    else:
                        self._serve(key.data)
                self._stop_overdue()
        except Exception as error:  # noqa: BLE001 - whoever waits for results must learn why none will come
            self._end(error)
        finally:
            self._shut_down()

    def _dispatch(self) -> None:
        self._has_room = True  # before the look at the inbox: what comes after it wakes us
        while self._inbox:
            self._accept(self._inbox.popleft())
        if not self._waiting and not self._alone:
            return
        free = [p for p in self._processes if p.has_room and not self._is_trying_alone(p)]
        if self._alone and not self._is_memory_taken():
            reserved = min(self._processes, key=_num_tasks)
            if reserved.is_ready and not reserved.tasks:
                self._give(reserved, self._alone.popleft())
            free = [p for p in free if p is not reserved]
        while self._waiting and free:
            task = self._waiting.popleft()
            if task.is_wanted():
                emptiest = min(free, key=_num_tasks)
                self._give(emptiest, task)
                if not emptiest.has_room:
                    free.remove(emptiest)
        self._has_room = bool(free)
        for process in self._unsent:
            process.flush()
            self._watch(process)
        self._unsent.clear()

    def _accept(self, task: Task) -> None:
        num_bytes, most_bytes = len(task.data), self._memory.most_file_bytes
        if num_bytes > most_bytes:
            task.finish(ImageTooLargeError(
                f"a file of {num_bytes} bytes, a decoder process takes {most_bytes}"
            ))  # fmt: skip
        elif self._memory.is_shared and num_bytes > self._memory.everyday_file_bytes:
            self._put_alone(task)
        else:
            self._waiting.append(task)

    def _put_alone(self, task: Task) -> None:
        task.is_alone = True
        self._alone.append(task)

    def _is_memory_taken(self) -> bool:
        """True while some process has more than its share, where that is for one at a time."""
        return self._memory.is_shared and any(map(self._is_trying_alone, self._processes))

    def _is_trying_alone(self, process: DecoderProcess[Task]) -> bool:
        return bool(process.tasks) and process.tasks[0][0].is_alone

    def _give(self, process: DecoderProcess[Task], task: Task) -> None:
        process.give(task, task.data, task.part, is_large=task.is_alone)
        self._unsent.add(process)

    def _watch(self, process: DecoderProcess[Task]) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.has_unsent else 0)
        if self._selector.get_key(process.socket).events != wanted:
            self._selector.modify(process.socket, wanted, process)

    def _serve(self, process: DecoderProcess[Task]) -> None:
        process.flush()
        try:
            for message in process.receive():
                self._take_message(process, message)
        except (EOFError, *_MAD):  # dead, or mad
            self._replace(process)
            return
        self._watch(process)

    def _take_message(self, process: DecoderProcess[Task], message: dict[str, Any]) -> None:
        if "ready" in message:
            process.is_ready = True
            self._failed_starts = 0
            self._take_confinement(str(message["unconfined"]))
            return
        for answer in message["answers"]:
            self._take_answer(process, answer)

    def _take_confinement(self, unconfined: str) -> None:
        if unconfined and self._unconfined is None:
            _log.warning("decoder processes work without their sandbox: %s", unconfined)
        self._unconfined = unconfined
        self._is_confinement_known.set()

    def _take_answer(self, process: DecoderProcess[Task], message: dict[str, Any]) -> None:
        process.check_first(message["slot"])
        if "needs_more" in message:
            task, _ = process.finish_first([])
            if task.is_alone:
                raise ValueError("more than the most")
            self._put_alone(task)
            return
        if "status" in message:
            error = error_from(message)
            task, _ = process.finish_first([])
            task.finish(error)
            return
        sources = list(message["crops"])
        if not 1 <= len(sources) <= process.slot_crops:
            raise ValueError(f"{len(sources)} crops")
        task, crops = process.finish_first(sources)
        task.finish(crops)

    def _replace(self, process: DecoderProcess[Task], *, overdue_at_s: float | None = None) -> None:
        """End a process and start another.

        Args:
            process: the one to end.
            overdue_at_s: when its work was found to be overdue, monotonic; None where it died.
        """
        self._selector.unregister(process.socket)
        self._processes.remove(process)
        is_starting = not process.is_ready and overdue_at_s is None
        how = process.kill(grace_s=_DYING_S if is_starting else 0.0)
        self._busy_s_of_replaced += process.busy_s
        if not process.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise ImgclsError(
                    f"decoder processes do not start ({how}, {self._failed_starts} times in a "
                    "row): what they say is on stderr"
                )
        tasks = [task for task, _, _ in process.tasks]
        if tasks:
            culprit = tasks.pop(process.index_at_work)
            where = process.at_frame
            if overdue_at_s is not None:
                limit_s = process.overdue_s(self._wall_limit_s, overdue_at_s)
                if limit_s:
                    culprit.finish(DecodeTimeoutError(f"not decoded within {limit_s:g} s{where}"))
                else:  # it was done with that one before it was killed
                    tasks.insert(0, culprit)
            elif culprit.was_crashed_on:
                culprit.finish(
                    DecoderCrashError(f"the decoder process died on it twice ({how}{where})")
                )
            else:
                culprit.was_crashed_on = True
                self._put_alone(culprit)
            for task in reversed(tasks):
                (self._alone if task.is_alone else self._waiting).appendleft(task)
            _log.warning("a decoder process died (%s); it is replaced", how)
        self._add_process()

    def _add_process(self) -> None:
        process = DecoderProcess[Task](*self._specs, self._memory, self._look)
        self._processes.append(process)
        self._selector.register(process.socket, selectors.EVENT_READ, process)
        self._watch(process)

    def _stop_overdue(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_check_s:
            return
        self._next_check_s = now_s + _CHECK_EVERY_S
        for process in list(self._processes):
            limit_s = self._wall_limit_s if process.is_ready else _START_LIMIT_S
            is_at_work = process.tasks or not process.is_ready
            if is_at_work and process.overdue_s(limit_s, now_s):
                self._replace(process, overdue_at_s=now_s)

    def _shut_down(self) -> None:
        assert self._failure is not None
        self._is_started.set()
        self._is_confinement_known.set()
        for process in self._processes:
            process.kill()
        with self._lock:
            left = [*self._inbox, *self._waiting, *self._alone]
            self._inbox.clear()
        left += [task for process in self._processes for task, _, _ in process.tasks]
        for task in left:
            task.finish(self._failure)
        self._selector.close()
        with self._lock:  # the number may be another file's from now on
            os.close(self._wake_fd)
            self._wake_fd = -1


def _num_tasks(process: DecoderProcess[Task]) -> int:
    return len(process.tasks)
