"""get_many: every request gives one result, lazily, boundedly, from any number of threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgcls.demo.embedded_s3 import EmbeddedS3
from imgcls.errors import AccessDeniedError, ConfigError, ObjectChangedError, ObjectMissingError
from imgcls.storage import resolver
from imgcls.storage.bucket import Span
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import head, put
from imgcls.storage.uri import join, split_uri


def put_numbered(root: str, count: int) -> list[GetRequest]:
    return [
        GetRequest(i, join(root, f"{i}"), etag=put(join(root, f"{i}"), f"body {i}".encode()))
        for i in range(count)
    ]


@pytest.mark.parametrize("max_in_flight", [1, 2, 7, 32])
def test_every_request_gives_its_bytes_once(root: str, max_in_flight: int) -> None:
    requests = put_numbered(root, 30)
    results = list(get_many(requests, max_in_flight=max_in_flight))
    assert len(results) == 30
    assert dict(results) == {i: f"body {i}".encode() for i in range(30)}


def test_nothing_asked_nothing_given() -> None:
    assert list(get_many([])) == []


def test_missing_and_changed_objects_are_results(root: str) -> None:
    requests = put_numbered(root, 3)
    put(requests[1].uri, b"overwritten")
    requests.append(GetRequest(99, join(root, "missing")))
    results = dict(get_many(requests))
    assert results[0] == b"body 0"
    assert isinstance(results[1], ObjectChangedError)
    assert results[2] == b"body 2"
    assert isinstance(results[99], ObjectMissingError)
    assert requests[1].uri in str(results[1])


def test_without_an_etag_the_current_version_is_read(root: str) -> None:
    (request,) = put_numbered(root, 1)
    put(request.uri, b"overwritten")
    assert list(get_many([GetRequest(5, request.uri)])) == [(5, b"overwritten")]


def test_requests_are_pulled_as_results_are_taken(root: str) -> None:
    requests = put_numbered(root, 30)
    num_pulled = 0

    def pull() -> Iterator[GetRequest]:
        nonlocal num_pulled
        for request in requests:
            num_pulled += 1
            yield request

    results = get_many(pull(), max_in_flight=8)
    for num_taken in range(1, 31):
        next(results)
        assert num_pulled - num_taken <= 8 + 2 + 1
    assert num_pulled == 30


def test_closing_early_leaves_the_next_transfer_alone(root: str) -> None:
    requests = put_numbered(root, 40)
    for _ in range(3):
        results = get_many(requests)
        next(results)
        results.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(get_many(requests))) == 40


def test_error_of_the_feeder_reaches_the_consumer(root: str) -> None:
    requests = put_numbered(root, 2)

    def pull() -> Iterator[GetRequest]:
        yield from requests
        raise RuntimeError("listing broke")

    with pytest.raises(RuntimeError, match="listing broke"):
        list(get_many(pull()))


def test_threads_may_transfer_at_once(root: str) -> None:
    requests = put_numbered(root, 50)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: dict(get_many(requests)), range(4)):
            assert results == {i: f"body {i}".encode() for i in range(50)}


@pytest.mark.s3
def test_missing_bucket_is_raised(s3_bucket: str) -> None:
    requests = [*put_numbered(s3_bucket, 5), GetRequest(9, "s3://no-such-bucket/x")]
    with pytest.raises(ConfigError, match="no-such-bucket"):
        list(get_many(requests))


@pytest.mark.s3
def test_denied_access_is_raised(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = put_numbered(s3_bucket, 5)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    resolver.reset()
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        list(get_many(requests))


@pytest.mark.s3
def test_version_id_reads_that_version(s3_environment: EmbeddedS3, s3_bucket: str) -> None:
    uri, client = join(s3_bucket, "x"), s3_environment.client
    bucket = split_uri(s3_bucket)[1]
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    old = client.put_object(Bucket=bucket, Key="x", Body=b"old")["VersionId"]
    put(uri, b"new")
    assert list(get_many([GetRequest(0, uri, version_id=old)])) == [(0, b"old")]
    assert list(get_many([GetRequest(0, uri)])) == [(0, b"new")]
    assert head(uri).version_id != old


@pytest.mark.parametrize("name", ["plain", "odd//name"])
def test_a_span_of_an_object_is_read_and_no_more(root: str, name: str) -> None:
    if "//" in name and "://" not in root:
        pytest.skip("a disk has no such name")
    uri = f"{root}/{name}"
    etag = put(uri, bytes(range(200)))
    spans = [Span(0, 10), Span(190, 50), Span(5, 1), Span(200, 5)]
    requests = [GetRequest(i, uri, etag, span=span) for i, span in enumerate(spans)]
    results = dict(get_many(requests))
    assert results[0] == bytes(range(10))
    assert results[1] == bytes(range(190, 200))
    assert results[2] == bytes([5])
    # Where a store has no bytes there, that is another object than was meant, or none at all.
    assert results[3] == b"" or isinstance(results[3], ObjectChangedError)
    put(uri, b"overwritten")
    assert isinstance(dict(get_many(requests[:1]))[0], ObjectChangedError)
