import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgcls.image.decoders.pool import DecoderPool
from imgcls.scoring.shard.rows import Provenance
from imgcls.scoring.shard.score_shard import make_clock, score_shard
from imgcls.scoring.shard.stage_clock import (
    DECODE_REMOTE,
    STAGES,
    StageClock,
    StageTimes,
    add_stages,
    describe_bottleneck,
    describe_starvation,
)
from tests.kit.predictors import open_predictor
from tests.scoring.shard.test_score_shard import plan_rows
from tests.scoring.tiny import make_bundle, run_facts, write_images


def make_test_clock(decode_s: list[float], predict_s: list[float]) -> StageClock:
    return StageClock(lambda: decode_s[-1], lambda: predict_s[-1], num_decoders=2, num_streams=3)


def stage(**values: float) -> dict[str, float]:
    zero = {"items": 0, "busy_s": 0.0, "waiting_for_input_s": 0.0, "waiting_for_room_s": 0.0}
    return {**zero, "workers": 1, **values}


def test_every_second_of_every_worker_is_busy_or_waiting_and_counted_once() -> None:
    clock = make_test_clock([0.0], [0.0])
    start_s = time.perf_counter()
    with clock.shard():
        time.sleep(0.02)
        first, _ = clock.take()
        time.sleep(0.02)
        second, _ = clock.take()
    wall_s = time.perf_counter() - start_s
    total = add_stages(first, second)
    for name, workers in {"get": 1, "decode": 2, "predict": 3, "rows": 1, "write": 1}.items():
        assert total[name]["workers"] == workers
        assert 0.04 * workers <= StageTimes(**total[name]).total_s <= wall_s * workers


def test_a_second_take_counts_only_what_came_after_the_first() -> None:
    decode_s, predict_s = [5.0], [7.0]
    clock = make_test_clock(decode_s, predict_s)  # both had worked before, for somebody else
    with clock.shard():
        clock.add("predict", items=4)
        decode_s.append(5.5)
        predict_s.append(7.25)
        first, _ = clock.take()
        predict_s.append(8.25)
        second, _ = clock.take()
    assert (first["decode"]["busy_s"], first["predict"]["busy_s"]) == (0.5, 0.25)
    assert (first["predict"]["items"], second["predict"]["items"]) == (4, 0)
    assert (second["decode"]["busy_s"], second["predict"]["busy_s"]) == (0.0, 1.0)


def test_reads_tell_a_slow_store_from_a_full_pipeline() -> None:
    clock = make_test_clock([0.0], [0.0])

    def slow_store() -> object:
        for index in range(3):
            time.sleep(0.02)
            yield index, b"12345"

    with clock.shard():
        assert len(list(clock.reads(slow_store()))) == 3  # type: ignore[arg-type]
        stages, num_bytes = clock.take()
        assert num_bytes == 15
        assert stages["get"]["items"] == 3
        assert stages["get"]["busy_s"] >= 0.06
        # A decoder that the store lets wait waits for input, not for room.
        assert stages["decode"]["waiting_for_input_s"] > stages["decode"]["waiting_for_room_s"]
        for _ in clock.reads(iter([(0, b"1"), (1, b"2")])):
            time.sleep(0.02)
        stages, _ = clock.take()
    assert stages["get"]["waiting_for_room_s"] >= 0.04
    assert stages["decode"]["waiting_for_room_s"] > stages["decode"]["waiting_for_input_s"]


def test_reads_close_the_source_when_the_consumer_goes() -> None:
    closed = []

    def source() -> object:
        try:
            yield 0, b""
            yield 1, b""
        finally:
            closed.append(True)

    reads = make_test_clock([0.0], [0.0]).reads(source())  # type: ignore[arg-type]
    next(reads)
    reads.close()  # type: ignore[attr-defined]
    assert closed == [True]


@pytest.mark.parametrize("slowest", STAGES)
def test_bottleneck_is_the_stage_that_waits_least(slowest: str) -> None:
    stages = {name: stage(items=100, busy_s=1.0, waiting_for_input_s=9.0) for name in STAGES}
    stages[slowest] = stage(items=100, busy_s=9.5, waiting_for_input_s=0.5)
    told = describe_bottleneck(stages)
    assert told.startswith(f"bottleneck: {slowest}, busy 95% of its time at 10.0 images/s")
    assert "\n" not in told


