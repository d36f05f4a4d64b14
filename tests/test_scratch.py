"""Temporary folders: gone after use, and after a kill as soon as somebody needs one again."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from imgcls import scratch
from imgcls.scratch import scratch_folder

_HOLDS_ONE = """
import sys, time
from imgcls.scratch import scratch_folder
with scratch_folder("plan") as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def holding_process() -> tuple[subprocess.Popen[str], Path]:
    """Start a process that has a folder, with a file of its work in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS_ONE], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    (folder / "planned.duckdb").write_bytes(b"work")
    long_ago = time.time() - 3600
    os.utime(folder, (long_ago, long_ago))
    return process, folder


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    processes = [holding_process(), holding_process()]
    (killed, left), (_, held) = processes
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with scratch_folder("units"):
            assert left.is_dir(), "what another purpose left is not looked for"
        with scratch_folder("plan") as own:
            assert not left.exists()
            assert (held / "planned.duckdb").read_bytes() == b"work"
            assert Path(own).is_dir()
        assert not Path(own).exists()
    finally:
        for process, _ in processes:
            process.kill()
            process.wait()
    assert sorted(tmp_path.iterdir()) == [held]
    monkeypatch.setattr(scratch, "_YOUNG_S", 0.0)
    with scratch_folder("plan") as own:
        assert sorted(tmp_path.iterdir()) == [Path(own)]


def test_a_folder_that_is_new_is_left_to_whoever_is_about_to_lock_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder("plan") as folder:
        name = Path(folder).name[: -len("12345678")] + "new"
    new = tmp_path / name
    new.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{name}-link").symlink_to(elsewhere)
    os.utime(elsewhere, (0, 0))
    with scratch_folder("plan"):
        assert new.is_dir()
        assert elsewhere.is_dir(), "no link is followed"
    os.utime(new, (0, 0))
    with scratch_folder("plan"):
        assert not new.exists()
