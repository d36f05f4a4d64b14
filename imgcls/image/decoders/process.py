"""One decoder process as its parent sees it: start, send, receive, kill.

In: encoded images. Out: messages and crops. Invariant: the process inherits an environment of ours
and two file descriptors, nothing else; its memory is an anonymous file, so no kill can leave a name
behind in /dev/shm, and a container's small /dev/shm is not a limit.
"""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import imgcls
from imgcls.image.crops import Crop
from imgcls.image.decoders.memory import MemoryLimits
from imgcls.image.decoders.protocol import (
    ALL_FRAMES,
    IMAGE_HEADER,
    NO_FRAME,
    Progress,
    pack,
    take_messages,
)
from imgcls.image.decoders.slots import SlotLayout, Slots, make_memory
from imgcls.image.facts.source import Look
from imgcls.image.fit.tiles import most_crops
from imgcls.image.fit.view import Part
from imgcls.image.spec import DecodeSpec, PreprocessSpec

# Small images in one child at a time: it never waits for the parent, who serves it several at once.
NUM_SLOTS: Final = 8
# Beyond this a child gets no second image: large ones are spread over all children.
_MAX_QUEUED_BYTES: Final = 1 << 20
_RECEIVE_BYTES: Final = 1 << 16
# Of the limit of one frame, that each frame adds to the limit of its file.
_FRAME_FRACTION: Final = 0.2
_KEPT_VARIABLES: Final = (
    "LD_LIBRARY_PATH",
)  # without it a Python outside the system's paths does not start
_ENVIRONMENT: Final = {
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc gives freed images back to the kernel and takes the same pages again for the next one:
    # that is a fifth of the time of a photograph. These keep a few (32 MB is glibc's own limit).
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}

Task = TypeVar("Task")


