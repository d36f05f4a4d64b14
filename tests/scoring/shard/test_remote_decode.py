"""A shard split between two ends, without Ray: whatever the other end does, all comes out."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from imgcls.errors import CorruptImageError, StorageError
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.scoring.shard.remote_decode import CHUNK_SIZE, decode_shared
from imgcls.scoring.shard.score_shard import make_clock, score_shard
from imgcls.storage.bulk_get import GetRequest, get_many
from imgcls.storage.objects import put
from tests.kit.predictors import open_predictor
from tests.scoring.shard.test_score_shard import plan_rows, provenance_of
from tests.scoring.tiny import make_bundle, tiff_frames, write_images

Answer = Callable[[list[GetRequest]], list[Decoded]]


class Remote:
    """A remote decoder of some threads, which answer as they are told; counts what it is given."""

    def __init__(self, answer: Answer, num_threads: int = 4) -> None:
        self._answer, self._num_threads = answer, num_threads
        self._threads = ThreadPoolExecutor(num_threads)
        self.given: Counter[int] = Counter()
        self.futures: list[Future[list[Decoded]]] = []

    def room(self) -> int:
        return self._num_threads - sum(not future.done() for future in self.futures)

    def submit(self, requests: list[GetRequest]) -> Future[list[Decoded]]:
        assert len(requests) <= CHUNK_SIZE
        self.given.update(request.index for request in requests)
        self.futures.append(self._threads.submit(self._answer, requests))
        return self.futures[-1]

    def wait(self) -> None:
        """Wait until all it was given is done or let go of."""
        wait(self.futures)


class ByHand:
    """A remote decoder that takes `num_chunks` and answers none of them by itself."""

    def __init__(self, num_chunks: int) -> None:
        self._num_chunks = num_chunks
        self.given: dict[Future[list[Decoded]], list[GetRequest]] = {}

    def room(self) -> int:
        return self._num_chunks - sum(not future.done() for future in self.given)

    def submit(self, requests: list[GetRequest]) -> Future[list[Decoded]]:
        future: Future[list[Decoded]] = Future()
        self.given[future] = requests
        return future


def requests(count: int) -> Iterator[GetRequest]:
    return (GetRequest(index, f"uri-{index}") for index in range(count))


def decoded(requests: Iterable[GetRequest]) -> list[Decoded]:
    return [Decoded(request.index, None, []) for request in requests]


class Here:
    """Decodes one by one, some pulled ahead in another thread, and remembers which."""

    def __init__(self, after_each: Callable[[], None] = lambda: None) -> None:
        self.given: Counter[int] = Counter()
        self._after_each = after_each

    def __call__(self, requests: Iterable[GetRequest]) -> Iterator[Decoded]:
        with ThreadPoolExecutor(1) as feeder:
            source = iter(requests)
            ahead = [feeder.submit(next, source, None) for _ in range(5)]
            while ahead:
                request = ahead.pop(0).result()
                if request is None:
                    continue
                self.given[request.index] += 1
                yield from decoded([request])
                self._after_each()
                ahead.append(feeder.submit(next, source, None))


def indices(found: Iterable[Decoded]) -> list[int]:
    return sorted(one.index for one in found)


def test_both_ends_take_what_they_can_and_every_request_comes_out_once() -> None:
    remote = Remote(decoded)
    here = Here(after_each=remote.wait)
    assert indices(decode_shared(requests(500), here, remote)) == list(range(500))
    assert len(remote.given) >= CHUNK_SIZE
    assert len(here.given) > 0
    assert max(remote.given.values()) == 1


def test_what_fails_there_is_done_here() -> None:
    def fail(chunk: list[GetRequest]) -> list[Decoded]:
        raise ConnectionError("the node is dead")

    remote, here = Remote(fail), Here()
    assert indices(decode_shared(requests(200), here, remote)) == list(range(200))
    assert len(remote.given) > 0
    assert here.given == Counter(range(200))


def test_what_is_left_out_there_is_done_here() -> None:
    remote = Remote(lambda chunk: decoded(chunk[::2]))
    here = Here(after_each=remote.wait)
    assert indices(decode_shared(requests(200), here, remote)) == list(range(200))
    assert len(remote.given) >= CHUNK_SIZE
    assert len(here.given) < 200


def test_who_never_answers_is_not_waited_for() -> None:
    waken_up = threading.Event()

    def sleep(chunk: list[GetRequest]) -> list[Decoded]:
        waken_up.wait()
        return decoded(chunk)

    remote, here = Remote(sleep, num_threads=3), Here()
    try:
        assert indices(decode_shared(requests(100), here, remote)) == list(range(100))
        assert len(remote.given) == 3 * CHUNK_SIZE, "no more than its room"
        assert here.given == Counter(range(100))
    finally:
        waken_up.set()


@pytest.mark.parametrize("seed", range(20))
def test_every_request_comes_out_once_however_the_ends_interleave(seed: int) -> None:
    rng = random.Random(seed)
    num_requests = rng.choice([1, 15, 16, 17, 64, 300])
    remote = ByHand(rng.randint(1, 6))

    def answer_some() -> None:
        for future, chunk in list(remote.given.items()):
            # One that was taken back, or had begun before it could be, answers all the same.
            if future.done() or rng.random() < 0.9 or not future.set_running_or_notify_cancel():
                continue
            if rng.random() < 0.3:
                future.set_exception(OSError("lost"))
            else:
                future.set_result(decoded(one for one in chunk if rng.random() < 0.8))

    found = []
    for one in decode_shared(requests(num_requests), Here(answer_some), remote):
        found.append(one)
        answer_some()
    assert indices(found) == list(range(num_requests))


def test_a_shard_that_fails_lets_go_of_what_is_under_way() -> None:
    def broken(requests: Iterable[GetRequest]) -> Iterator[Decoded]:
        yield from decoded([next(iter(requests))])
        raise StorageError("the store is down")

    failed, stopped = ByHand(4), ByHand(4)
    with pytest.raises(StorageError, match="is down"):
        list(decode_shared(requests(200), broken, failed))
    found = decode_shared(requests(200), Here(), stopped)
    next(found)
    found.close()
    for remote in (failed, stopped):
        assert len(remote.given) == 4
        assert all(future.cancelled() for future in remote.given)


def test_rows_of_a_shard_are_those_of_one_end_alone(tmp_path: Path) -> None:
    write_images(str(tmp_path), 150)
    put(str(tmp_path / "lot-0" / "damaged.png"), b"\x89PNG\r\n\x1a\n")
    put(str(tmp_path / "lot-1" / "frames.tif"), tiff_frames(5))
    rows = plan_rows(tmp_path)
    # Deleted after it was planned.
    (tmp_path / "lot-6" / "00006.png").unlink()
    bundle = make_bundle()
    with (
        DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool,
        DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as other_pool,
    ):
        predictor = open_predictor(bundle, batch_size=8)

        def answer(chunk: list[GetRequest]) -> list[Decoded]:
            found = list(other_pool.decode_many(get_many(chunk)))
            return [one for one in found if one.error is None]

        remote = Remote(answer)
        tables = []
        for one in (None, remote):
            clock = make_clock(predictor, pool)
            with clock.shard():
                table = score_shard(
                    rows,
                    predictor=predictor,
                    pool=pool,
                    provenance=provenance_of(bundle),
                    clock=clock,
                    remote=one,
                ).rows
                stages, _ = clock.take()
            tables.append(table.drop_columns(["scored_at"]))
            num_remote = stages.get("decode_remote", {}).get("items", 0)
            assert stages["decode"]["items"] + num_remote == rows.num_rows
            assert (num_remote > 0) == (one is not None)
    assert tables[0].equals(tables[1])
    statuses = Counter(tables[0]["status"].to_pylist())
    assert statuses["corrupt"] == 1
    assert statuses["missing"] == 1


def test_errors_of_an_image_that_come_from_there_are_rows_too() -> None:
    """Ours leaves them out; whoever does not must not lose them."""
    error = CorruptImageError("damaged")
    remote = Remote(lambda chunk: [Decoded(request.index, error, []) for request in chunk])
    here = Here(after_each=remote.wait)
    found = list(decode_shared(requests(100), here, remote))
    assert indices(found) == list(range(100))
    assert any(one.error is error for one in found)
