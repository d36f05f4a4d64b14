"""The instances of samples kept for the next epoch: any number of each.

In: instances by sample index. Out: the same. Invariant: a sample is unknown, known, or known to be
bad; what does not fit is not kept and stays unknown, to be read again. A temporary file goes with
this process, however that ends. Each rank keeps its own.

Shape legend: I instance, C channel, H height, W width, K classes.
"""

import os
import tempfile
from dataclasses import dataclass
from typing import IO, Final

import numpy as np

from imgcls.errors import ConfigError

_UNKNOWN, _KNOWN, _BAD = 0, 1, 2
_NO_LIMIT: Final = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class KnownInstances:
    """All instances of one sample.

    x_ICHW uint8, or (depth 16) float32; target_IK float32, NaN where nothing is known of one.
    """

    x_ICHW: np.ndarray
    target_IK: np.ndarray

    def some(self, rows: np.ndarray) -> "KnownInstances":
        """Return those of some rows."""
        return KnownInstances(self.x_ICHW[rows], self.target_IK[rows])


class InstanceCache:
    """Instances by sample.

    Args:
        num_samples: indices are below.
        on_disk: keep them in a temporary file, not in memory.
        max_bytes: kept in all; 0 for no limit.
    """

    def __init__(self, num_samples: int, *, on_disk: bool, max_bytes: int = 0) -> None:
        self._state = np.zeros(num_samples, np.uint8)
        self._left_bytes = max_bytes or _NO_LIMIT
        self._in_memory: dict[int, KnownInstances] = {}
        self._file: IO[bytes] | None = None
        if on_disk:
            self._file = tempfile.TemporaryFile(prefix="imgcls-cache-")  # noqa: SIM115
        self._on_disk: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def put(self, index: int, found: KnownInstances) -> None:
        """Keep a sample, where it fits.

        Raises:
            ConfigError: the disk has no room.
        """
        if self._state[index] != _UNKNOWN or found.x_ICHW.nbytes > self._left_bytes:
            return
        self._left_bytes -= found.x_ICHW.nbytes
        if self._file is None:
            self._in_memory[index] = found
        else:
            offset = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(np.ascontiguousarray(found.x_ICHW).data)
                self._file.flush()
            except OSError as error:
                raise ConfigError(
                    f"--cache disk: no room in {tempfile.gettempdir()} ({error.strerror}); point "
                    "TMPDIR at a larger disk, or use --cache none"
                ) from error
            no_pixels = np.broadcast_to(np.zeros((), found.x_ICHW.dtype), found.x_ICHW.shape)
            self._on_disk[index] = (offset, no_pixels, found.target_IK)
        self._state[index] = _KNOWN

    def put_bad(self, index: int) -> None:
        """Remember that this sample gives no image."""
        self._state[index] = _BAD

    def unknown(self, index_B: np.ndarray) -> np.ndarray:
        """Return bool [B]: which samples have to be read."""
        return np.asarray(self._state[index_B] == _UNKNOWN)

    def take(self, index: int) -> KnownInstances | None:
        """Return a sample that is not to be written to, None where it is not here."""
        if self._file is None or index not in self._on_disk:
            return self._in_memory.get(index)
        offset, like, target_IK = self._on_disk[index]
        x_ICHW = np.empty(like.shape, like.dtype)
        os.preadv(self._file.fileno(), [x_ICHW.data.cast("B")], offset)
        return KnownInstances(x_ICHW, target_IK)