class DecoderProcess(Generic[Task]):
    """A child with at most NUM_SLOTS tasks; the first of `tasks` is the one it works on."""

    def __init__(
        self,
        decode_spec: DecodeSpec,
        preprocess_spec: PreprocessSpec,
        memory: MemoryLimits,
        look: Look,
    ) -> None:
        self.slot_crops = most_crops(decode_spec, preprocess_spec)
        layout = SlotLayout(NUM_SLOTS, self.slot_crops, decode_spec, preprocess_spec, look)
        self.tasks: deque[tuple[Task, int, int]] = deque()  # task, slot, bytes
        self.is_ready = False
        self._since_s = time.monotonic()  # last sign of life; when the first of `tasks` was given
        self._num_answered = self._queued_bytes = 0
        self._free_slots = deque(range(NUM_SLOTS))
        self._to_send: deque[memoryview] = deque()
        self._received = bytearray()
        self.socket, child_socket = socket.socketpair()
        self.socket.setblocking(False)
        memory_fd = make_memory(layout)
        try:
            self._slots = Slots(memory_fd, layout)
            self._progress = self._slots.progress
            self._progress[Progress.FRAME] = NO_FRAME
            self._process = _start(child_socket.fileno(), memory_fd)
        finally:
            os.close(memory_fd)
            child_socket.close()
        setup = {
            "decode": decode_spec.to_dict(),
            "preprocess": preprocess_spec.to_dict(),
            "num_slots": NUM_SLOTS,
            "slot_crops": self.slot_crops,
            "memory": dataclasses.asdict(memory),
            "look": look,
        }
        self._to_send.append(memoryview(pack(setup)))
        self.flush()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def busy_s(self) -> float:
        """Seconds that the child was at work on images it has finished."""
        return float(self._progress[Progress.BUSY_NS]) / 1e9

    @property
    def has_room(self) -> bool:
        """True while it is up and can take another task."""
        is_small = not self.tasks or self._queued_bytes < _MAX_QUEUED_BYTES
        return self.is_ready and bool(self._free_slots) and is_small

    def overdue_s(self, wall_limit_s: float, now_s: float) -> float:
        """Return the limit in seconds that its work has passed, 0 where it is in time.

        A frame has `wall_limit_s`, and all frames of a file together that and a part of it for each
        that was begun: a long sequence takes its time, an endless one ends.
        """
        frame_since_s, image_since_s = (
            max(self._since_s, float(self._progress[since]) / 1e9)
            for since in (Progress.SINCE_NS, Progress.IMAGE_SINCE_NS)
        )
        if now_s - frame_since_s >= wall_limit_s:
            return wall_limit_s
        num_frames = int(self._progress[Progress.NUM_FRAMES])
        sum_s = wall_limit_s * (1 + num_frames * _FRAME_FRACTION)
        return sum_s if now_s - image_since_s >= sum_s else 0.0

    @property
    def index_at_work(self) -> int:
        """Index in `tasks` of the one that the child works on; those before it are done."""
        num_unanswered = int(self._progress[Progress.NUM_IMAGES]) - self._num_answered
        return min(max(num_unanswered, 1), len(self.tasks)) - 1

    @property
    def at_frame(self) -> str:
        """Where in its file the child is at work: "" in an image of one frame."""
        frame = int(self._progress[Progress.FRAME])
        return "" if frame == NO_FRAME else f", at frame {frame}"

    @property
    def has_unsent(self) -> bool:
        """True while bytes wait for room in the socket."""
        return bool(self._to_send)

    def give(self, task: Task, data: bytes, part: Part, *, is_large: bool) -> None:
        """Hand over one image; `flush` sends it. A large one may take more than its share."""
        slot = self._free_slots.popleft()
        if not self.tasks:
            self._since_s = time.monotonic()
        self._queued_bytes += len(data)
        self.tasks.append((task, slot, len(data)))
        chance = ALL_FRAMES if part.chance is None else part.chance
        header = IMAGE_HEADER.pack(slot, len(data), is_large, *part.view, chance)
        self._to_send.append(memoryview(header))
        self._to_send.append(memoryview(data))

    def flush(self) -> None:
        """Send what the socket takes without waiting; a closed one is noticed by `receive`."""
        try:
            while self._to_send:
                num_sent = self.socket.sendmsg(list(self._to_send)[:8])
                while self._to_send and num_sent >= len(self._to_send[0]):
                    num_sent -= len(self._to_send.popleft())
                if num_sent:
                    self._to_send[0] = self._to_send[0][num_sent:]
        except BlockingIOError:
            return
        except OSError:
            self._to_send.clear()

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have come.

        Raises:
            EOFError: the child is dead, or writes what is not a message.
        """
        try:
            received = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise EOFError from error
        if not received:
            raise EOFError
        self._received += received
        return take_messages(self._received)

    def check_first(self, slot: object) -> None:
        """Refuse an answer to anything but the first task.

        Raises:
            ValueError: the child is out of step.
        """
        if not self.tasks or self.tasks[0][1] != slot:
            raise ValueError(f"an answer for slot {slot}")

    def finish_first(self, sources: Sequence[Sequence[Any]]) -> tuple[Task, list[Crop]]:
        """Take the first task as done.

        Args:
            sources: where each of its crops comes from, as the child says.

        Returns:
            The task and its crops.

        Raises:
            TypeError, ValueError: a source is not one.
        """
        _, slot, _ = self.tasks[0]
        crops = self._slots.take(slot, sources)
        task, slot, num_bytes = self.tasks.popleft()
        self._num_answered += 1
        self._queued_bytes -= num_bytes
        self._free_slots.append(slot)
        self._since_s = time.monotonic()
        return task, crops

    def kill(self, *, grace_s: float = 0.0) -> str:
        """End the child, one that is ending by itself after `grace_s`, and say how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._process.kill()
        code = self._process.wait()
        self.socket.close()
        self._to_send.clear()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _start(socket_fd: int, memory_fd: int) -> "subprocess.Popen[bytes]":
    """Start the child by exec.

    Nothing is copied, as fork does with threads and clients, and the user's __main__ is not run
    again, as multiprocessing's spawn and forkserver do.
    """
    root = str(Path(imgcls.__file__).resolve().parent.parent)
    paths = [root, *(path for path in _absolute_paths() if path not in _folders_of_the_user())]
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment = {**_ENVIRONMENT, **kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    command = [
        sys.executable,
        "-P",
        "-m",
        "imgcls.image.decoders.child",
        str(socket_fd),
        str(memory_fd),
    ]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command,
        env=environment,
        pass_fds=(socket_fd, memory_fd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )


def _absolute_paths() -> list[str]:
    return [str(Path(path).absolute()) for path in sys.path]


def _folders_of_the_user() -> set[str]:
    """Return the folders that Python itself put in front of its path: of the script, or at work.

    A file or folder there that is called like a module of a decoder (`dl`, `color`) would take its
    place. What is imported from there on purpose is in PYTHONPATH, or installed.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    asked = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = {str(Path.cwd()), *([str(Path(main).absolute().parent)] if main else [])}
    return folders - {str(Path(path).absolute()) for path in asked if path}
