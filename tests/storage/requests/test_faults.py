"""A store that fails: nothing is lost, nothing is done twice, nothing is reported wrongly."""

import logging

import pytest

from imgcls.errors import (
    AccessDeniedError,
    CommitStateUnknownError,
    ObjectExistsError,
    StorageError,
)
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import head, list_objects, put, put_if_match, put_new, read
from imgcls.storage.requests import retry
from imgcls.storage.requests.retry import RetryPolicy
from imgcls.storage.stores import s3
from imgcls.storage.uri import join
from tests.kit.fault_proxy import Fault, FaultProxy

pytestmark = pytest.mark.s3


@pytest.fixture
def quick_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets of seconds, so that a test of giving up does not take a minute."""
    monkeypatch.setattr(
        retry, "POLICY", RetryPolicy(first_contact_s=2, budget_s=2, access_denied_s=2)
    )


@pytest.mark.parametrize(("percent", "num_objects"), [(5, 200), (20, 120), (50, 40)])
def test_get_many_gives_every_object_once(
    fault_proxy: FaultProxy, s3_bucket: str, percent: int, num_objects: int
) -> None:
    bodies = {i: bytes([i]) * (1000 + i) for i in range(num_objects)}
    for i, body in bodies.items():
        put(join(s3_bucket, f"{i}.jpg"), body)
    fault_proxy.fraction = percent / 100
    results = list(get_many(GetRequest(i, join(s3_bucket, f"{i}.jpg")) for i in bodies))
    assert len(results) == len(bodies)
    assert dict(results) == bodies
    assert sum(fault_proxy.num_faults.values()) > 0.5 * percent / 100 * len(bodies)


@pytest.mark.parametrize(("percent", "num_objects"), [(5, 25), (20, 15), (50, 6)])
def test_put_new_and_read_lose_nothing(
    fault_proxy: FaultProxy, s3_bucket: str, percent: int, num_objects: int
) -> None:
    fault_proxy.fraction = percent / 100
    for i in range(num_objects):
        uri = join(s3_bucket, f"commit-{i}")
        mine, theirs = f"mine {i}".encode(), f"theirs {i}".encode()
        put_new(uri, mine)
        with pytest.raises(ObjectExistsError):
            put_new(uri, theirs)
        assert read(uri) == mine
    listed = [info.uri for info in list_objects(s3_bucket)]
    assert sorted(listed) == sorted(join(s3_bucket, f"commit-{i}") for i in range(num_objects))
    assert fault_proxy.num_faults


def test_put_new_with_lost_reply_is_a_success(fault_proxy: FaultProxy, s3_bucket: str) -> None:
    uri = join(s3_bucket, "commit")
    fault_proxy.fail_next(Fault.LOST_REPLY, method="PUT")
    assert put_new(uri, b"mine") == head(uri).etag
    assert [method for method, _, _ in fault_proxy.requests].count("PUT") == 1


def test_put_new_with_lost_reply_after_another_writer_is_refused(
    fault_proxy: FaultProxy, s3_bucket: str
) -> None:
    uri = join(s3_bucket, "commit")
    put(uri, b"theirs")
    fault_proxy.fail_next(Fault.LOST_REPLY, method="PUT")
    with pytest.raises(ObjectExistsError):
        put_new(uri, b"mine")
    assert read(uri) == b"theirs"


def test_put_new_that_never_arrived_is_done_again(fault_proxy: FaultProxy, s3_bucket: str) -> None:
    uri = join(s3_bucket, "commit")
    fault_proxy.fail_next(Fault.RESET, method="PUT")
    put_new(uri, b"mine")
    assert read(uri) == b"mine"


def test_put_new_that_cannot_be_read_back_is_unknown(
    fault_proxy: FaultProxy, s3_bucket: str, quick_policy: None
) -> None:
    uri = join(s3_bucket, "commit")
    fault_proxy.fail_next(Fault.LOST_REPLY, method="PUT")
    fault_proxy.fraction, fault_proxy.faults = 1.0, (Fault.RESET,)
    with pytest.raises(CommitStateUnknownError, match="commit"):
        put_new(uri, b"mine")
    fault_proxy.fraction = 0.0
    assert read(uri) == b"mine"


def test_compare_and_swap_with_lost_reply_is_a_success(
    fault_proxy: FaultProxy, s3_bucket: str
) -> None:
    uri = join(s3_bucket, "lease")
    etag = put_new(uri, b"first")
    fault_proxy.fail_next(Fault.LOST_REPLY, method="PUT")
    assert put_if_match(uri, b"second", etag) == head(uri).etag
    assert read(uri) == b"second"


@pytest.mark.parametrize("fault", [Fault.TRUNCATE, Fault.SLOW_BODY])
@pytest.mark.parametrize("name", ["plain", "control\ncharacter"])
def test_body_comes_whole_or_not_at_all(
    fault_proxy: FaultProxy, s3_bucket: str, fault: Fault, name: str
) -> None:
    body = bytes(range(256)) * 100
    put(join(s3_bucket, name), body)
    fault_proxy.fail_next(fault)
    assert read(join(s3_bucket, name)) == body
    assert fault_proxy.num_faults[fault] == 1


def test_listing_survives_faults_between_pages(
    fault_proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE_SIZE", 10)
    uris = [join(s3_bucket, f"{i:02d}") for i in range(45)]
    for uri in uris:
        put(uri, b"x")
    listing = list_objects(s3_bucket)
    seen = [next(listing).uri]
    faults = (Fault.TRUNCATE, Fault.SLOW_DOWN, Fault.RESET, Fault.INTERNAL)
    fault_proxy.fail_next(*faults)
    seen += [info.uri for info in listing]
    assert seen == uris
    assert set(fault_proxy.num_faults) == set(faults)


def test_slow_down_lowers_the_concurrency_and_says_so(
    fault_proxy: FaultProxy, s3_bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(join(s3_bucket, "x"), b"x")
    fault_proxy.fail_next(*[Fault.SLOW_DOWN] * 3)
    with caplog.at_level(logging.INFO, "imgcls.storage"):
        results = list(get_many(GetRequest(i, join(s3_bucket, "x")) for i in range(50)))
    assert sorted(index for index, _ in results) == list(range(50))
    assert "asked to slow down 3 times" in caplog.text
    assert "from 32 to 16" in caplog.text


def test_denied_for_a_while_after_success_is_waited_out(
    fault_proxy: FaultProxy, s3_bucket: str
) -> None:
    put(join(s3_bucket, "x"), b"x")
    fault_proxy.fail_next(*[Fault.DENY] * 4)
    results = list(get_many(GetRequest(i, join(s3_bucket, "x")) for i in range(50)))
    assert sorted(results) == [(i, b"x") for i in range(50)]


def test_denied_for_long_is_raised(
    fault_proxy: FaultProxy, s3_bucket: str, quick_policy: None
) -> None:
    put(join(s3_bucket, "x"), b"x")
    fault_proxy.fraction, fault_proxy.faults = 1.0, (Fault.DENY,)
    with pytest.raises(AccessDeniedError, match=r"failed \d+ times"):
        list(get_many([GetRequest(0, join(s3_bucket, "x"))]))


def test_dead_store_is_raised_with_endpoint_operation_uri_and_attempts(
    fault_proxy: FaultProxy, s3_bucket: str, quick_policy: None
) -> None:
    put(join(s3_bucket, "x"), b"x")
    fault_proxy.fraction, fault_proxy.faults = 1.0, (Fault.INTERNAL,)
    with pytest.raises(StorageError) as caught:
        list(get_many(GetRequest(i, join(s3_bucket, "x")) for i in range(100)))
    for part in ("read", join(s3_bucket, "x"), fault_proxy.endpoint_url, "times", "InternalError"):
        assert part in str(caught.value)
