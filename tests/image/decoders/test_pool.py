"""The decoder pool with real child processes."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import (
    ConfigError,
    CorruptImageError,
    ImgclsError,
    NotAnImageError,
    ObjectMissingError,
)
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec

DECODE = DecodeSpec()
PREPROCESS = PreprocessSpec.for_image_px(32)


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (60, 45)) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(DECODE, PREPROCESS, 2) as made:
        yield made


def test_every_item_gives_one_result_equal_to_decode_one(pool: DecoderPool) -> None:
    files = [picture(i, kind) for i in range(40) for kind in ("PNG", "JPEG")]
    results = {r.index: r for r in pool.decode_many(enumerate(files))}
    assert sorted(results) == list(range(len(files)))
    for index, data in enumerate(files):
        [crop], [expected] = results[index].crops, decode_one(data, DECODE, PREPROCESS)
        np.testing.assert_array_equal(crop.x_CHW, expected.x_CHW)
        assert (crop.width_px, crop.height_px, crop.frame) == (60, 45, None)


def test_time_at_work_is_that_of_the_children_and_outlives_them() -> None:
    files = [picture(i, "JPEG", (600, 400)) for i in range(16)]
    with DecoderPool(DECODE, PREPROCESS, 2) as own:
        assert own.busy_s() == 0.0
        start_s = time.perf_counter()
        list(own.decode_many(enumerate(files)))
        wall_s = time.perf_counter() - start_s
        busy_s = own.busy_s()
        assert 0 < busy_s <= own.num_processes * wall_s
        os.kill(own.pids()[0], signal.SIGKILL)
        list(own.decode_many(enumerate(files)))
        assert own.busy_s() > busy_s


def test_number_of_children_does_not_change_a_pixel() -> None:
    files = [picture(i, "JPEG", (300, 200)) for i in range(12)]
    by_count = []
    for num_processes in (1, 3):
        with DecoderPool(DECODE, PREPROCESS, num_processes) as own:
            results = sorted(own.decode_many(enumerate(files)), key=lambda r: r.index)
            by_count.append(np.stack([r.crops[0].x_CHW for r in results]))
    np.testing.assert_array_equal(*by_count)


def test_errors_among_the_items_pass_through_and_bad_files_get_their_status(
    pool: DecoderPool,
) -> None:
    gone = ObjectMissingError("404")
    items = [(7, gone), (8, b"<html>"), (9, picture(1)[:200]), (10, picture(1))]
    results = {r.index: r for r in pool.decode_many(items)}
    assert results[7].error is gone
    assert isinstance(results[8].error, NotAnImageError)
    assert isinstance(results[9].error, CorruptImageError)
    assert results[10].error is None


def test_an_exception_of_the_iterable_reaches_the_consumer(pool: DecoderPool) -> None:
    def items() -> Iterator[tuple[int, bytes]]:
        yield 0, picture(0)
        raise ConnectionError("the store is gone")

    with pytest.raises(ConnectionError, match="the store is gone"):
        list(pool.decode_many(items()))


def test_threads_share_one_pool(pool: DecoderPool) -> None:
    files = [picture(i) for i in range(30)]
    seen: dict[int, list[int]] = {}

    def consume(who: int) -> None:
        seen[who] = sorted(r.index for r in pool.decode_many(enumerate(files)) if r.crops)

    threads = [threading.Thread(target=consume, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {who: list(range(30)) for who in range(4)}


def test_an_early_close_stops_and_closes_the_iterable(pool: DecoderPool) -> None:
    closed = threading.Event()
    pulled = 0

    def items() -> Iterator[tuple[int, bytes]]:
        nonlocal pulled
        try:
            while True:
                yield pulled, picture(1)
                pulled += 1
        finally:
            closed.set()

    results = pool.decode_many(items())
    next(results)
    results.close()
    assert closed.wait(10)
    assert pulled < 200


def test_a_slow_consumer_bounds_what_is_pulled(pool: DecoderPool) -> None:
    pulled = 0

    def items() -> Iterator[tuple[int, bytes]]:
        nonlocal pulled
        for index in range(1000):
            pulled += 1
            yield index, picture(1)

    results = pool.decode_many(items())
    next(results)
    time.sleep(0.5)
    assert pulled <= 70
    results.close()


def test_a_killed_child_is_replaced_and_nothing_is_lost() -> None:
    files = [picture(i, "JPEG", (800, 600)) for i in range(60)]
    with DecoderPool(DECODE, PREPROCESS, 2) as own:
        first = own.pids()
        results = []
        for result in own.decode_many(enumerate(files)):
            if len(results) == 5:
                os.kill(first[0], signal.SIGKILL)
            results.append(result)
        assert sorted(r.index for r in results) == list(range(60))
        assert all(r.error is None for r in results)
        assert len(own.pids()) == 2
        assert first[0] not in own.pids()


def test_a_closed_pool_refuses() -> None:
    own = DecoderPool(DECODE, PREPROCESS, 1)
    own.close()
    with pytest.raises(ImgclsError, match="closed"):
        list(own.decode_many([(0, picture(0))]))


def test_specs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="channels"):
        DecoderPool(DecodeSpec(color="gray"), PREPROCESS, 1)


SCRIPT = """
import sys, time
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
print("main runs", flush=True)
pool = DecoderPool(DecodeSpec(), PreprocessSpec.for_image_px(32), 2)
data = open(sys.argv[1], "rb").read()
assert all(r.crops for r in pool.decode_many((i, data) for i in range(8)))
assert "torch" not in sys.modules
print(*pool.pids(), flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


def run_script(tmp_path: Path, mode: str) -> "subprocess.Popen[str]":
    (tmp_path / "image.png").write_bytes(picture(0))
    script = tmp_path / "plain.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "image.png"), mode],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "AWS_SECRET_ACCESS_KEY": "hidden"},
    )


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline_s = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline_s, "decoder processes outlive their parent"
        time.sleep(0.02)


