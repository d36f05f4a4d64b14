"""What is peculiar to Google's and Azure's stores, and must not show."""

import asyncio
import gzip
import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from azure.storage.blob import ContainerClient
from obstore.store import AzureStore, GCSStore

from imgcls.errors import (
    AccessDeniedError,
    ConfigError,
    ObjectChangedError,
    ObjectMissingError,
    StorageError,
)
from imgcls.storage import resolver
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import (
    ObjectInfo,
    Skipped,
    delete,
    head,
    list_entries,
    list_folder,
    list_objects,
    put,
    put_if_match,
    put_new,
    read,
    read_with_etag,
)
from imgcls.storage.requests.background_loop import run
from imgcls.storage.requests.failures import from_obstore
from imgcls.storage.requests.retry import TransientError
from imgcls.storage.stores import azure, gcs
from imgcls.storage.uri import join
from tests.kit.stores import SERVERS, Store, new_bucket

SOON_S = 5.0


@pytest.fixture(params=SERVERS)
def bucket(request: pytest.FixtureRequest) -> str:
    """A fresh, empty bucket of each server."""
    return new_bucket(request, request.param)


@pytest.fixture(params=SERVERS[1:])
def plain(request: pytest.FixtureRequest) -> str:
    """The same where a key is a plain text: SeaweedFS keeps files, and joins what "//" parts."""
    return new_bucket(request, request.param)


def reasons(uri: str) -> dict[str, str]:
    return {entry.uri: entry.reason for entry in list_entries(uri) if isinstance(entry, Skipped)}


def test_a_folder_marker_is_no_image_whatever_lies_beside_it(plain: str) -> None:
    for name in ("p/", "p/lot/", "p/lot", "p/lot/1.png"):
        put(
            join(plain, name) if name[-1] != "/" else f"{plain}/{name}",
            b"x" * (name[-1] != "/"),
        )
    put(join(plain, "p/empty"), b"")
    assert {info.uri for info in list_objects(join(plain, "p"))} == {
        join(plain, "p/lot"),
        join(plain, "p/lot/1.png"),
        join(plain, "p/empty"),
    }
    assert reasons(join(plain, "p")) == {
        f"{plain}/p/": "a folder marker",
        f"{plain}/p/lot/": "a folder marker",
    }


def test_folders_that_azures_own_tools_made_are_no_images(az_store: Store) -> None:
    root = az_store.new_bucket()
    put(join(root, "lot/1.png"), b"1")
    container(az_store, root).upload_blob("lot", b"", metadata={"hdi_isfolder": "true"})
    assert [info.uri for info in list_objects(root)] == [join(root, "lot/1.png")]
    assert reasons(root) == {join(root, "lot"): "a folder marker"}


def test_an_archived_blob_is_named_not_read(az_store: Store) -> None:
    root = az_store.new_bucket()
    put(join(root, "1.png"), b"1")
    container(az_store, root).get_blob_client("1.png").set_standard_blob_tier("Archive")
    assert list(list_objects(root)) == []
    assert "archived" in reasons(root)[join(root, "1.png")]


def container(store: Store, root: str) -> ContainerClient:
    """A client for what imgcls itself never does."""
    account, key = (store.environment[f"AZURE_STORAGE_ACCOUNT_{name}"] for name in ("NAME", "KEY"))
    credential = {"account_name": account, "account_key": key}
    name = root.removeprefix("az://")
    return ContainerClient(
        store.endpoint_url, name, credential=credential, api_version="2023-11-03"
    )


@pytest.mark.parametrize("key", ["a//b.png", "/a.png", "//", "a/\tb.png", "dir//sub//x"])
def test_a_key_that_the_fast_client_cannot_name_is_listed_and_read(plain: str, key: str) -> None:
    uri = f"{plain}/{key}"
    put(join(plain, "before"), b"0")
    etag = put_new(uri, b"1")
    put(join(plain, "zz-after"), b"2")
    assert uri in {info.uri for info in list_objects(plain)}
    assert len(list(list_entries(plain))) == 3
    assert head(uri).etag == etag
    assert read_with_etag(uri) == (b"1", etag)
    assert dict(get_many([GetRequest(0, uri, etag)])) == {0: b"1"}
    changed = put_if_match(uri, b"3", etag)
    [(_, error)] = get_many([GetRequest(0, uri, etag)])
    assert isinstance(error, ObjectChangedError)
    delete(uri)
    [(_, error)] = get_many([GetRequest(0, uri, changed)])
    assert isinstance(error, ObjectMissingError)


