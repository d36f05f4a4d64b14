"""Images that are refused one by one, and a store that refuses everything."""

import os
from pathlib import Path

import pytest

from imgcls.errors import AccessDeniedError, ObjectMissingError, ObjectUnreadableError
from imgcls.storage.access import MAX_REFUSED_IN_A_ROW, Access, head_many
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.objects import ObjectInfo
from tests.kit.modes import let_nobody_in, not_root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return let_nobody_in(tmp_path)


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


def write_closed(folder: Path, count: int, closed: range) -> list[str]:
    """Write files, each in a folder of its own, of which some may not be entered."""
    uris = [str(folder / f"{number:04d}" / "x") for number in range(count)]
    for number, uri in enumerate(uris):
        Path(uri).parent.mkdir()
        Path(uri).write_bytes(b"x")
        Path(uri).parent.chmod(0 if number in closed else 0o755)
    return uris


def test_what_may_not_be_looked_at_is_told_in_its_place(folder: Path) -> None:
    uris = write_closed(folder, 60, range(50))  # more than are asked for at first
    with not_root():
        heads = list(head_many([*uris, str(folder / "gone")]))
    assert [type(head) for head in heads] == [
        *[ObjectUnreadableError] * 50, *[ObjectInfo] * 10, ObjectMissingError,
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 100])
def test_a_store_that_lets_nobody_look_is_an_error(count: int, folder: Path) -> None:
    uris = write_closed(folder, count, range(count))
    with not_root(), pytest.raises(AccessDeniedError, match="head"):
        list(head_many(uris))
