"""The messages between a pool and its decoder processes.

In: specs and encoded bytes to the child; sizes, frames and errors back. Out: bytes on a socket.
Invariant: pixels never travel here, and nothing is ever unpickled: a child that a hostile file took
over can only send numbers and text.

    parent -> child   setup: u32 length, JSON {decode, preprocess, num_slots, slot_crops, memory,
                      look}
                      image: u32 slot, u64 length, bool is_large, 4 doubles and u64 (which
                      view of which frame), the encoded bytes
    child -> parent   u32 length, JSON, one of {"ready": true, "unconfined": ""}: why no sandbox
                      {"answers": [...]}, one to each image, in order:
                      {"slot": s, "crops": [Crop.source, ...]}, pixels in slot s
                      {"slot": s, "status": "corrupt", "reason": "..."}
                      {"slot": s, "needs_more": true}: again with is_large
    shared memory     see slots.py
"""

import json
import struct
from enum import IntEnum
from typing import Any, Final

from imgcls.errors import DecodeError


class Progress(IntEnum):
    """Where in the shared page a child says what it is at."""

    NUM_IMAGES = 0
    """Images begun."""
    SINCE_NS = 1
    """When it began the frame that it is at, or the image (monotonic)."""
    BUSY_NS = 2
    """How long it was at work in all."""
    IMAGE_SINCE_NS = 3
    """When it began the image."""
    NUM_FRAMES = 4
    """Frames of the image begun."""
    FRAME = 5
    """Index of the frame that it is at, NO_FRAME in an image of one."""


NO_FRAME: Final = -1
ALL_FRAMES: Final = (1 << 64) - 1
SLOTS_OFFSET: Final = 4096
IMAGE_HEADER: Final = struct.Struct("<IQ?4dQ")
LENGTH: Final = struct.Struct("<I")
_MAX_MESSAGE_BYTES: Final = 1 << 20
_MAX_STATUS_CHARS: Final = 32


def _kinds(kind: type[DecodeError]) -> list[type[DecodeError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _kinds(child))]


# The class of each status; of two of one status, the more general.
_ERRORS: Final = {kind.status: kind for kind in reversed(_kinds(DecodeError)[1:])}


def pack(message: dict[str, Any]) -> bytes:
    """Return a JSON message with its length in front."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def take_messages(buffer: bytearray) -> list[dict[str, Any]]:
    """Remove all whole messages from the front of `buffer` and return them.

    Raises:
        ValueError: what is there cannot be a message.
    """
    messages = []
    start = 0
    while len(buffer) - start >= LENGTH.size:
        (length,) = LENGTH.unpack_from(buffer, start)
        if length > _MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {length} bytes")
        end = start + LENGTH.size + length
        if len(buffer) < end:
            break
        messages.append(json.loads(buffer[start + LENGTH.size : end]))
        start = end
    del buffer[:start]
    return messages


def error_from(message: dict[str, Any]) -> DecodeError:
    """Return the error that a child reports; of a kind that is not known here, DecodeError."""
    status, reason = str(message["status"]), str(message["reason"])
    if status not in _ERRORS:
        return DecodeError(f"{status[:_MAX_STATUS_CHARS]}: {reason}")
    return _ERRORS[status](reason)
