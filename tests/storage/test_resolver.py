"""Where credentials, region and endpoint come from, and what happens without them."""

import json
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imgcls.config.paths import PLACES, READ_SCHEMES, SCHEMES
from imgcls.demo.embedded_s3 import EmbeddedS3
from imgcls.errors import AccessDeniedError, ConfigError, StorageError
from imgcls.storage import resolver
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import head, list_objects, put, put_new, read
from imgcls.storage.requests import retry
from imgcls.storage.requests.advice import ADVICE
from imgcls.storage.requests.retry import RetryPolicy
from imgcls.storage.stores.obstore_get import CONNECT_TIMEOUT_S
from imgcls.storage.uri import join

# What the issue of a wrong endpoint or missing credentials may take, by contract.
SOON_S = 15.0


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.s3
def test_endpoint_for_s3_beats_the_general_one(
    s3_environment: EmbeddedS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_environment.endpoint_url)
    put(join(s3_bucket, "x"), b"1")
    assert read(join(s3_bucket, "x")) == b"1"
    assert read(join(s3_bucket, "x")) == b"1"


@pytest.mark.s3
def test_profile_and_config_files_serve_both_clients(
    s3_environment: EmbeddedS3, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_environment.environment():
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3_environment.endpoint_url}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3_environment.access_key_id}\n"
        f"aws_secret_access_key = {s3_environment.secret_access_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    put(join(s3_bucket, "written by botocore"), b"read by obstore")
    assert read(join(s3_bucket, "written by botocore")) == b"read by obstore"


@pytest.mark.s3
def test_credentials_that_expire_are_renewed_for_both_clients(
    s3_environment: EmbeddedS3, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Expiry so near that both clients ask the process again, as a role's session ends.
    soon = (datetime.now(UTC) + timedelta(seconds=90)).isoformat()
    keys = {
        "Version": 1,
        "AccessKeyId": s3_environment.access_key_id,
        "SecretAccessKey": s3_environment.secret_access_key,
        "Expiration": soon,
    }
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    command = f"sh -c 'echo >> {tmp_path}/asked; cat {tmp_path}/keys.json'"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {command}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    put(join(s3_bucket, "x"), b"1")
    num_asked_to_put = len((tmp_path / "asked").read_text())
    assert [read(join(s3_bucket, "x")) for _ in range(2)] == [b"1"] * 2
    assert len((tmp_path / "asked").read_text()) > num_asked_to_put


@pytest.mark.s3
@pytest.mark.parametrize("operation", ["head", "read", "list", "put", "get_many"])
def test_wrong_credentials_are_denied_at_once(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    start_s = time.monotonic()
    with pytest.raises(AccessDeniedError) as caught:
        perform(operation, join(s3_bucket, "x"))
    assert time.monotonic() - start_s < SOON_S / 3
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("operation", ["head", "read", "list", "put", "get_many"])
def test_no_credentials_are_said_to_be_missing(no_aws: None, operation: str) -> None:
    with pytest.raises(AccessDeniedError, match=r"no credentials.*AWS_PROFILE"):
        perform(operation, "s3://bucket/x")


def test_silent_metadata_service_does_not_hold_us_up(
    no_aws: None, silent_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", silent_endpoint)
    start_s = time.monotonic()
    with pytest.raises(AccessDeniedError, match="no credentials"):
        head("s3://bucket/x")
    assert time.monotonic() - start_s < SOON_S


def test_unknown_profile_is_a_config_error(no_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        head("s3://bucket/x")


@pytest.mark.parametrize("operation", ["head", "read", "list", "put", "get_many"])
def test_unreachable_endpoint_is_named_soon(
    no_aws: None, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    set_static(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr(retry, "POLICY", RetryPolicy(first_contact_s=0.3))
    with pytest.raises(StorageError, match=r"http://127\.0\.0\.1:1 failed \d+ times"):
        perform(operation, "s3://bucket/x")


def test_silence_at_first_contact_ends_with_its_budget(
    no_aws: None, monkeypatch: pytest.MonkeyPatch, silent_endpoint: str
) -> None:
    set_static(monkeypatch, silent_endpoint)
    assert RetryPolicy().first_contact_s < SOON_S - CONNECT_TIMEOUT_S
    monkeypatch.setattr(retry, "POLICY", RetryPolicy(first_contact_s=1.0))
    start_s = time.monotonic()
    with pytest.raises(StorageError, match=silent_endpoint):
        list(list_objects("s3://bucket/x"))
    assert time.monotonic() - start_s < SOON_S / 2


@pytest.mark.s3
@pytest.mark.timeout(60)
def test_renewed_credentials_are_taken_up_while_a_run_goes_on(
    s3_environment: EmbeddedS3, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"

    def write(secret: str) -> None:
        credentials.write_text(
            f"[default]\naws_access_key_id = {s3_environment.access_key_id}\n"
            f"aws_secret_access_key = {secret}\n"
        )

    write(s3_environment.secret_access_key)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    uri = join(s3_bucket, "x")
    put(uri, b"1")
    # The clients are rebuilt with an expired secret, as after an hour of a role's session ...
    write("expired")
    account = next(iter(resolver._accounts.values()))
    account._client = None
    account._stores.clear()
    # ... and whoever renews the file does so a little later.
    threading.Timer(2.0, write, [s3_environment.secret_access_key]).start()
    assert list(get_many([GetRequest(0, uri)])) == [(0, b"1")]
    assert head(uri).size_bytes == 1


def child_reads(uri: str, results: "multiprocessing.Queue[bytes]") -> None:
    results.put(read(uri))


@pytest.mark.s3
def test_forked_child_builds_clients_of_its_own(s3_bucket: str) -> None:
    uri = join(s3_bucket, "x")
    put(uri, b"1")
    read(uri)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bytes] = context.Queue()
    child = context.Process(target=child_reads, args=(uri, results), daemon=True)
    child.start()
    assert results.get(timeout=30) == b"1"
    child.join(10)
    assert read(uri) == b"1"


@pytest.mark.s3
def test_error_survives_pickling(s3_bucket: str) -> None:
    put_new(join(s3_bucket, "x"), b"1")
    with pytest.raises(StorageError) as caught:
        put_new(join(s3_bucket, "x"), b"2")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  (our own)
    assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))


def test_local_paths_load_no_cloud_library() -> None:
    code = (
        "import sys; from imgcls.storage.objects import list_objects;"
        " list(list_objects('/nowhere')); print('botocore' in sys.modules)"
    )
    assert os.popen(f'{os.sys.executable} -c "{code}"').read().strip() == "False"  # type: ignore[attr-defined]  # noqa: S605


def perform(operation: str, uri: str) -> None:
    if operation == "head":
        head(uri)
    elif operation == "read":
        read(uri)
    elif operation == "list":
        list(list_objects(uri))
    elif operation == "put":
        put(uri, b"")
    else:
        list(get_many([GetRequest(0, uri)]))


def set_static(monkeypatch: pytest.MonkeyPatch, endpoint_url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def test_every_scheme_has_a_client_of_its_own_and_words_for_its_errors(
    s3_environment: EmbeddedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    clients = {scheme: type(resolver.bucket_of(scheme, "place")) for scheme in SCHEMES}
    assert len(set(clients.values())) == len(SCHEMES)
    assert set(ADVICE) == {*SCHEMES, *READ_SCHEMES}
    with pytest.raises(ConfigError, match="ftp:// has no client"):
        resolver.bucket_of("ftp", "place")
    with pytest.raises(ConfigError, match=f"use {PLACES}"):
        read("ftp://place/x")
