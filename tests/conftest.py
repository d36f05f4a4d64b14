"""Fixtures every area shares: a real S3 server, a fresh bucket on it, and a proxy that fails.

`s3_server` starts once per session, `s3_bucket` gives each test its own bucket and environment.
Clients find the server through the environment alone, as a user's would; so do child processes.
"""

import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgcls.demo.embedded_s3 import EmbeddedS3, embedded_s3
from imgcls.storage import resolver
from tests.kit import stores
from tests.kit.fault_proxy import FaultProxy, running_fault_proxy
from tests.kit.stores import Store

if TYPE_CHECKING:
    from imgcls.model.bundle import Bundle

# Before torch is loaded: two test processes on two cores are a busy machine, where threads that
# wait for each other awake keep a core from those that they wait for.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# A shell that starts us in the background has us ignore SIGINT, and all processes that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_temp_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temp folder that goes with the session: killed processes leave theirs behind.

    Its name is short, for sockets lie in it; the one of `tmp_path` is asked for first, and stays.
    """
    tmp_path_factory.getbasetemp()
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="it-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o1777)  # as /tmp: some tests run as somebody else
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
        tempfile.tempdir = None


@pytest.fixture(autouse=True)
def plain_log() -> None:
    """The log as a library has it: a fixture or test that ran a command sent it to stderr alone."""
    logger = logging.getLogger("imgcls")
    logger.handlers[:] = []
    logger.setLevel(logging.INFO)
    logger.propagate = True


@pytest.fixture(scope="session")
def s3_server() -> Iterator[EmbeddedS3]:
    """A SeaweedFS of this test session, with credentials that it checks."""
    with embedded_s3() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Store]:
    """A moto of this test session, another S3 that nobody here wrote."""
    with stores.moto() as store:
        yield store


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An Azurite of this test session; CI installs it, elsewhere it may be missing."""
    missing = stores.missing_azurite()
    if missing:
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    with stores.azurite(tmp_path_factory.mktemp("azurite")) as store:
        yield store


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server of Google's XML API, of this test session."""
    with stores.gcs(tmp_path_factory.mktemp("gcs")) as store:
        yield store


@pytest.fixture
def moto_store(moto_server: Store, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Lead every client of this test, and of its children, to moto; nothing else."""
    return _led_to(moto_server, monkeypatch)


@pytest.fixture
def az_store(azurite_server: Store, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Lead every client of this test, and of its children, to Azurite; nothing else."""
    return _led_to(azurite_server, monkeypatch)


@pytest.fixture
def gs_store(gcs_server: Store, no_aws: None, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Lead every client of this test, and of its children, to the GCS server; nothing else."""
    return _led_to(gcs_server, monkeypatch)


def _led_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without any store's setting: neither variables, nor files, nor a role."""
    for name in list(os.environ):
        if name.startswith(stores.PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    resolver.reset()
    yield
    resolver.reset()


@pytest.fixture
def s3_environment(
    s3_server: EmbeddedS3, no_aws: None, monkeypatch: pytest.MonkeyPatch
) -> EmbeddedS3:
    """Lead every S3 client of this test, and of its children, to the server; nothing else."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def s3_bucket(s3_environment: EmbeddedS3) -> str:
    """`s3://<bucket>`, fresh and empty, reachable through the environment."""
    return s3_environment.create_bucket(f"test-{uuid.uuid4().hex}")


@pytest.fixture
def fault_proxy(
    s3_environment: EmbeddedS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """A proxy between this test's clients and the server; it fails once the test says how.

    `s3_bucket` is reached through it. Set `.fraction` and `.faults`, or call `.fail_next(...)`.
    """
    with running_fault_proxy(s3_environment.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        resolver.reset()
        yield proxy
        resolver.reset()


@pytest.fixture
def make_bundle() -> Callable[..., "Bundle"]:
    """Build a small real bundle; see `small_bundle`, which is imported here because of torch."""
    from tests.kit.small_bundle import make_small_bundle

    return make_small_bundle