def test_images_decoded_elsewhere_are_counted_where_there_were_any() -> None:
    clock = make_test_clock([0.0], [0.0])
    with clock.shard():
        clock.add("decode", items=3)
        clock.add(DECODE_REMOTE, items=0)
        without, _ = clock.take()
        clock.add("decode", items=2)
        clock.add(DECODE_REMOTE, items=40)
        with_some, _ = clock.take()
        after, _ = clock.take()
    assert DECODE_REMOTE not in {**without, **after}
    total = add_stages(without, add_stages(with_some, with_some))
    assert (total["decode"]["items"], total[DECODE_REMOTE]["items"]) == (7, 80)
    assert "80 images" in describe_bottleneck(total)
    assert "decode_remote" not in describe_bottleneck(total)


@pytest.mark.parametrize(
    ("decode_busy_s", "predict_busy_s", "rows_busy_s", "starves"),
    [
        (9.5, 7.0, 0.0, True),
        (9.5, 8.5, 0.0, False),  # the model waits too little
        (4.0, 1.0, 0.0, False),  # nobody is at work: there was nothing to do
        (8.0, 1.0, 9.0, False),  # to decode faster would not help
    ],
)
def test_a_model_starves_that_waits_while_decoders_are_at_work(
    decode_busy_s: float, predict_busy_s: float, rows_busy_s: float, starves: bool
) -> None:
    busy_s = {"decode": decode_busy_s, "predict": predict_busy_s, "rows": rows_busy_s}
    stages = {
        name: stage(
            items=100,
            busy_s=busy_s.get(name, 0.0),
            waiting_for_input_s=10.0 - busy_s.get(name, 0.0),
        )
        for name in STAGES
    }
    told = describe_starvation(stages)
    assert bool(told) == starves
    if starves:
        assert told == "the model waits for images 30% of its time, decode is busy 95% of its"


def test_nothing_done_has_no_bottleneck() -> None:
    assert describe_bottleneck({}) == ""
    assert describe_starvation({}) == ""
    assert describe_bottleneck(add_stages({}, {"get": stage()})) == ""


def test_stages_of_workers_add_up() -> None:
    one = {"get": stage(items=1, busy_s=1.0, waiting_for_room_s=2.0, workers=2)}
    other = {"get": stage(items=2, busy_s=3.0, workers=1), "write": stage(items=5)}
    total = add_stages(one, other)
    assert total["get"] == stage(items=3, busy_s=4.0, waiting_for_room_s=2.0, workers=2)
    assert total["write"]["items"] == 5
    assert add_stages({}, one) == one


def test_shards_that_overlap_are_counted_image_by_image_and_second_by_second(
    tmp_path: Path,
) -> None:
    write_images(str(tmp_path), 60)
    bundle = make_bundle()
    rows = plan_rows(tmp_path)
    provenance = Provenance(run_facts(), bundle.class_names.names)
    predictor = open_predictor(bundle, batch_size=8, num_streams=2)
    with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool:
        clock = make_clock(predictor, pool)

        def score(start: int) -> tuple[dict[str, dict[str, float]], int]:
            with clock.shard():
                score_shard(
                    rows.slice(start, 30),
                    predictor=predictor,
                    pool=pool,
                    provenance=provenance,
                    clock=clock,
                )
                return clock.take()

        start_s = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            (first, first_bytes), (second, second_bytes) = threads.map(score, (0, 30))
        wall_s = time.perf_counter() - start_s
    total = add_stages(first, second)
    assert first_bytes + second_bytes == sum(rows["size_bytes"].to_pylist())
    for name in ("get", "decode", "predict", "rows"):
        assert total[name]["items"] == 60, name
        assert total[name]["busy_s"] > 0, name
    assert StageTimes(**total["predict"]).total_s <= 2 * wall_s
    assert StageTimes(**total["decode"]).total_s <= wall_s
