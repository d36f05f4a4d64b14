"""Files and folders that may not be read, for tests that run as root."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOBODY = 65534
# prctl(2), capabilities(7)
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


@contextmanager
def not_root() -> Iterator[None]:
    """Modes mean nothing to root."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def run_obeying_modes(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a command of imgcls as root to whom modes do mean something, children and all.

    Nobody, as `not_root` has it, may start no decoders where Python lies in root's own folder.

    Returns:
        Exit code, result, log.
    """
    command = [sys.executable, "-m", "imgcls.cli", *arguments]
    done = subprocess.run(
        command,
        preexec_fn=_drop_capabilities,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def _drop_capabilities() -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            assert libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


def let_nobody_in(folder: Path) -> Path:
    """Open a folder of pytest's, and those above it, to whom `not_root` makes of us."""
    for parent in (folder, *folder.parents[:-2]):
        parent.chmod(0o755)
    return folder


def refuse_reads(path: Path) -> None:
    """Put a file there that everybody sees and nobody can read: the kernel answers EIO, as for a
    bad sector."""
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/self/mem")
