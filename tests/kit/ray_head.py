"""A real Ray head on loopback with token auth, as an operator starts one; ended by its own pid."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "a-token-of-this-test-alone-0123456789"  # noqa: S105 - no secret: it opens a test's own head


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """`ray start --head` on loopback with token auth, in a folder of its own."""

    def __init__(self, folder: str) -> None:
        self.dashboard_port = free_port()
        token = Path(folder) / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        # Credentials are the node's, as an instance role would be: a job's own variables can be
        # read by every client of the job API.
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"]
        command += [f"--temp-dir={folder}/ray", "--num-cpus=4"]
        # Ray fixes these two: with another Ray on this machine no job would start.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--ray-client-server-port={free_port()}"]
        self.log = Path(folder) / "head.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ray job submit` to its end."""
        command = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{self.dashboard_port}"]
        return subprocess.run(
            [*command, "--working-dir", str(ROOT), "--", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + 150
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.dashboard_port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def close(self) -> None:
        """End the head and all that it started, by their pids; some have sessions of their own."""
        started = descendants(self.process.pid)
        for pid in (self.process.pid, *started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        deadline_s = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in started):
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Return the pids of the processes that this one started, and those, and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid ...; a name may hold anything, also parentheses.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        queue += children.get(queue[0], [])
        found += children.get(queue.pop(0), [])
    return found
