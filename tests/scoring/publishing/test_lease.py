import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imgcls.errors import LeaseHeldError, StorageError
from imgcls.scoring.publishing import lease
from imgcls.scoring.publishing.lease import Lease
from imgcls.storage.uri import join


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return join(request.getfixturevalue("s3_bucket"), "out")


def edit(path: Path, **fields: object) -> None:
    """At once, as a lease is written: nobody reads half of one."""
    changed = path.with_suffix(".new")
    changed.write_text(json.dumps(json.loads(path.read_text()) | fields))
    changed.replace(path)


def test_one_of_many_gets_the_lease(output: str) -> None:
    held, refused = [], []
    start, done = threading.Barrier(8), threading.Barrier(8)

    def contend(number: int) -> None:
        start.wait()
        try:
            with Lease(output, f"run-{number}"):
                held.append(number)
                done.wait(20)
        except LeaseHeldError:
            refused.append(number)
            done.wait(20)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_lease_let_go_is_free_at_once(output: str) -> None:
    for number in range(3):
        with Lease(output, f"run-{number}"):
            pass


def test_lease_of_a_killed_process_of_this_host_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from imgcls.scoring.publishing.lease import Lease;"
        "Lease(sys.argv[1], 'killed').__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with Lease(str(tmp_path), "successor"):
        pass


def left_behind(path: Path, **fields: object) -> None:
    """Leave the lease of a run on another machine, as its death left it."""
    with Lease(str(path.parent), "first"):
        record = path.read_text()
    path.write_text(record)
    edit(path, host="elsewhere", boot_id="another", **fields)


@pytest.mark.parametrize("hours", [-24, 24])
def test_lease_of_another_machine_is_free_once_it_stayed_the_same_for_the_ttl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(lease, "TTL_S", 1.0)
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.05)
    its_time = datetime.now(UTC) + timedelta(hours=hours)
    left_behind(tmp_path / "_lease.json", expires_at=its_time.isoformat(), renewed_at_s=0.0)
    start_s = time.monotonic()
    with Lease(str(tmp_path), "second"):
        assert time.monotonic() - start_s >= 1.0


@pytest.mark.parametrize("hours", [-24, 24])
def test_lease_of_a_living_run_elsewhere_is_not_taken_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.05)
    path, its_time = tmp_path / "_lease.json", datetime.now(UTC) + timedelta(hours=hours)
    left_behind(path, expires_at=its_time.isoformat())
    renewing = threading.Timer(
        0.5, edit, (path,), {"expires_at": (its_time + timedelta(seconds=1)).isoformat()}
    )
    renewing.start()
    with pytest.raises(LeaseHeldError, match=r"held by first on elsewhere since 20.*is alive"):
        Lease(str(tmp_path), "second").__enter__()
    renewing.join()


def test_lease_let_go_while_a_successor_watches_is_taken_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.05)
    path = tmp_path / "_lease.json"
    left_behind(path)
    letting_go = threading.Timer(0.5, edit, (path,), {"is_released": True})
    letting_go.start()
    with Lease(str(tmp_path), "second"):
        pass
    letting_go.join()


def test_lease_of_another_container_of_this_machine_is_judged_by_their_common_clock(
    tmp_path: Path,
) -> None:
    path = tmp_path / "_lease.json"
    with Lease(str(tmp_path), "first"):
        record = path.read_text()
    path.write_text(record)
    long_ago_s = time.monotonic() - lease.TTL_S - 1
    edit(path, pid_namespace="pid:[1]", host="pod", renewed_at_s=long_ago_s)
    start_s = time.monotonic()
    with Lease(str(tmp_path), "second"):
        assert time.monotonic() - start_s < 5


def test_record_of_a_later_version_is_understood(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "first"):
        edit(tmp_path / "_lease.json", new_in_a_later_version=1)
        with pytest.raises(LeaseHeldError, match="held by first"):
            Lease(str(tmp_path), "second").__enter__()


def test_heartbeat_renews_the_lease(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    renewed = threading.Event()
    with Lease(output, "run") as held:
        before = held._etag
        for _ in range(200):
            if held._etag != before:
                renewed.set()
                break
            renewed.wait(0.05)
    assert renewed.is_set()


def test_lost_lease_is_noticed_and_never_taken_back(tmp_path: Path) -> None:
    with Lease(str(tmp_path), "first") as held:
        edit(tmp_path / "_lease.json", holder="thief", token="x")  # noqa: S106 - a mark, no secret
        for _ in range(2):
            with pytest.raises(LeaseHeldError, match="lost to another run"):
                held.renew()
    assert json.loads((tmp_path / "_lease.json").read_text())["holder"] == "thief"


def test_renewal_whose_reply_was_lost_is_recognised_as_our_own(tmp_path: Path) -> None:
    path = tmp_path / "_lease.json"
    with Lease(str(tmp_path), "first") as held:
        # The record is ours, written by a request of ours whose reply never came.
        edit(path, expires_at=datetime.now(UTC).isoformat())
        held.renew()
        held.renew()


def test_lease_of_a_living_process_of_another_container_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_EVERY_S", 0.05)
    path = tmp_path / "_lease.json"
    with Lease(str(tmp_path), "first"):
        edit(path, pid=4_000_000, pid_namespace="pid:[1]")
        renewing = threading.Timer(0.5, edit, (path,), {"renewed_at_s": time.monotonic()})
        renewing.start()
        with pytest.raises(LeaseHeldError):
            Lease(str(tmp_path), "second").__enter__()
        renewing.join()


def test_store_that_fails_at_the_end_does_not_replace_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> str:
        raise StorageError("the endpoint is down")

    held = Lease(str(tmp_path), "first").__enter__()
    monkeypatch.setattr(lease, "put_if_match", fail)
    held.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert "first" in (tmp_path / "_lease.json").read_text()
