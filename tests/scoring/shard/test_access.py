"""Images that are refused one by one, and a store that refuses everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig
from imgcls.errors import AccessDeniedError, ObjectUnreadableError
from imgcls.nightly import nightly
from imgcls.runs.published import list_published
from imgcls.scoring.shard.access import MAX_REFUSED_IN_A_ROW, Access
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.objects import put
from imgcls.storage.requests import retry
from imgcls.storage.uri import join
from tests.fault_proxy import Fault, FaultProxy
from tests.scoring.tiny import image_bytes, published_rows, write_images

NOBODY = 65534


@contextmanager
def not_root() -> Iterator[None]:
    """Modes mean nothing to root."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(0o755)
    return tmp_path


def write_requests(folder: Path, count: int, refused: range) -> list[GetRequest]:
    for number in range(count):
        path = folder / f"{number:04d}"
        path.write_bytes(b"x")
        path.chmod(0 if number in refused else 0o644)
    return [GetRequest(number, str(folder / f"{number:04d}")) for number in range(count)]


def test_a_folder_of_refused_files_is_results_as_long_as_others_are_read(folder: Path) -> None:
    requests = write_requests(folder, 300, range(50, 250))
    with not_root():
        results = dict(Access(lambda: requests[:20]).read(requests))
    assert len(results) == 300
    refused = [n for n, body in results.items() if isinstance(body, ObjectUnreadableError)]
    assert sorted(refused) == list(range(50, 250))


def test_refused_from_the_first_on_is_proved_by_others_of_the_run(folder: Path) -> None:
    requests = write_requests(folder, 100, range(60))
    with not_root():
        results = dict(Access(lambda: requests[::5]).read(requests[:60]))
    assert len(results) == 60


@pytest.mark.parametrize("count", [1, 5, MAX_REFUSED_IN_A_ROW, 300])
def test_a_source_of_which_nothing_is_read_is_an_error(count: int, folder: Path) -> None:
    requests = write_requests(folder, count, range(count))
    access = Access(lambda: requests[:MAX_REFUSED_IN_A_ROW])
    with not_root(), pytest.raises(AccessDeniedError, match="images in a row could not be read"):
        list(access.read(requests))


def test_a_share_that_is_lost_on_the_way_is_an_error(folder: Path) -> None:
    requests = write_requests(folder, 200, range(0))
    access = Access(lambda: requests[::10])
    results = access.read(requests[:100])
    with not_root():
        assert len(list(results)) == 100
        os.seteuid(os.getuid())
        for request in requests:
            os.chmod(request.uri, 0)  # noqa: PTH101 - a path as a uri
    with not_root(), pytest.raises(AccessDeniedError):
        list(access.read(requests[100:]))


def test_what_was_refused_in_an_earlier_night_proves_nothing_and_needs_no_proof(
    folder: Path,
) -> None:
    requests = write_requests(folder, 30, range(30))
    access = Access(lambda: requests[:20])
    with not_root():
        results = dict(access.read(requests, {request.uri for request in requests}))
    assert all(isinstance(body, ObjectUnreadableError) for body in results.values())


def test_a_sector_that_cannot_be_read_costs_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x")
    # The kernel answers EIO to whoever reads there.
    requests = [GetRequest(0, "/proc/self/mem"), GetRequest(1, str(tmp_path / "good"))]
    results = dict(Access(lambda: requests).read(requests))
    assert isinstance(results[0], ObjectUnreadableError)
    assert results[1] == b"x"


@pytest.fixture
def quick_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "POLICY", retry.RetryPolicy(access_denied_s=2.0, max_delay_s=0.2))


def test_one_refused_key_costs_its_image_and_comes_back_once_it_is_given(
    fault_proxy: FaultProxy, s3_bucket: str, model_ref: str, quick_policy: None
) -> None:
    write_images(join(s3_bucket, "in"), 40)
    night = NightlyConfig(
        join(s3_bucket, "in"), model_ref, join(s3_bucket, "out"), executor="local", num_decoders=1
    )
    fault_proxy.refused_keys = ("00007.png",)
    assert nightly(night)["status_counts"] == {"ok": 39, "unreadable": 1}
    [row] = [row for row in published_rows(night.output).to_pylist() if row["status"] != "ok"]
    assert "AccessDenied" in row["error"]
    assert row["format"] is None
    # It is all that is left to do, and refused again: neither an error nor lost for good.
    again = nightly(night)
    assert again["status_counts"] == {"unreadable": 1}
    assert again["difference"]["failed_before"] == 1
    put(join(night.source, "new.png"), image_bytes(99))
    assert nightly(night)["status_counts"] == {"ok": 1, "unreadable": 1}
    fault_proxy.refused_keys = ()
    assert nightly(night)["status_counts"] == {"ok": 1}
    assert nightly(night)["rows"] == 0


@pytest.mark.parametrize("fault", [Fault.DENY, Fault.REFUSE])
def test_a_store_that_refuses_every_image_ends_the_night_without_a_row(
    fault: Fault,
    fault_proxy: FaultProxy,
    s3_bucket: str,
    model_ref: str,
    quick_policy: None,
    tmp_path: Path,
) -> None:
    write_images(join(s3_bucket, "in"), 40)
    night = NightlyConfig(
        join(s3_bucket, "in"), model_ref, str(tmp_path / "out"), executor="local", num_decoders=1
    )
    fault_proxy.refused_keys = (".png",)
    fault_proxy.refusal = fault
    with pytest.raises(AccessDeniedError):
        nightly(night)
    assert list(list_published(night.output)) == []
    assert not list(Path(night.output).glob("_runs/*/commits/*"))