def test_a_script_without_main_guard_runs_once_and_leaves_no_child(tmp_path: Path) -> None:
    process = run_script(tmp_path, "end")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.count("main runs") == 1
    wait_until_gone([int(pid) for pid in output.splitlines()[-1].split()])


def test_children_end_when_their_parent_is_killed_and_saw_no_credentials(tmp_path: Path) -> None:
    process = run_script(tmp_path, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "main runs\n"
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    for pid in pids:
        assert b"AWS" not in Path(f"/proc/{pid}/environ").read_bytes()
    process.kill()
    process.communicate(timeout=10)
    wait_until_gone(pids)


def test_all_frames_come_through_the_slots_whole() -> None:
    files = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        frames = [
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            for _ in range(1 + seed % 5)
        ]
        out = io.BytesIO()
        frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
        files.append(out.getvalue())
    spec = DecodeSpec(frames="all", max_frames=5)
    with DecoderPool(spec, PREPROCESS, 2) as own:
        results = {result.index: result for result in own.decode_many(enumerate(files * 3))}
    assert len(results) == 36
    for index, result in results.items():
        expected = decode_one(files[index % 12], spec, PREPROCESS)
        assert [crop.frame for crop in result.crops] == [crop.frame for crop in expected]
        for crop, other in zip(result.crops, expected, strict=True):
            np.testing.assert_array_equal(crop.x_CHW, other.x_CHW)


def test_what_lies_beside_a_script_takes_no_module_s_place(tmp_path: Path) -> None:
    """GDCM imports a module `dl` where there is one: any folder of that name would do."""
    (tmp_path / "dl").mkdir()
    (tmp_path / "tifffile.py").write_text("raise SystemExit(1)")
    with run_script(tmp_path, "once") as process:
        assert process.wait(60) == 0
