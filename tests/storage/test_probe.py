"""A store that takes conditions and ignores them is refused, before anything rests on it.

The stores that ignore are real ones behind a proxy that takes the headers away: what a gateway
does that does not know them. (npm's s3rver 3.7.1 does the same by itself.)
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgcls import cli
from imgcls.errors import ConfigError
from imgcls.model.registry import promote, register
from imgcls.storage import objects, probe, resolver
from imgcls.storage.objects import list_objects, put, read
from imgcls.storage.probe import require_conditional_writes
from imgcls.storage.uri import join
from tests.kit.fault_proxy import Fault, FaultProxy, running_fault_proxy
from tests.kit.stores import Store
from tests.scoring.tiny import make_bundle, write_images

NUM_STARTS = 8


@pytest.fixture
def moto_proxy(moto_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before moto, which checks no signature."""
    with running_fault_proxy(moto_store.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        resolver.reset()
        yield proxy
        resolver.reset()


@pytest.fixture
def gs_proxy(gs_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the GCS server."""
    with running_fault_proxy(gs_store.endpoint_url) as proxy:
        monkeypatch.setenv("GOOGLE_BASE_URL", proxy.endpoint_url)
        resolver.reset()
        yield proxy
        resolver.reset()


def writes(proxy: FaultProxy) -> list[str]:
    return [method for method, _, _ in proxy.requests if method not in ("GET", "HEAD")]


def test_every_store_here_is_proved_once(root: str) -> None:
    require_conditional_writes(root)
    before = [(info.uri, info.etag) for info in list_objects(root)]
    assert [uri for uri, _ in before] == (
        [] if root.startswith("/") else [join(root, "_store_probe.json")]
    )
    require_conditional_writes(root)
    assert [(info.uri, info.etag) for info in list_objects(root)] == before


def test_a_later_start_reads_one_object(moto_store: Store, moto_proxy: FaultProxy) -> None:
    root = moto_store.new_bucket()
    require_conditional_writes(root)
    assert "DELETE" not in writes(moto_proxy)
    moto_proxy.requests.clear()
    require_conditional_writes(root)
    assert [method for method, _, _ in moto_proxy.requests] == ["GET"]


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused_at_every_start(
    moto_store: Store, moto_proxy: FaultProxy, header: str
) -> None:
    root = moto_store.new_bucket()
    moto_proxy.stripped = (f"{header.lower()}:".encode(),)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"ignores {header}:") as caught:
            require_conditional_writes(root)
        assert moto_proxy.endpoint_url in str(caught.value)
    moto_proxy.stripped = ()
    require_conditional_writes(root)


def test_a_google_that_ignores_generations_is_refused(
    gs_store: Store, gs_proxy: FaultProxy
) -> None:
    gs_proxy.stripped = (b"x-goog-if-generation-match:",)
    with pytest.raises(ConfigError, match="ignores If-None-Match:"):
        require_conditional_writes(gs_store.new_bucket())


def test_another_endpoint_is_another_proof(
    moto_store: Store, moto_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = moto_store.new_bucket()
    with monkeypatch.context() as past:
        past.setenv("AWS_ENDPOINT_URL_S3", moto_store.endpoint_url)
        resolver.reset()
        require_conditional_writes(root)
    resolver.reset()
    moto_proxy.stripped = (b"if-none-match:",)
    with pytest.raises(ConfigError, match="ignores"):
        require_conditional_writes(root)
    moto_proxy.stripped = ()
    require_conditional_writes(root)
    record = json.loads(read(join(root, "_store_probe.json")))
    assert set(record["conditional_writes"]) == {
        moto_store.endpoint_url,
        moto_proxy.endpoint_url,
    }


def test_a_store_that_refuses_the_right_version_is_refused(
    moto_store: Store, moto_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that weakens every ETag: nobody could renew a lease there."""
    root = moto_store.new_bucket()
    monkeypatch.setattr("imgcls.storage.stores.s3.quoted", lambda etag: f'"W/{etag}"')
    with pytest.raises(ConfigError, match="refuses a write over the very version"):
        require_conditional_writes(root)


def test_first_starts_at_once_accuse_nobody(moto_store: Store) -> None:
    for _ in range(5):
        root = moto_store.new_bucket()
        barrier = threading.Barrier(NUM_STARTS)

        def start(_number: int, root: str = root, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            require_conditional_writes(root)

        with ThreadPoolExecutor(NUM_STARTS) as pool:
            list(pool.map(start, range(NUM_STARTS)))
        record = json.loads(read(join(root, "_store_probe.json")))
        assert set(record["conditional_writes"]) == {moto_store.endpoint_url}


@pytest.mark.parametrize("point", range(1, 5))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_between_its_writes_leaves_the_proof_to_the_next_start(
    moto_store: Store, point: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = moto_store.new_bucket()
    num_writes = 0

    def dying(name: str) -> object:
        write = getattr(objects, name)

        def write_or_die(*arguments: object) -> object:
            nonlocal num_writes
            num_writes += 1
            if num_writes == point and when == "before":
                raise SystemExit
            try:
                return write(*arguments)
            finally:
                if num_writes == point and when == "after":
                    raise SystemExit

        return write_or_die

    with monkeypatch.context() as patched:
        for name in ("put_new", "put_if_match"):
            patched.setattr(probe, name, dying(name))
        with pytest.raises(SystemExit):
            require_conditional_writes(root)
    require_conditional_writes(root)
    assert json.loads(read(join(root, "_store_probe.json")))["conditional_writes"]


def test_lost_replies_accuse_nobody(moto_store: Store, moto_proxy: FaultProxy) -> None:
    for _ in range(5):
        moto_proxy.fail_next(*[Fault.LOST_REPLY, Fault.INTERNAL] * 3, method="PUT")
        require_conditional_writes(moto_store.new_bucket())
        moto_proxy._queued.clear()


def test_what_somebody_else_left_there_is_no_proof(moto_store: Store) -> None:
    root = moto_store.new_bucket()
    for data in (b"", b"not json", b"[]", b'{"conditional_writes": 1}'):
        put(join(root, "_store_probe.json"), data)
        require_conditional_writes(root)
        assert json.loads(read(join(root, "_store_probe.json")))["conditional_writes"]


def test_at_every_door_the_command_ends_with_two_and_nothing_is_planned(
    moto_store: Store,
    moto_proxy: FaultProxy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(tmp_path / "registry")
    register(model, "tiny", make_bundle())
    promote(f"{model}/tiny@v1", "production")
    write_images(str(tmp_path / "bucket"), 28)
    register(remote := f"{moto_store.new_bucket()}/models", "tiny", make_bundle())
    moto_proxy.stripped = (b"if-match:",)
    output = f"{moto_store.new_bucket()}/out"
    flags = ["--source", str(tmp_path / "bucket"), "--model", f"{model}/tiny@v1"]
    commands = [
        [command, *flags, "--output", output, "--executor", "local"]
        for command in ("score", "nightly")
    ]
    commands.append(["promote", "--model", f"{remote}/tiny@v1", "--alias", "production"])
    train = ["train", "--data", str(tmp_path / "bucket"), "--registry", remote, "--name", "tiny"]
    commands.append([*train, "--arch", "simple_cnn", "--image-px", "32", "--batch-size", "4"])
    for command in commands:
        assert cli.main(command) == 2
        assert "ignores If-Match" in capsys.readouterr().out
    assert [info.uri for info in list_objects(output)] == [f"{output}/_store_probe.json"]
    # To look costs nothing, and asks for no permission to write.
    num_writes = len(writes(moto_proxy))
    assert cli.main(["plan", *flags, "--output", output]) == 0
    assert len(writes(moto_proxy)) == num_writes
