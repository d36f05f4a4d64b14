"""Many writers of one name: exactly one wins, and no update is lost."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgcls.errors import ObjectChangedError, ObjectExistsError
from imgcls.storage.objects import put_first, put_if_match, put_new, read, read_with_etag
from imgcls.storage.uri import join
from tests.kit.stores import ATOMIC_SERVERS

NUM_RACES = 20
NUM_WRITERS = 8


def won(uri: str, writer: int) -> bool:
    try:
        put_new(uri, f"writer {writer}".encode())
    except ObjectExistsError:
        return False
    return True


def increment(uri: str, times: int, writer: str) -> None:
    """Add one, `times` times; the writer's name keeps equal sums apart."""
    for _ in range(times):
        while True:
            body, etag = read_with_etag(uri)
            total = int(body.split()[0]) + 1
            try:
                put_if_match(uri, f"{total} {writer}".encode(), etag)
            except ObjectChangedError:
                continue
            break


def race(place: str, start: Callable[[], object], writer: int) -> list[bool]:
    """Take part in every race of one place, each begun by all writers at once."""
    results = []
    for number in range(NUM_RACES):
        start()
        results.append(won(join(place, f"commit-{number}"), writer))
    return results


def race_in_process(place: str, start: Callable[[], object], writer: int, results: object) -> None:
    results.put((writer, race(place, start, writer)))  # type: ignore[attr-defined]


def assert_one_winner_each(place: str, results: dict[int, list[bool]]) -> None:
    assert len(results) == NUM_WRITERS
    for number in range(NUM_RACES):
        winners = [writer for writer, outcome in results.items() if outcome[number]]
        assert len(winners) == 1
        assert read(join(place, f"commit-{number}")) == f"writer {winners[0]}".encode()


@pytest.mark.parametrize("root", ["local", *ATOMIC_SERVERS], indirect=True)
def test_put_new_has_exactly_one_winner_among_threads(root: str) -> None:
    # Several races at a time: SeaweedFS lets a writer that found the name locked wait a second.
    barriers = [threading.Barrier(NUM_WRITERS) for _ in range(NUM_RACES)]

    def take_part(number: int, writer: int) -> bool:
        barriers[number].wait()
        return won(join(root, f"commit-{number}"), writer)

    with ThreadPoolExecutor(NUM_RACES * NUM_WRITERS) as pool:
        outcomes = {
            writer: [pool.submit(take_part, number, writer) for number in range(NUM_RACES)]
            for writer in range(NUM_WRITERS)
        }
    results = {w: [future.result() for future in futures] for w, futures in outcomes.items()}
    assert_one_winner_each(root, results)


def test_put_new_has_exactly_one_winner_among_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(NUM_WRITERS), context.Queue()
    place = str(tmp_path / "store")
    writers = [
        context.Process(
            target=race_in_process, args=(place, barrier.wait, writer, results), daemon=True
        )
        for writer in range(NUM_WRITERS)
    ]
    for process in writers:
        process.start()
    outcomes = dict(results.get(timeout=60) for _ in writers)
    for process in writers:
        process.join()
    assert_one_winner_each(place, outcomes)
    assert sorted(path.name for path in Path(place).iterdir()) == sorted(
        f"commit-{number}" for number in range(NUM_RACES)
    )


@pytest.mark.parametrize("root", ["local", *ATOMIC_SERVERS], indirect=True)
def test_compare_and_swap_loses_no_update_among_threads(root: str) -> None:
    uri = join(root, "counter")
    put_new(uri, b"0")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda writer: increment(uri, 10, f"writer {writer}"), range(4)))
    assert read(uri).split()[0] == b"40"


def test_compare_and_swap_loses_no_update_among_processes(tmp_path: Path) -> None:
    uri = str(tmp_path / "counter")
    put_new(uri, b"0")
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=increment, args=(uri, 25, f"w{i}"), daemon=True) for i in range(4)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    assert read(uri).split()[0] == b"100"


@pytest.mark.s3
def test_put_new_has_exactly_one_winner_on_s3_among_processes(s3_bucket: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    writers = [
        context.Process(
            target=race_in_process, args=(s3_bucket, barrier.wait, writer, results), daemon=True
        )
        for writer in range(2)
    ]
    for process in writers:
        process.start()
    outcomes = dict(results.get(timeout=60) for _ in writers)
    for process in writers:
        process.join()
    for number in range(NUM_RACES):
        assert sorted(outcome[number] for outcome in outcomes.values()) == [False, True]


def test_all_who_put_first_get_the_bytes_of_the_one_who_was(root: str) -> None:
    barriers = [threading.Barrier(2) for _ in range(NUM_RACES)]

    def take_part(number: int, writer: int) -> bytes:
        barriers[number].wait()
        return put_first(join(root, f"first-{number}"), f"writer {writer}".encode())

    with ThreadPoolExecutor(2 * NUM_RACES) as pool:
        outcomes = [
            [pool.submit(take_part, number, writer) for writer in range(2)]
            for number in range(NUM_RACES)
        ]
    for number, racers in enumerate(outcomes):
        assert {racer.result() for racer in racers} == {read(join(root, f"first-{number}"))}