def test_what_was_deleted_since_is_missing_and_what_was_replaced_is_changed(bucket: str) -> None:
    gone, other = join(bucket, "gone"), join(bucket, "other")
    etags = {uri: put_new(uri, b"1") for uri in (gone, other)}
    delete(gone)
    put(other, b"2")
    results = dict(get_many([GetRequest(0, gone, etags[gone]), GetRequest(1, other, etags[other])]))
    assert isinstance(results[0], ObjectMissingError)
    assert isinstance(results[1], ObjectChangedError)


def test_a_key_with_dot_segments_is_named_and_never_another_one(
    gs_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    address = urlsplit(gs_store.endpoint_url).netloc
    bucket = f"public-{time.time_ns()}"
    connection = http.client.HTTPConnection(address)
    for path in (f"/{bucket}", f"/{bucket}/a/%2E%2E/b", f"/{bucket}/b"):
        connection.request("PUT", path, b"1")
        assert connection.getresponse().read() == b""
    assert [info.uri for info in list_objects(f"gs://{bucket}")] == [f"gs://{bucket}/b"]
    [(uri, reason)] = reasons(f"gs://{bucket}").items()
    assert uri == f"gs://{bucket}/a/../b"
    assert "'..' segment" in reason
    with pytest.raises(ConfigError, match="segment"):
        read(uri)


def test_pages_go_on_whatever_is_in_their_names(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gcs, azure):
        monkeypatch.setattr(module, "PAGE_SIZE", 3)
    monkeypatch.setattr("imgcls.storage.stores.s3.PAGE_SIZE", 3)
    names = ["a+b", "a b", "a%2Bb", "a&b=c", "a//b", "é/日本", "é/x?y#z", "z/", "z/1", "~"]
    for name in names:
        put(f"{plain}/{name}", b"" if name.endswith("/") else b"x")
    listed = [entry.uri.removeprefix(f"{plain}/") for entry in list_entries(plain)]
    assert sorted(listed) == sorted(names)
    for position, name in enumerate(listed):
        rest = list_entries(plain, start_after=f"{plain}/{name}")
        found = [entry.uri.removeprefix(f"{plain}/") for entry in rest]
        assert found == listed[position + 1 :]


def test_one_level_is_listed_as_it_is_listed_whole(bucket: str) -> None:
    for name in ("p/1", "p/q/2", "p/q/r/3", "p/s//4", "x"):
        put(f"{bucket}/{name}", b"x")
    level = list_folder(f"{bucket}/p")
    if level is None:
        assert bucket.startswith("az://")
        return
    assert sorted(level.folders) == [f"{bucket}/p/q/", f"{bucket}/p/s/"]
    assert [entry.uri for entry in level.entries] == [f"{bucket}/p/1"]


def test_the_same_bytes_written_again_are_another_generation(gs_store: Store) -> None:
    """Google's ETag is a digest of the bytes: a swap must not go by it alone."""
    uri = join(gs_store.new_bucket(), "x")
    first = put_new(uri, b"1")
    assert put_if_match(uri, b"2", first) != first
    put(uri, b"1")
    assert read_with_etag(uri) == (b"1", first)
    assert put_if_match(uri, b"3", first)
    with pytest.raises(ObjectChangedError):
        put_if_match(uri, b"4", first)


def test_a_generation_that_was_planned_and_overwritten_is_changed_not_missing(
    gs_store: Store,
) -> None:
    """Plans made before say the generation as version id; to Google it is simply gone."""
    uri = join(gs_store.new_bucket(), "x")
    etag = put(uri, b"1")
    put(uri, b"2")
    [(_, error)] = get_many([GetRequest(0, uri, etag, version_id="1")])
    assert isinstance(error, ObjectChangedError)
    assert isinstance(head(uri), ObjectInfo)
    assert head(uri).version_id is None


def test_what_the_client_refuses_is_not_tried_again() -> None:
    """Real refusals of the real client, before anything is sent."""

    async def token() -> dict[str, object]:
        return {"token": "x", "expires_at": None}

    async def write(store: GCSStore) -> None:
        await obstore.put_async(store, "k", b"x", mode={"e_tag": "x"}, use_multipart=False)

    async def read_from(store: GCSStore) -> None:
        await obstore.get_async(store, "k")

    google = GCSStore("b", base_url="http://127.0.0.1:1", credential_provider=token)
    with pytest.raises(obstore.exceptions.GenericError) as refused:
        asyncio.run(write(google))
    with pytest.raises(obstore.exceptions.GenericError) as unnamed:
        AzureStore("b", account_name="x", account_key="not base 64")
    for caught in (refused, unnamed):
        assert type(from_obstore(caught.value, "read 'gs://b/k'")) is StorageError
    options = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
    nobody = GCSStore("b", base_url="http://127.0.0.1:1", credential_provider=token, **options)
    with pytest.raises(obstore.exceptions.GenericError) as unanswered:
        asyncio.run(read_from(nobody))
    assert isinstance(from_obstore(unanswered.value, "read 'gs://b/k'"), TransientError)


def test_a_swap_is_not_retried_for_a_minute(gs_store: Store) -> None:
    uri = join(gs_store.new_bucket(), "x")
    put(uri, b"1")
    start_s = time.monotonic()
    with pytest.raises(ObjectChangedError):
        put_if_match(uri, b"2", "0" * 32)
    assert time.monotonic() - start_s < SOON_S


@pytest.mark.parametrize("operation", [head, read, list_objects, lambda uri: put(uri, b"")])
def test_azure_refuses_in_azures_words(
    az_store: Store, monkeypatch: pytest.MonkeyPatch, operation: object
) -> None:
    root = az_store.new_bucket()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    with pytest.raises(AccessDeniedError, match="AZURE_STORAGE_ACCOUNT_KEY") as caught:
        list(operation(join(root, "x")))  # type: ignore[operator]
    assert "AWS_" not in str(caught.value)
    assert "d3Jvbmc" not in str(caught.value)


@pytest.mark.parametrize("operation", [head, read, list_objects, lambda uri: put(uri, b"")])
def test_google_refuses_in_googles_words(
    gs_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: object
) -> None:
    root = gs_store.new_bucket()
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "wrong")
    with pytest.raises(AccessDeniedError, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
        list(operation(join(root, "x")))  # type: ignore[operator]
    assert "AWS_" not in str(caught.value)
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    resolver.reset()
    with pytest.raises(AccessDeniedError, match=r"nothing\.json"):
        list(operation(join(root, "x")))  # type: ignore[operator]


def test_an_account_that_is_not_named_is_asked_for(no_aws: None) -> None:
    with pytest.raises(AccessDeniedError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        read("az://container/x")


@pytest.mark.parametrize(
    ("variable", "uri"),
    [("GOOGLE_BASE_URL", "gs://b/x"), ("AZURE_STORAGE_ENDPOINT", "az://b/x")],
)
def test_an_endpoint_that_is_no_url_is_refused_by_name(
    no_aws: None, monkeypatch: pytest.MonkeyPatch, variable: str, uri: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "me")
    monkeypatch.setenv(variable, "127.0.0.1:1")
    with pytest.raises(ConfigError, match=variable):
        read(uri)


@pytest.mark.parametrize(("scheme", "store"), [("gs", "gs_store"), ("az", "az_store")])
def test_a_bucket_that_is_not_there_is_said_to_be_missing(
    scheme: str, store: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(store)
    for operation in (head, read, lambda uri: put(uri, b""), lambda uri: list(list_objects(uri))):
        with pytest.raises(ConfigError, match="does not exist"):
            operation(f"{scheme}://nothing-of-the-kind/x")
        resolver.reset()


def test_a_key_file_without_oauth_leads_to_its_own_server(
    gs_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the emulators of Google's store are given to obstore."""
    key = {"gcs_base_url": gs_store.endpoint_url, "disable_oauth": True}
    key |= {"client_email": "", "private_key": "", "private_key_id": ""}
    (tmp_path / "emulator.json").write_text(json.dumps(key))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.delenv("GOOGLE_BASE_URL")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "emulator.json"))
    bucket = f"public-{time.time_ns()}"
    connection = http.client.HTTPConnection(urlsplit(gs_store.endpoint_url).netloc)
    connection.request("PUT", f"/{bucket}")
    connection.getresponse().read()
    etag = put_new(f"gs://{bucket}/x", b"1")
    assert read_with_etag(f"gs://{bucket}/x") == (b"1", etag)


def test_an_object_that_is_stored_compressed_is_read_as_it_is_stored(gs_store: Store) -> None:
    """Google undoes gzip on the way: then the bytes are not as many as were listed."""
    root = gs_store.new_bucket()
    put(join(root, "other"), b"1")
    bucket = resolver.bucket_of("gs", root.removeprefix("gs://"))
    assert isinstance(bucket, gcs.GcsBucket)
    stored = gzip.compress(b"x" * 1000)
    headers = {"Content-Encoding": "gzip"}
    for key in ("gz", "x//gz"):
        run(bucket._call("PUT", key, "write", data=stored, headers=headers))
        uri = f"{root}/{key}"
        assert head(uri).size_bytes == len(stored)
        assert read(uri) == stored


def test_a_name_cannot_pass_for_an_error(bucket: str) -> None:
    """Errors are told apart by the store's code, not by words in the name of the object."""
    put(join(bucket, "other"), b"1")
    for name in ("NoSuchBucket.png", "ExpiredToken.png", "status code: 503.png", "<Code>x</Code>"):
        with pytest.raises(ObjectMissingError):
            read(join(bucket, name))
