"""Temporary folders that a killed process leaves to nobody for long.

In: what a folder is for. Out: an empty one, gone after the `with`. Invariant: a folder that another
process left is removed once nobody holds its lock: that goes with its process, however it ended.
"""

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# A folder is there a moment before its lock is.
_YOUNG_S: Final = 60.0


@contextmanager
def scratch_folder(purpose: str) -> Iterator[str]:
    """Make a folder in the temporary folder; first remove those of this purpose that were left.

    Args:
        purpose: A word of its name, such as "plan".
    """
    # Of this machine: locks may not reach over a temporary folder that several share.
    prefix = f"imgcls-{purpose}-{socket.gethostname().partition('.')[0]}-"
    _remove_left(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        lock = _open(Path(folder))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(lock)


def _remove_left(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # another user's, in use, or gone by now
            lock = _open(folder)
            try:
                if time.time() - os.fstat(lock).st_mtime > _YOUNG_S:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
