"""The servers that stand for the four kinds of store, each a real process on a port of its own.

SeaweedFS and moto speak S3, Azurite Azure's protocol, `gcs_server` Google's: see there why it is
our own. A server is told where it may listen, and dies with the process that started it.
"""

import base64
import hashlib
import hmac
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from shutil import which
from urllib.parse import SplitResult, urlsplit

import pytest

from imgcls.demo.embedded_s3 import PORTS

ROOT = Path(__file__).parents[2]
# Where .ci/install-tools puts it; see there for its version.
AZURITE = ROOT / ".tools" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
READY_WITHIN_S = 60.0
# Every variable that leads a client somewhere.
PREFIXES = ("AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "GCE_", "NO_GCE_CHECK")
# Every server has a fixture <name>_store in tests/conftest.py; SeaweedFS, which is "s3", s3_bucket.
# A server that is named here is put through the contract of tests/storage and nights on stores.
SERVERS = ("s3", "moto", "az", "gs")
# moto looks whether a name is free and writes to it in two steps, so of two writers both may win.
ATOMIC_SERVERS = ("s3", "az", "gs")


def new_bucket(request: pytest.FixtureRequest, server: str) -> str:
    """Return the URI of a fresh, empty bucket of a server."""
    if server == "s3":
        return str(request.getfixturevalue("s3_bucket"))
    store: Store = request.getfixturevalue(f"{server}_store")
    return store.new_bucket()


@dataclass(frozen=True)
class Store:
    """A running server: the variables that lead clients to it, and how to make a bucket there."""

    scheme: str
    endpoint_url: str
    environment: dict[str, str]
    create: Callable[[str], None]

    def new_bucket(self) -> str:
        """Create a bucket of a fresh name and return its URI."""
        name = f"test-{uuid.uuid4().hex}"
        self.create(name)
        return f"{self.scheme}://{name}"


@contextmanager
def moto() -> Iterator[Store]:
    """Run moto's server; it checks no credentials."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with _running(command, url):
        yield Store("s3", url, environment, lambda name: _send("PUT", f"{url}/{name}"))


@contextmanager
def azurite(folder: Path) -> Iterator[Store]:
    """Run Azurite's blob service; it checks every signature."""
    port, account = free_port(), "devstoreaccount1"
    key = base64.b64encode(os.urandom(64)).decode()
    url = f"http://127.0.0.1:{port}/{account}"
    command = [_node(), str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--location", str(folder), "--silent", "--disableTelemetry"]
    environment = {
        "AZURE_STORAGE_ACCOUNT_NAME": account,
        "AZURE_STORAGE_ACCOUNT_KEY": key,
        "AZURE_STORAGE_ENDPOINT": url,
    }

    def create(name: str) -> None:
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
        described = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        text = f"PUT{12 * chr(10)}{described}/{account}/{account}/{name}\nrestype:container"
        signature = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {account}:{base64.b64encode(signature).decode()}"
        _send("PUT", f"{url}/{name}?restype=container", headers)

    with _running(command, url, {"AZURITE_ACCOUNTS": f"{account}:{key}"}):
        yield Store("az", url, environment, create)


@contextmanager
def gcs(folder: Path) -> Iterator[Store]:
    """Run our server of Google's XML API; it checks the token of a service account."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    command = [sys.executable, "-m", "tests.kit.gcs_server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        secret = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = secret.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        private = secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        key = {
            "type": "service_account",
            "project_id": "project",
            "client_email": "night@project.iam.gserviceaccount.com",
            "private_key": private.decode(),
            "private_key_id": "1",
            "token_uri": f"{url}/token",
        }
        _send("POST", f"{url}/_key", data=public)
        (folder / "key.json").write_text(json.dumps(key))
        environment = {
            "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "key.json"),
            "GOOGLE_BASE_URL": url,
        }
        try:
            yield Store("gs", url, environment, lambda name: _send("PUT", f"{url}/{name}"))
        finally:
            process.stdin.close()


def missing_azurite() -> str:
    """Return why Azurite cannot run here, or "" where it can."""
    if not AZURITE.exists():
        return f"no Azurite in {AZURITE.parents[4]}: .ci/install-tools installs it"
    return "" if which("node") else "no node in PATH"


def free_port() -> int:
    """Return a port that nobody listens at now, outside the range of client connections."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@contextmanager
def _running(command: list[str], url: str, extra: dict[str, str] | None = None) -> Iterator[None]:
    """Run a server until the block ends, and wait until it answers."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | (extra or {}),
    ) as process:
        try:
            _wait_until_it_answers(urlsplit(url), process)
            yield
        finally:
            process.kill()


def _wait_until_it_answers(url: SplitResult, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while True:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        with suppress(OSError), socket.create_connection((url.hostname, url.port), timeout=2):
            return
        assert time.monotonic() < deadline_s, f"{url.geturl()} does not answer"
        time.sleep(0.05)


def _node() -> str:
    node = which("node")
    assert node, "asked for only where missing_azurite() finds none missing"
    return node


def _send(method: str, url: str, headers: dict[str, str] | None = None, data: bytes = b"") -> None:
    """Make a request of a test's own, and insist on its success."""
    request = urllib.request.Request(url, data, headers or {}, method=method)  # noqa: S310 - as above
    request.add_unredirected_header("Content-Type", "")
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 - as above
        assert reply.status < 300
