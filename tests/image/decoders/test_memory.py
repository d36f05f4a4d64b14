"""The memory of all decoder processes together."""

import io
import itertools
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.config.operations import DoctorConfig
from imgcls.errors import ImageTooLargeError
from imgcls.image.decoders import memory
from imgcls.image.decoders.memory import (
    machine_memory_bytes,
    memory_limits,
    num_cpus_here,
    pool_memory_bytes,
)
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.operations.doctor import doctor

GIB = 1 << 30
MEGAPIXELS = 16
SPEC, PREPROCESS = DecodeSpec(max_pixels=MEGAPIXELS * 10**6), PreprocessSpec.for_image_px(32)


def test_the_limits_of_all_add_up_to_the_memory_given() -> None:
    for num_processes, max_pixels, gib in itertools.product(
        (1, 2, 3, 8, 64), (10**6, 5 * 10**7, 10**9), (1, 4, 16, 64, 1024)
    ):
        limits = memory_limits(num_processes, max_pixels, gib * GIB)
        each = [limits.everyday_bytes] * (num_processes - 1) + [limits.most_bytes]
        assert sum(each) <= limits.total_bytes
        assert limits.most_bytes >= 32 * max_pixels, "the largest image can be decoded"
        least = limits.most_bytes + (num_processes - 1) * min(256 << 20, limits.most_bytes)
        assert limits.total_bytes <= max(gib * GIB, least)
        assert limits.is_shared == (num_processes * limits.most_bytes > gib * GIB)
        assert limits.everyday_pixels * 32 < limits.everyday_bytes


def test_pools_of_all_cpus_together_have_half_of_the_machine() -> None:
    assert pool_memory_bytes(10**6) == machine_memory_bytes() // 2
    assert pool_memory_bytes(1) <= pool_memory_bytes(2) <= machine_memory_bytes() // 2


@pytest.mark.parametrize("where", ["", "jobs", "jobs/mine"])
def test_the_memory_and_cpus_of_a_container_or_job_are_what_counts(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "jobs" / "mine"
    own.mkdir(parents=True)
    for folder in (tmp_path, own.parent, own):
        (folder / "memory.max").write_text("max\n")
        (folder / "cpu.max").write_text("max 100000\n")
    (tmp_path / "own").write_text("1:name=x:/other\n0::/jobs/mine\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    assert machine_memory_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / where / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / where / "cpu.max").write_text("50000 100000\n")
    assert machine_memory_bytes() == 3 * GIB
    assert num_cpus_here() == 0.5
    assert pool_memory_bytes(1) == 3 * GIB // 2


def large(seed: int, side: int) -> bytes:
    """A PNG of few bytes and many pixels."""
    image = Image.new("L", (side, side))
    image.paste(200, (0, 0, side // 2, (seed + 1) * side // 16))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def address_limit(pid: int) -> int:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max address space"):
            return int(line.split()[3])
    raise AssertionError


def wait_until_all_are_up(pool: DecoderPool) -> None:
    for pid in pool.pids():
        while "Seccomp:\t2" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)


def test_images_that_need_more_than_their_share_are_decoded_one_at_a_time() -> None:
    files = [large(seed, 3900 if seed % 2 else 400) for seed in range(16)]
    with DecoderPool(SPEC, PREPROCESS, 3, memory_bytes=2 * GIB) as pool:
        limits = pool.memory
        assert limits.everyday_pixels < 3900**2
        assert limits.total_bytes <= 2 * GIB
        wait_until_all_are_up(pool)
        at_rest = {pid: address_limit(pid) - limits.everyday_bytes for pid in pool.pids()}
        sums: list[int] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.001):
                sums.append(sum(address_limit(pid) - rest for pid, rest in at_rest.items()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        results = {r.index: r for r in pool.decode_many(enumerate(files))}
        stop.set()
        watcher.join()
    assert sorted(results) == list(range(16))
    for index, data in enumerate(files):
        [crop], [expected] = results[index].crops, decode_one(data, SPEC, PREPROCESS)
        np.testing.assert_array_equal(crop.x_CHW, expected.x_CHW)
    assert max(sums) == limits.total_bytes, "one at a time was seen, never two"
    assert min(sums) == 3 * limits.everyday_bytes


def test_where_all_have_room_nothing_waits() -> None:
    with DecoderPool(SPEC, PREPROCESS, 2, memory_bytes=64 * GIB) as pool:
        assert not pool.memory.is_shared
        [result] = list(pool.decode_many([(0, large(0, 3900))]))
        assert result.error is None


@pytest.mark.parametrize("memory_bytes", [GIB, 64 * GIB])
def test_beyond_the_decode_spec_is_too_large_whatever_the_memory(memory_bytes: int) -> None:
    with DecoderPool(SPEC, PREPROCESS, 2, memory_bytes=memory_bytes) as pool:
        pids = pool.pids()
        [result] = list(pool.decode_many([(0, large(0, 4100))]))
        assert isinstance(result.error, ImageTooLargeError)
        assert "16810000" in str(result.error) or "4100 x 4100" in str(result.error)
        assert "16000000" in str(result.error), "the limit of the spec, not that of a share"
        assert pool.pids() == pids


def test_a_file_longer_than_a_process_may_hold_is_too_large() -> None:
    spec = DecodeSpec(max_pixels=10**6)
    with DecoderPool(spec, PREPROCESS, 1) as pool:
        pids = pool.pids()
        long = large(0, 50) + bytes(pool.memory.most_file_bytes)
        results = {r.index: r for r in pool.decode_many([(0, long), (1, large(0, 50))])}
        assert isinstance(results[0].error, ImageTooLargeError)
        assert str(len(long)) in str(results[0].error)
        assert results[1].error is None
        assert pool.pids() == pids


def test_a_long_file_within_the_limit_is_read() -> None:
    spec = DecodeSpec(max_pixels=10**6)
    with DecoderPool(spec, PREPROCESS, 2, memory_bytes=GIB) as pool:
        pids = pool.pids()
        long = large(0, 50)
        long += bytes(pool.memory.most_file_bytes - len(long))
        results = {r.index: r for r in pool.decode_many([(0, long), (1, large(0, 50))])}
        assert results[0].error is None
        assert results[1].error is None
        assert pool.pids() == pids


def test_doctor_says_the_bound() -> None:
    assert "GiB" in doctor(DoctorConfig())["decoders"]["memory"]
