"""A decoder process: `python -m imgcls.image.child SOCKET_FD MEMORY_FD`.

In: encoded images on a socket. Out: crops in shared memory, one short message per image. Invariant:
it holds no credentials, no lock and no name in the file system; it ends by itself when its parent
is gone, however that ended.
"""

import ctypes
import json
import math
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.errors import DecodeError
from imgcls.image.crops import decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.image.wire import IMAGE_HEADER, LENGTH, NUM_PROGRESS, SLOTS_OFFSET, pack

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_RECEIVE_BYTES: Final = 1 << 18
_MAX_ANSWERS: Final = 4
_MAX_ANSWER_DELAY_S: Final = 0.02
_MAX_OPEN_FILES: Final = 64
# Beyond any image that the wall limit lets through; ends a child that outlived its parent in an
# endless loop.
_MAX_IMAGE_CPU_S: Final = 30
# The interpreter with its libraries, and the largest image in the widest form on its way: 32 bytes
# a pixel.
_BASE_ADDRESS_BYTES: Final = 1 << 30
_ADDRESS_BYTES_PER_PIXEL: Final = 32


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
    decode_spec = DecodeSpec.from_dict(setup["decode"])
    preprocess_spec = PreprocessSpec.from_dict(setup["preprocess"])
    side = preprocess_spec.image_px
    shape = (setup["num_slots"], setup["slot_crops"], decode_spec.num_channels, side, side)
    progress, slots = _map_memory(memory_fd, shape)
    _limit(decode_spec.max_pixels, slots.nbytes)
    _silence()
    sock.sendall(pack({"ready": True}))
    answers: list[dict[str, object]] = []
    sent_s = time.monotonic()
    while True:
        slot, num_bytes = IMAGE_HEADER.unpack(requests.take(IMAGE_HEADER.size))
        data = requests.take(num_bytes)
        _allow_cpu()
        progress[1] = time.monotonic_ns()
        progress[0] += 1
        answers.append(_answer(data, decode_spec, preprocess_spec, slots, slot))
        progress[2] += time.monotonic_ns() - progress[1]
        # Several at once, for each message wakes the parent; but never while it may wait for them.
        is_late = time.monotonic() - sent_s > _MAX_ANSWER_DELAY_S
        if is_late or len(answers) == _MAX_ANSWERS or not requests.has_more():
            sock.sendall(pack({"answers": answers}))
            answers.clear()
            sent_s = time.monotonic()


def _answer(
    data: bytes,
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    slots: npt.NDArray[np.uint8],
    slot: int,
) -> dict[str, object]:
    try:
        crops = decode_one(data, decode_spec, preprocess_spec)
    except DecodeError as error:
        return {"slot": slot, "status": error.status, "reason": str(error)}
    for target_CHW, crop in zip(slots[slot], crops, strict=False):
        target_CHW[:] = crop.x_CHW
    return {"slot": slot, "crops": [[c.width_px, c.height_px, c.frame] for c in crops]}


def _map_memory(
    memory_fd: int, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the numbers that tell what this process is at, and the slots for crops."""
    memory = mmap.mmap(memory_fd, SLOTS_OFFSET + math.prod(shape))
    os.close(memory_fd)
    slots = np.frombuffer(memory, np.uint8, offset=SLOTS_OFFSET).reshape(shape)
    return np.frombuffer(memory, np.int64, count=NUM_PROGRESS), slots


def _limit(max_pixels: int, shared_bytes: int) -> None:
    address_bytes = _BASE_ADDRESS_BYTES + shared_bytes + _ADDRESS_BYTES_PER_PIXEL * max_pixels
    limits = {
        resource.RLIMIT_AS: address_bytes,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        _, hard = resource.getrlimit(name)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))


def _allow_cpu() -> None:
    """Move the soft CPU limit of this process ahead of what it has used, for one more image."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + _MAX_IMAGE_CPU_S
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
