"""`imgcls submit` against a real Ray head with token auth, and a proxy that cuts its streams."""

import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgcls.model.registry import register
from tests.kit.ray_head import TOKEN, Head
from tests.scoring.tiny import make_bundle, published_rows, write_images

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

CHATTY = """
import sys, time
for number in range(80):
    print("line", number, flush=True)
    time.sleep(0.05)
print('{"rows": 7}')
sys.exit(3)
"""
ENDLESS = """
import time
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Short: Ray's socket paths must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="imgcls-", ignore_cleanup_errors=True) as folder:
        started = Head(folder)
        try:
            started.wait_until_ready()
            yield started
        finally:
            started.close()


def submit(
    head: Head, *arguments: str, address: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `imgcls submit` to its end, as a user's shell would."""
    return subprocess.run(
        command(head, *arguments, address=address),
        env=head.environment | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def start(head: Head, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start `imgcls submit`, to be waited for."""
    return subprocess.Popen(
        command(head, *arguments),
        env=head.environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(head: Head, *arguments: str, address: str = "") -> list[str]:
    address = address or f"http://127.0.0.1:{head.dashboard_port}"
    return [sys.executable, "-m", "imgcls.cli", "submit", "--address", address, *arguments]


def last_json(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def call(head: Head, method: str, path: str) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{head.dashboard_port}/api/jobs/{path}",
        method=method,
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - the head of this test
        return json.load(reply)


def wait_for(head: Head, submission_id: str, *statuses: str) -> None:
    deadline_s = time.monotonic() + 40
    while (status := call(head, "GET", submission_id)["status"]) not in statuses:
        assert time.monotonic() < deadline_s, status
        time.sleep(0.1)


def write_job(folder: Path, name: str, code: str) -> str:
    """Write a folder to upload whose job `name` is `code`."""
    (folder / "jobs").mkdir(parents=True)
    (folder / "jobs" / "__init__.py").write_text("")
    (folder / "jobs" / f"{name}.py").write_text(code)
    return str(folder)


class CuttingProxy:
    """Forwards TCP, and resets the first streams of a log in the middle."""

    def __init__(self, port: int, num_cuts: int) -> None:
        self._port, self._num_cuts = port, num_cuts
        self.num_cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._port))
            request = client.recv(65536)
            upstream.sendall(request)
            limit = None
            if b"logs/tail" in request and self.num_cut < self._num_cuts:
                self.num_cut += 1
                # Each stream begins with the first line again: the next gets further.
                limit = 250 * self.num_cut
            threading.Thread(target=_forward, args=(client, upstream, limit), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _forward(client: socket.socket, upstream: socket.socket, limit: int | None) -> None:
    """Forward both ways until one side ends, or a reset after `limit` bytes of the reply."""
    other = {client: upstream, upstream: client}
    num_bytes = 0
    with client, upstream:
        while limit is None or num_bytes < limit:
            for source in select.select([client, upstream], [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                other[source].sendall(data)
                num_bytes += len(data) if source is upstream else 0
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_log_cut_in_the_middle_is_whole_and_the_exit_code_the_jobs(
    head: Head, tmp_path: Path
) -> None:
    proxy = CuttingProxy(head.dashboard_port, num_cuts=2)
    folder = write_job(tmp_path, "promote", CHATTY)
    ended = submit(
        head, "--working-dir", folder, "promote", "--model", "/models/m@v1", address=proxy.address
    )
    proxy.close()
    assert proxy.num_cut == 2, ended.stderr
    assert ended.stderr.count("the log stream broke") == 2, ended.stderr
    assert ended.returncode == 3
    lines = [line for line in ended.stderr.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(80)], "each once, in order"
    assert last_json(ended)["result"] == {"rows": 7}


def test_stopped_night_goes_on_by_the_same_command_and_is_done_once(
    head: Head, tmp_path: Path
) -> None:
    register(str(tmp_path / "registry"), "tiny", make_bundle())
    write_images(str(tmp_path / "images"), 1000)
    output = tmp_path / "out"
    night = ["nightly", "--source", f"{tmp_path}/images", "--output", str(output)]
    night += ["--model", f"{tmp_path}/registry/tiny@v1", "--date", "2026-11-22"]
    night += ["--executor", "local", "--shard-size", "64"]
    with start(head, *night) as first:
        deadline_s = time.monotonic() + 60
        while not list(output.glob("_runs/*/commits/*")):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        call(head, "POST", "nightly-2026-11-22/stop")
        stdout, stderr = first.communicate()
    assert first.returncode == 5, stderr
    assert json.loads(stdout.splitlines()[-1])["status"] == "STOPPED"
    num_commits = len(list(output.glob("_runs/*/commits/*")))
    assert 0 < num_commits < 16
    again = submit(head, *night)
    assert again.returncode == 0, again.stderr
    assert re.search(r"uploading \d+ files, \d\.\d MB", again.stderr), "says the size"
    assert len(again.stdout.splitlines()) == 1
    assert last_json(again)["submission_id"] == "nightly-2026-11-22-2"
    assert last_json(again)["result"]["run_id"] == "nightly-2026-11-22"
    assert len(published_rows(str(output)).to_pylist()) == 1000
    third = submit(head, *night)
    assert third.returncode == 4
    assert "nightly-2026-11-22-2 is SUCCEEDED" in third.stderr


def test_second_of_a_night_is_refused_and_ctrl_c_lets_the_first_go_on(
    head: Head, tmp_path: Path
) -> None:
    folder = write_job(tmp_path, "nightly", ENDLESS)
    night = ["--working-dir", folder, "nightly", "--source", "s3://b/x", "--model", "s3://b/m@v1"]
    night += ["--output", "s3://b/out", "--date", "2026-11-21"]
    with start(head, *night) as first:
        assert first.stderr is not None
        while first.stderr.readline().strip() != "begun":
            assert first.poll() is None
        second = submit(head, *night)
        first.send_signal(signal.SIGINT)
        _, stderr = first.communicate()
    assert second.returncode == 4
    assert "nightly-2026-11-21 is RUNNING" in second.stderr
    assert first.returncode == 5
    assert "ray job stop --address" in stderr, "nobody to ask: it says how to stop the job"
    assert call(head, "GET", "nightly-2026-11-21")["status"] == "RUNNING"
    call(head, "POST", "nightly-2026-11-21/stop")


def test_ctrl_c_asks_and_stops_the_job_on_yes(head: Head, tmp_path: Path) -> None:
    folder = write_job(tmp_path, "promote", ENDLESS)
    keyboard, terminal = pty.openpty()
    asked = [
        "--working-dir",
        folder,
        "--submission-id",
        "asked",
        "promote",
        "--model",
        "/models/m@v1",
    ]
    with start(head, *asked, stdin=terminal) as process:
        assert process.stderr is not None
        while process.stderr.readline().strip() != "begun":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        os.write(keyboard, b"y\n")
        stdout, stderr = process.communicate()
    os.close(keyboard)
    os.close(terminal)
    assert "Stop job asked on the cluster too?" in stderr
    assert process.returncode == 5
    assert json.loads(stdout.splitlines()[-1])["status"] == "STOPPED"
    assert call(head, "GET", "asked")["status"] == "STOPPED"


def test_without_the_token_or_with_another_nothing_is_submitted(head: Head, tmp_path: Path) -> None:
    before = len(call(head, "GET", ""))
    other = tmp_path / "token"
    other.write_text("some-other-token-0123456789")
    other.chmod(0o644)
    wrong = submit(head, "promote", "--model", "/models/m@v1", RAY_AUTH_TOKEN_PATH=str(other))
    assert wrong.returncode == 2, wrong.stderr
    assert "refuses the token" in wrong.stderr
    assert other.stat().st_mode & 0o777 == 0o600
    assert "made 0600" in wrong.stderr, "a token that others could read is told"
    without = {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    missing = submit(head, "promote", "--model", "/models/m@v1", **without)
    assert missing.returncode == 2
    assert "~/.ray/auth_token" in missing.stderr
    assert len(call(head, "GET", "")) == before


def test_bad_flag_of_the_job_is_refused_before_the_cluster_is_asked() -> None:
    for arguments, words in (
        (["nightly", "--sorce", "x"], "did you mean --source?"),
        (["score", "--source", "s3://b/x"], "missing --model, --output"),
        (["promote", "--model", "m@v1", "--address", "x"], "unknown --address"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "imgcls.cli", "submit", "--address", "127.0.0.1:9", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert words in ended.stderr
