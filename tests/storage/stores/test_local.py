"""What only a local disk has: links, odd names, half-written files, killed writers."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from imgcls.errors import (
    AccessDeniedError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.info import ObjectInfo, Skipped
from imgcls.storage.objects import (
    exists,
    head,
    list_entries,
    list_objects,
    put,
    put_if_match,
    put_new,
    read,
)
from tests.kit.modes import let_nobody_in, not_root


def listed(folder: Path) -> list[str]:
    return [str(Path(info.uri).relative_to(folder)) for info in list_objects(str(folder))]


def test_listing_is_sorted_by_the_bytes_of_the_whole_path(tmp_path: Path) -> None:
    names = ["a/x", "a b", "a.b", "a0", "a/y/z", "A", "é", "b/c", "a-b/c", "_x/y"]
    for name in names:
        put(str(tmp_path / name), b"")
    assert listed(tmp_path) == sorted(names, key=os.fsencode)


def test_temporary_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".imgcls-tmp-123").write_bytes(b"half")
    (tmp_path / ".imgcls-tmp").write_bytes(b"a name of its own")
    assert listed(tmp_path) == [".imgcls-tmp"]


@pytest.mark.parametrize(
    ("mtime_s", "year"), [(10**12, 9999), (-(10**10), 1653), (-(10**12), 1), (0, 1970)]
)
def test_a_time_that_no_calendar_has_is_the_nearest_one(mtime_s: int, year: int) -> None:
    # As broken file systems give them; only a file system of memory takes them all.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "x"
        path.write_bytes(b"1")
        os.utime(path, (mtime_s, mtime_s))
        [info] = list_objects(folder)
        assert info.last_modified.year == year


def test_refused_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    put_new(str(tmp_path / "x"), b"1")
    with pytest.raises(ObjectExistsError):
        put_new(str(tmp_path / "x"), b"2")
    assert os.listdir(tmp_path) == ["x"]  # noqa: PTH208  (names, hidden ones too)


def test_failing_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(StorageError):
        put(str(tmp_path / "x"), b"2")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


KILLED_WRITER = """
import os, signal, sys
from imgcls.storage.objects import put, put_new
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
{"put": put, "put_new": put_new}[sys.argv[1]](sys.argv[2], b"new" * 1000)
"""


@pytest.mark.parametrize("operation", ["put", "put_new"])
def test_killed_writer_does_no_harm(tmp_path: Path, operation: str) -> None:
    target = tmp_path / "x"
    if operation == "put":
        target.write_bytes(b"old")
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, operation, str(target)], check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".imgcls-tmp-*"))) == 1
    assert listed(tmp_path) == (["x"] if operation == "put" else [])
    put(str(target), b"next")
    assert read(str(target)) == b"next"


def test_what_is_no_readable_file_is_skipped_with_a_reason(tmp_path: Path) -> None:
    put(str(tmp_path / "image.jpg"), b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jpg")).write_bytes(b"x")
    entries = list(list_entries(str(tmp_path)))
    reasons = {Path(e.uri).name: e.reason for e in entries if isinstance(e, Skipped)}
    assert set(reasons) == {"pipe", "dangling", "bad\\xff.jpg"}
    assert "not a regular file" in reasons["pipe"]
    assert "does not exist" in reasons["dangling"]
    assert "UTF-8" in reasons["bad\\xff.jpg"]
    assert [e.uri for e in entries if isinstance(e, ObjectInfo)] == [str(tmp_path / "image.jpg")]
    for entry in entries:
        entry.uri.encode()
    assert not exists(str(tmp_path / "pipe"))
    with pytest.raises(ObjectMissingError):
        read(str(tmp_path / "pipe"))


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    put(str(tmp_path / "elsewhere/x.jpg"), b"x")
    data = tmp_path / "data"
    data.mkdir()
    (data / "class_a").symlink_to(tmp_path / "elsewhere")
    (data / "loop").symlink_to(data)
    assert listed(data) == ["class_a/x.jpg"]
    skipped = [entry for entry in list_entries(str(data)) if isinstance(entry, Skipped)]
    assert [Path(entry.uri).name for entry in skipped] == ["loop"]


def reasons_of(folder: Path) -> dict[str, tuple[str, str]]:
    return {
        os.path.relpath(entry.uri, folder): (entry.unseen, entry.reason)
        for entry in list_entries(str(folder))
        if isinstance(entry, Skipped)
    }


def test_what_may_not_be_looked_at_is_skipped_by_name_and_the_rest_is_listed(
    tmp_path: Path,
) -> None:
    data = let_nobody_in(tmp_path) / "data"
    for name in ("a/1", "b/1", "b/deep/1", "c/1", "d/1"):
        put(str(data / name), b"x")
    (data / "c/a-link").symlink_to(data / "b/1")  # it alone is lost, not its folder
    (data / "c/a-circle").symlink_to(data / "c/a-circle")
    (data / "b").chmod(0)
    (data / "d").chmod(0o444)  # its names may be read, its files not looked at
    with not_root():
        skipped = reasons_of(data)
        found = [os.path.relpath(e.uri, data) for e in list_entries(str(data)) if is_object(e)]
        with pytest.raises(AccessDeniedError, match=r"data/b/: .*Permission denied"):
            list(list_objects(str(data)))
        with pytest.raises(AccessDeniedError, match="data/b"):
            list(list_entries(str(data / "b")))
        with pytest.raises(ObjectUnreadableError, match="b/1"):
            head(str(data / "b/1"))
    assert found == ["a/1", "c/1"]
    assert {name: unseen for name, (unseen, _) in skipped.items()} == {
        "b": "refused", "c/a-circle": "", "c/a-link": "refused", "d/1": "refused",
    }  # fmt: skip
    assert skipped["b"] == ("refused", "the folder may not be listed: Permission denied")


def is_object(entry: ObjectInfo | Skipped) -> bool:
    return isinstance(entry, ObjectInfo)


def test_what_is_removed_during_the_listing_is_told(tmp_path: Path) -> None:
    for name in ("a", "b/1", "c", "d/1"):
        put(str(tmp_path / name), b"x")
    entries = list_entries(str(tmp_path))
    assert is_object(next(entries))
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "c").unlink()
    rest = list(entries)
    assert [(entry.uri, entry.unseen) for entry in rest if isinstance(entry, Skipped)] == [
        (f"{tmp_path}/b/", "gone"),
        (f"{tmp_path}/c", "gone"),
    ]
    assert [entry.uri for entry in rest if is_object(entry)] == [f"{tmp_path}/d/1"]


def test_a_share_that_is_lost_during_the_listing_is_an_error(tmp_path: Path) -> None:
    data = let_nobody_in(tmp_path) / "data"
    for number in range(5):
        put(str(data / f"{number}/x"), b"x")
    entries = list_entries(str(data))
    with not_root():
        next(entries)
    for folder in (*data.iterdir(), data):
        folder.chmod(0)
    with not_root(), pytest.raises(AccessDeniedError, match=r"list .*data: Permission denied"):
        list(entries)


@pytest.mark.parametrize("name", ["x" * 300, "circle"])
def test_a_name_that_no_file_can_have_is_a_missing_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert not exists(str(tmp_path / name))
    with pytest.raises(ObjectMissingError):
        read(str(tmp_path / name))


def test_new_file_has_the_mode_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        put_new(str(tmp_path / "x"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_equal_bytes_written_again_are_another_version(tmp_path: Path) -> None:
    etags = [put(str(tmp_path / "x"), b"same") for _ in range(50)]
    assert len(set(etags)) == 50


def test_file_is_dated_by_the_disk_not_by_the_clock_of_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day_ns = 86_400 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: 10**18 + day_ns)
    put_new(str(tmp_path / "ours"), b"x")
    (tmp_path / "plain").write_bytes(b"x")
    ours, plain = (tmp_path / name for name in ("ours", "plain"))
    assert abs(ours.stat().st_mtime - plain.stat().st_mtime) < 60


def test_a_file_that_comes_back_from_a_backup_is_the_same_version(tmp_path: Path) -> None:
    uri = str(tmp_path / "x")
    etag = put(uri, b"1")
    shutil.copy2(uri, tmp_path / "backup")
    inode = os.stat(uri).st_ino  # noqa: PTH116  (beside the copy's)
    (tmp_path / "backup").replace(uri)
    assert os.stat(uri).st_ino != inode  # noqa: PTH116  (as above)
    assert head(uri).etag == etag
    assert dict(get_many([GetRequest(0, uri, etag)])) == {0: b"1"}


def test_an_etag_with_an_inode_means_the_same_version(tmp_path: Path) -> None:
    """As commit 27535e0 wrote them, into plans that are not finished yet."""
    uri = str(tmp_path / "x")
    old = f"{put(uri, b'1')}-1f2e3d"
    assert dict(get_many([GetRequest(0, uri, old)])) == {0: b"1"}
    etag = put_if_match(uri, b"22", old)
    for stale in (old, f"{etag.partition('-')[0]}-3-1f2e3d", f"{etag}0-1f2e3d", "", "-"):
        [(_, error)] = get_many([GetRequest(0, uri, stale)])
        assert isinstance(error, ObjectChangedError)
        with pytest.raises(ObjectChangedError):
            put_if_match(uri, b"3", stale)
