"""Decoded images kept for the next epoch, so that it costs no GET and no decoding.

In: images by sample index, of one type. Out: the same. Invariant: an index is unknown, known, or
known to be bad, and never goes back. `ram` is memory, taken page by page as images arrive; `disk`
is a mapped temporary file, whose pages the system may drop, so that memory does not grow with the
number of images. The ranks on one machine share one table; it is gone with the last of them,
however they end.
"""

import logging
import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from imgcls.errors import ConfigError

CacheKind = Literal["none", "ram", "disk"]
CacheFlag = Literal["auto", "none", "ram", "disk"]
PixelType = Literal["uint8", "float32"]

# What `auto` may take of the memory that is free when training starts. The rest is for the model,
# the decoder processes and the system's own file cache.
RAM_FRACTION = 0.25

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # a file system of memory, by its name on Linux
_UNKNOWN, _KNOWN, _BAD = 0, 1, 2

log = logging.getLogger(__name__)


class ImageCache:
    """A table of num_samples images of one shape, over a buffer of zeros of `num_bytes`.

    Args:
        buffer: from `private_buffer` or `shared_buffer`.
        num_samples: rows of the table.
        shape_CHW: shape of one image.
        pixel_type: of its pixels.
    """

    def __init__(
        self,
        buffer: mmap.mmap,
        num_samples: int,
        shape_CHW: tuple[int, int, int],
        pixel_type: PixelType = "uint8",
    ) -> None:
        # The images first, where they lie on the borders that their type wants.
        num_image_bytes = num_bytes(num_samples, shape_CHW, pixel_type) - num_samples
        whole = np.frombuffer(buffer, np.uint8)
        images = whole[:num_image_bytes].view(pixel_type)
        self._x_NCHW = images.reshape(num_samples, *shape_CHW)
        self._state = whole[num_image_bytes : num_image_bytes + num_samples]

    def put(self, index: int, x_CHW: np.ndarray) -> None:
        """Keep one image."""
        # In this order: another rank may look.
        self._x_NCHW[index] = x_CHW
        self._state[index] = _KNOWN

    def put_bad(self, index: int) -> None:
        """Remember that this sample gives no image."""
        self._state[index] = _BAD

    def unknown(self, index_B: np.ndarray) -> np.ndarray:
        """Return bool [B]: which samples have to be read."""
        return np.asarray(self._state[index_B] == _UNKNOWN)

    def good(self, index_B: np.ndarray) -> np.ndarray:
        """Return bool [B]: which samples have an image here."""
        return np.asarray(self._state[index_B] == _KNOWN)

    def take(self, index_B: np.ndarray) -> np.ndarray:
        """Return a copy of images, [B,C,H,W]."""
        return np.asarray(self._x_NCHW[index_B])


def num_bytes(
    num_samples: int, shape_CHW: tuple[int, int, int], pixel_type: PixelType = "uint8"
) -> int:
    """Return the size of a table: the images, and a byte of state for each."""
    return num_samples * (1 + math.prod(shape_CHW) * np.dtype(pixel_type).itemsize)


def private_buffer(kind: CacheKind, size_bytes: int) -> mmap.mmap:
    """Map memory of this process, or a file that is gone with it.

    Raises:
        ConfigError: the disk has no room.
    """
    if kind == "ram":
        return mmap.mmap(-1, max(1, size_bytes))
    with tempfile.TemporaryFile(prefix="imgcls-cache-") as file:
        return _map(file.fileno(), size_bytes, tempfile.gettempdir())


def shared_buffer(kind: CacheKind, size_bytes: int, name: str) -> mmap.mmap:
    """Map a file that the other ranks of this machine map, too; `forget` it when all have.

    Where /dev/shm is too small for `ram`, as in many containers, each rank gets memory of its own.

    Raises:
        ConfigError: the disk has no room.
    """
    path = _shared_path(kind, name)
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        return _map(file, size_bytes, str(path.parent))
    except ConfigError:
        if kind == "disk":
            raise
        log.warning("%s is too small: each worker caches its own images", path.parent)
        return private_buffer(kind, size_bytes)
    finally:
        os.close(file)


def forget(kind: CacheKind, name: str) -> None:
    """Remove the name of a shared buffer; those who map it keep it."""
    _shared_path(kind, name).unlink(missing_ok=True)


def choose_kind(wanted: CacheFlag, size_bytes: int) -> CacheKind:
    """Resolve "auto": "ram" where all fits into RAM_FRACTION of the free memory, or "none"."""
    if wanted != "auto":
        return wanted
    return "ram" if size_bytes <= RAM_FRACTION * free_memory_bytes() else "none"


def free_memory_bytes() -> int:
    """Return the memory that can be had without swapping: of the machine, or of the container."""
    available = int(_meminfo()["MemAvailable"]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return max(0, available)


def _meminfo() -> dict[str, str]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: rest.split()[0] for name, rest in (line.split(":", 1) for line in lines)}


def _shared_path(kind: CacheKind, name: str) -> Path:
    return (_SHARED_MEMORY if kind == "ram" else Path(tempfile.gettempdir())) / name


def _map(file: int, size_bytes: int, folder: str) -> mmap.mmap:
    try:
        # Reserve the blocks now: running out later would be a bus error in the middle of an epoch.
        os.posix_fallocate(file, 0, max(1, size_bytes))
    except OSError as error:
        raise ConfigError(
            f"--cache: no room for {size_bytes / 1e9:.1f} GB of decoded images in {folder} "
            f"({error.strerror}); point TMPDIR at a larger disk, or use --cache none"
        ) from error
    return mmap.mmap(file, max(1, size_bytes))
