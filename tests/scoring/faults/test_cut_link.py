"""Hosts with addresses of their own: a head and two workers, of which one loses its link.

Each host is a network namespace with a veth pair to one bridge. That takes root.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.scoring.driver import score
from tests.scoring.tiny import comparable, published_rows, write_images

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(580)]

NUM_IMAGES = 3000
RAY = str(Path(sys.executable).parent / "ray")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """A head without CPUs (10.231.77.1) and two workers of one CPU, on one bridge."""

    NETWORK = "10.231.77"

    def __init__(self) -> None:
        self._tag = f"{os.getpid() % 10_000:04d}"
        self._bridge = f"br{self._tag}"
        self._namespaces: list[str] = []
        self._started: list[subprocess.Popen[bytes]] = []
        # Unix sockets live below it, and their paths must be short.
        self._folder = tempfile.mkdtemp(prefix="hosts-", dir="/tmp")
        self.address = f"{self.address_of(0)}:6379"
        # The default takes half a minute to call a node dead.
        self.environment = os.environ | {
            "RAY_ADDRESS": self.address,
            # `ray start` turns it on where this machine happens to have a token, drivers do not.
            "RAY_AUTH_MODE": "disabled",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        }

    def address_of(self, number: int) -> str:
        return f"{self.NETWORK}.{number + 1}"

    def lay_cables(self) -> None:
        """Make the namespaces and their links; needs root."""
        ip("link", "add", self._bridge, "type", "bridge")
        ip("link", "set", self._bridge, "up")
        for number in range(3):
            name, inside = f"host{self._tag}-{number}", f"in{self._tag}-{number}"
            ip("netns", "add", name)
            self._namespaces.append(name)
            ip("link", "add", self._link(number), "type", "veth", "peer", "name", inside)
            ip("link", "set", self._link(number), "master", self._bridge, "up")
            ip("link", "set", inside, "netns", name)
            ip("-n", name, "addr", "add", f"{self.address_of(number)}/24", "dev", inside)
            ip("-n", name, "link", "set", inside, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def _link(self, number: int) -> str:
        return f"out{self._tag}-{number}"

    def command(self, number: int, *words: str) -> list[str]:
        """Return the command line that runs another one on a host."""
        return ["ip", "netns", "exec", self._namespaces[number], *words]

    def start_ray(self) -> None:
        """Start Ray on every host."""
        role = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
        role += [f"--temp-dir={self._folder}"]
        for number in range(3):
            where = [f"--node-ip-address={self.address_of(number)}", "--block"]
            command = self.command(number, RAY, "start", *role, *where, "--disable-usage-stats")
            environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
            log = (Path(self._folder) / f"host-{number}.log").open("wb")
            self._started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            role = [f"--address={self.address}", "--num-cpus=1"]
            self.wait_for_nodes(number + 1)

    def wait_for_nodes(self, count: int) -> None:
        """Wait until the head is up and knows of so many living nodes."""
        code = (
            "import ray, time; ray.init(log_to_driver=False)\n"
            f"while sum(n['Alive'] for n in ray.nodes()) != {count}: time.sleep(0.2)"
        )
        command = self.command(0, sys.executable, "-c", code)
        until_s = time.monotonic() + 120
        while True:
            asked = subprocess.run(
                command, env=self.environment, timeout=120, capture_output=True, check=False
            )
            if asked.returncode == 0:
                return
            logs = [path.read_text() for path in sorted(Path(self._folder).glob("host-*.log"))]
            assert time.monotonic() < until_s, (asked.stderr.decode(), *logs)

    def cut(self, number: int) -> None:
        """Pull the plug of a host: what is on it continues, and nobody hears of it."""
        ip("link", "set", self._link(number), "down")

    def close(self) -> None:
        for process in self._started:
            process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for name in self._namespaces:
            listed = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for pid in listed.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = Hosts()
    try:
        try:
            made.lay_cables()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        made.start_ray()
        yield made
    finally:
        made.close()


def test_a_host_that_loses_its_link_in_mid_run_costs_no_row(
    hosts: Hosts, model_ref: str, tmp_path: Path
) -> None:
    source = str(tmp_path / "bucket")
    write_images(source, NUM_IMAGES)
    score(ScoreConfig(source, model_ref, str(tmp_path / "oracle"), executor="local", batch_size=1))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.score", "--source", source, "--model", model_ref]
    command += ["--output", str(output), "--run-id", "night", "--shard-size", "64"]
    job = subprocess.Popen(
        hosts.command(0, *command, "--batch-size", "1"),
        env=hosts.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    commits = output / "_runs" / "night" / "commits"
    while job.poll() is None and len(list(commits.glob("*.json"))) < 4:
        time.sleep(0.02)
    assert job.poll() is None, job.communicate()[1]
    hosts.cut(2)
    stdout, stderr = job.communicate(timeout=400)
    assert job.returncode == 0, stderr
    result = json.loads(stdout.splitlines()[-1])
    assert result["rows"] == NUM_IMAGES
    assert "2 actors on 2 nodes" in stderr
    assert "1 actors on 1 nodes" in stderr
    addresses = {node["node"].split("-")[0] for node in result["nodes"]}
    assert addresses <= {hosts.address_of(1), hosts.address_of(2)}
    assert comparable(published_rows(str(output))) == comparable(
        published_rows(str(tmp_path / "oracle"))
    )
