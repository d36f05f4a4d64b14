"""A decoder process: `python -m imgcls.image.decoders.child SOCKET_FD MEMORY_FD`.

In: encoded images on a socket. Out: crops in shared memory, one short message per image. Invariant:
it holds no credentials, no lock and no name in the file system, and once it is ready it can open
nothing (sandbox.py); it ends by itself when its parent is gone, however that ended.
"""

import contextlib
import ctypes
import dataclasses
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imgcls.errors import DecodeError, ImageTooLargeError
from imgcls.image.crops import decode_frames
from imgcls.image.decoders.memory import MemoryLimits
from imgcls.image.decoders.preload import load_everything
from imgcls.image.decoders.protocol import (
    ALL_FRAMES,
    IMAGE_HEADER,
    LENGTH,
    NO_FRAME,
    Progress,
    pack,
)
from imgcls.image.decoders.sandbox import enter_sandbox
from imgcls.image.decoders.slots import SlotLayout, Slots
from imgcls.image.facts.source import Look
from imgcls.image.fit.view import Part
from imgcls.image.spec import DecodeSpec, PreprocessSpec

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_RECEIVE_BYTES: Final = 1 << 18
_MAX_ANSWERS: Final = 4
_MAX_ANSWER_DELAY_S: Final = 0.02
_LIMITS: Final = {
    resource.RLIMIT_NOFILE: 64,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
}
# Beyond any frame that the wall limit lets through; ends a child that outlived its parent in an
# endless loop.
_MAX_FRAME_CPU_S: Final = 30


def main(socket_fd: int, memory_fd: int) -> None:
    """Serve until the parent closes the socket."""
    # Sent to whole groups of processes: the parent decides what they mean.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    # EOF on the socket tells an idle child that its parent is gone; this ends one in mid-image.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with socket.socket(fileno=socket_fd) as sock:
        try:
            _serve(sock, memory_fd)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


class _Requests:
    """Reads from the socket in large pieces, and knows whether more has come."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes; EOFError when the parent is gone."""
        while len(self._buffer) < num_bytes:
            received = self._socket.recv(max(_RECEIVE_BYTES, num_bytes - len(self._buffer)))
            if not received:
                raise EOFError
            self._buffer += received
        taken = bytes(memoryview(self._buffer)[:num_bytes])
        del self._buffer[:num_bytes]
        return taken

    def has_more(self) -> bool:
        """True when the next `take` will not have to wait for its first byte."""
        return bool(self._buffer or select.select([self._socket], [], [], 0)[0])


def _serve(sock: socket.socket, memory_fd: int) -> None:
    requests = _Requests(sock)
    (length,) = LENGTH.unpack(requests.take(LENGTH.size))
    setup = json.loads(requests.take(length))
    specs = DecodeSpec.from_dict(setup["decode"]), PreprocessSpec.from_dict(setup["preprocess"])
    layout = SlotLayout(setup["num_slots"], setup["slot_crops"], *specs, setup["look"])
    slots = Slots(memory_fd, layout)
    decoder = _Decoder(*specs, MemoryLimits(**setup["memory"]), slots, setup["look"])
    _silence()
    load_everything()
    decoder.limit()
    sock.sendall(pack({"ready": True, "unconfined": enter_sandbox()}))
    answers: list[dict[str, object]] = []
    sent_s = time.monotonic()
    while True:
        header = IMAGE_HEADER.unpack(requests.take(IMAGE_HEADER.size))
        slot, num_bytes, is_large, *view, chance = header
        part = Part(tuple(view), None if chance == ALL_FRAMES else chance)
        with decoder.room_for(is_large):
            answers.append(decoder.answer(requests.take(num_bytes), slot, is_large, part))
        # Several at once, for each message wakes the parent; but never while it may wait for them.
        is_late = time.monotonic() - sent_s > _MAX_ANSWER_DELAY_S
        if is_late or len(answers) == _MAX_ANSWERS or not requests.has_more():
            sock.sendall(pack({"answers": answers}))
            answers.clear()
            sent_s = time.monotonic()


class _Decoder:
    """Decodes one image after the other, within its limits, and says what it is at."""

    def __init__(
        self,
        decode_spec: DecodeSpec,
        preprocess_spec: PreprocessSpec,
        memory: MemoryLimits,
        slots: Slots,
        look: Look,
    ) -> None:
        self._decode_spec, self._preprocess_spec, self._memory = (
            decode_spec,
            preprocess_spec,
            memory,
        )
        everyday_pixels = min(decode_spec.max_pixels, memory.everyday_pixels)
        self._everyday_spec = dataclasses.replace(decode_spec, max_pixels=everyday_pixels)
        if not memory.is_shared:
            self._everyday_spec = decode_spec
        self._progress, self._slots, self._look = slots.progress, slots, look
        self._loaded_bytes = 0

    def limit(self) -> None:
        """Set the limits of this process for good, from what it has loaded on."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self._loaded_bytes = pages * mmap.PAGESIZE
        _set_limit(resource.RLIMIT_AS, hard=self._loaded_bytes + self._memory.most_bytes)
        self._allow_memory(self._memory.everyday_bytes)
        for name, limit in _LIMITS.items():
            _set_limit(name, hard=limit)

    @contextlib.contextmanager
    def room_for(self, is_large: bool) -> Iterator[None]:
        """Have the memory for an image that needs more than the everyday share."""
        if not (is_large and self._memory.is_shared):
            yield
            return
        self._allow_memory(self._memory.most_bytes)
        yield
        self._allow_memory(self._memory.everyday_bytes)

    def _allow_memory(self, num_bytes: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = self._loaded_bytes + num_bytes
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def answer(self, data: bytes, slot: int, is_large: bool, part: Part) -> dict[str, object]:
        """Decode into a slot."""
        progress = self._progress
        _allow_cpu()
        since_ns = time.monotonic_ns()
        progress[Progress.SINCE_NS] = progress[Progress.IMAGE_SINCE_NS] = since_ns
        progress[Progress.NUM_IMAGES] += 1
        spec = self._decode_spec if is_large else self._everyday_spec
        try:
            crops = decode_frames(
                data, spec, self._preprocess_spec, self._begin_frame, self._look, part
            )
            sources = self._slots.put(slot, crops)
        except DecodeError as error:
            if isinstance(error, ImageTooLargeError) and self._memory.is_shared and not is_large:
                return {"slot": slot, "needs_more": True}
            return {"slot": slot, "status": error.status, "reason": str(error)}
        finally:
            progress[Progress.BUSY_NS] += time.monotonic_ns() - since_ns
            progress[Progress.FRAME] = NO_FRAME
            progress[Progress.NUM_FRAMES] = 0
        return {"slot": slot, "crops": sources}

    def _begin_frame(self, index: int) -> None:
        _allow_cpu()
        self._progress[Progress.SINCE_NS] = time.monotonic_ns()
        self._progress[Progress.FRAME] = index
        self._progress[Progress.NUM_FRAMES] += 1


def _set_limit(name: int, *, hard: int) -> None:
    _, highest = resource.getrlimit(name)
    limit = hard if highest == resource.RLIM_INFINITY else min(hard, highest)
    resource.setrlimit(name, (limit, limit))


def _allow_cpu() -> None:
    """Move the soft CPU limit of this process ahead of what it has used, for one more frame."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + _MAX_FRAME_CPU_S
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _silence() -> None:
    """Send what C libraries print about a damaged file to nowhere: it may quote the file."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
