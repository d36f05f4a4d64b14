"""Web and SFTP servers: the read half of the store contract, and no write at all.

Two web servers: moto, which shows its objects over plain HTTP with etag, time and ranges, and
Python's own, which knows times only and answers with the whole file whatever range was asked for.
The SFTP server is asyncssh's, with OpenSSH's files beside it.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import (
    AccessDeniedError,
    ConfigError,
    ObjectChangedError,
    ObjectMissingError,
    StorageError,
)
from imgcls.storage.bucket import Span
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.info import UNVERSIONED
from imgcls.storage.objects import delete, head, list_objects, put, put_new, read_with_etag
from imgcls.storage.resolver import reset
from imgcls.storage.uri import join
from tests.kit.stores import Store


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Timeless(Quiet):
    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)


class Broken(Quiet):
    def do_GET(self) -> None:
        self.send_error(503)

    do_HEAD = do_GET


@contextmanager
def web_server(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def sftp_server(folder: Path, home: Path, *, is_known: bool = True) -> Iterator[str]:
    """Serve `folder` as root of an SFTP server; `home` gets the keys that open it."""
    import asyncssh

    host_key, user_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    ssh = home / ".ssh"
    ssh.mkdir(parents=True, exist_ok=True)
    user_key.write_private_key(ssh / "id_ed25519")
    user_key.write_public_key(ssh / "authorized")
    loop = asyncio.new_event_loop()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(ssh / "authorized"),
            sftp_factory=partial(asyncssh.SFTPServer, chroot=str(folder).encode()),
        )

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    port = acceptor.get_port()
    if is_known:
        public = host_key.export_public_key().decode()
        (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    try:
        yield f"sftp://reader@127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(acceptor.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def open_to_all(endpoint: str, bucket: str) -> None:
    import boto3

    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": [statement]}))


@pytest.fixture(params=["web", "web without etags", "sftp"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """A root to write to, and the URI under which the same is read."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    reset()
    if request.param == "web":
        store: Store = request.getfixturevalue("moto_store")
        bucket = store.new_bucket()
        open_to_all(store.endpoint_url, bucket.removeprefix("s3://"))
        yield bucket, f"{store.endpoint_url}/{bucket.removeprefix('s3://')}"
    elif request.param == "sftp":
        with sftp_server(folder, tmp_path / "home") as uri:
            yield str(folder), uri
    else:
        with web_server(folder) as uri:
            yield str(folder), uri
    reset()


def test_what_is_there_is_read_whole_and_in_spans(place: tuple[str, str]) -> None:
    root, uri = place
    body = bytes(range(256)) * 300
    put(join(root, "study 1/ä.png"), body)
    put(join(root, "empty"), b"")
    there = join(uri, "study 1/ä.png")
    data, etag = read_with_etag(there)
    info = head(there)
    assert (data, info.uri, info.etag, info.size_bytes) == (body, there, etag, len(body))
    assert read_with_etag(join(uri, "empty"))[0] == b""
    spans = [Span(0, 10), Span(1000, 5000), Span(len(body) - 5, 100), Span(len(body) + 9, 10)]
    asked = [GetRequest(i, there, etag, span=span) for i, span in enumerate(spans)]
    found = dict(get_many(asked))
    for i, span in enumerate(spans):
        assert found[i] == body[span.start :][: span.num_bytes]


def test_missing_and_changed_are_results(place: tuple[str, str]) -> None:
    root, uri = place
    put(join(root, "x"), b"one")
    etag = head(join(uri, "x")).etag
    put(join(root, "x"), b"another")
    found = dict(get_many([GetRequest(0, join(uri, "x"), etag), GetRequest(1, join(uri, "no"))]))
    assert isinstance(found[0], ObjectChangedError)
    assert isinstance(found[1], ObjectMissingError)
    with pytest.raises(ObjectMissingError, match="no such object"):
        head(join(uri, "no"))


def test_nothing_is_written_there(place: tuple[str, str]) -> None:
    _, uri = place
    for write in (lambda: put(join(uri, "x"), b""), lambda: put_new(join(uri, "x"), b"")):
        with pytest.raises(ConfigError, match="only reads"):
            write()
    with pytest.raises(ConfigError, match="only reads"):
        delete(join(uri, "x"))
    with pytest.raises(ConfigError, match=r"--output: .*holds images and manifests only"):
        NightlyConfig(source=uri, model="m", output=join(uri, "out"))


def test_an_sftp_folder_is_listed_and_a_web_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "files"
    names = ["a/1.png", "a/b/2.png", "a/b c/3.png", "z.png"]
    for name in names:
        put(str(folder / name), name.encode())
    (folder / "a/link.png").symlink_to("1.png")
    (folder / "a/dangling").symlink_to("nowhere")
    with sftp_server(folder, tmp_path / "home") as uri:
        found = {entry.uri: entry.size_bytes for entry in list_objects(join(uri, "a"))}
        whole = {entry.uri for entry in list_objects(uri)}
    assert whole == {join(uri, n) for n in [*names, "a/link.png"]}
    assert found == {join(uri, n): 7 for n in ["a/1.png", "a/link.png"]} | {
        join(uri, "a/b/2.png"): 9,
        join(uri, "a/b c/3.png"): 11,
    }
    with web_server(folder) as uri, pytest.raises(ConfigError, match="name them in a manifest"):
        list(list_objects(uri))


def test_a_server_that_is_not_known_gets_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(str(tmp_path / "files" / "x"), b"x")
    with (
        sftp_server(tmp_path / "files", tmp_path / "home", is_known=False) as uri,
        pytest.raises(ConfigError, match="known_hosts"),
    ):
        head(join(uri, "x"))


def test_a_key_that_the_server_does_not_know_is_access_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncssh

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(str(tmp_path / "files" / "x"), b"x")
    with sftp_server(tmp_path / "files", tmp_path / "home") as uri:
        other = asyncssh.generate_private_key("ssh-ed25519")
        other.write_private_key(tmp_path / "home/.ssh/id_ed25519")
        with pytest.raises(AccessDeniedError, match="keys come from"):
            head(join(uri, "x"))


def test_a_server_that_is_down_makes_no_image_missing(tmp_path: Path) -> None:
    with web_server(tmp_path, Broken) as uri, pytest.raises(StorageError) as failed:
        head(join(uri, "x.png"))
    assert not isinstance(failed.value, ObjectMissingError)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}/x.png"
        with pytest.raises(StorageError) as failed:
            head(gone)
    assert not isinstance(failed.value, ObjectMissingError)


def test_a_night_refuses_what_tells_no_version(tmp_path: Path) -> None:
    from imgcls.scoring.planning.difference import _versioned

    (tmp_path / "x.png").write_bytes(b"x")
    with web_server(tmp_path, Timeless) as uri:
        info = head(join(uri, "x.png"))
    assert info.etag.startswith(UNVERSIONED)
    with pytest.raises(ConfigError, match="cannot see what changed"):
        list(_versioned([info]))


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("https://me:secret@host/x.csv", "credentials"),
        ("https://me@host/x.csv", "credentials"),
        ("sftp://me:secret@host/x", "credentials"),
        ("https://host/x.png?X-Amz-Signature=secret", "signed links"),
        ("https://host/x.png#secret", "signed links"),
    ],
)
def test_secrets_in_a_uri_are_refused_and_not_repeated(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        TrainConfig(data=uri, registry="r", name="n")
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match=words) as refused:
        head(uri)
    assert "secret" not in str(refused.value)
