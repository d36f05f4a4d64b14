"""Files that crash, hang or exhaust a decoder: the job, and every other image, continues."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from imgcls.errors import (
    CorruptImageError,
    DecoderCrashError,
    DecodeTimeoutError,
    ImageTooLargeError,
    ImgclsError,
)
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec

DECODE, PREPROCESS = DecodeSpec(), PreprocessSpec.for_image_px(32)
CRASHES = b"this one crashes"
# Found by the site module of a decoder whose sys.path holds its folder: a fault that only a test
# can inject.
FAULT = f"""
import ctypes
import imgcls.image.decode as module
decode_raster = module.decode_raster
def crash_on_some(data, *args, **kwargs):
    if data.endswith({CRASHES!r}):
        ctypes.string_at(0)
    if data.endswith(b"memory"):
        bytearray(1 << 40)
    return decode_raster(data, *args, **kwargs)
module.decode_raster = crash_on_some
"""


def picture(color: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (color, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def slow_file() -> bytes:
    """A valid JPEG of 100 kB or so whose scans, of 36 megapixels each, come again and again."""
    out = io.BytesIO()
    Image.new("L", (6000, 6000), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    tables = data.rindex(b"\xff\xc4", 0, second_scan)
    third_scan = data.index(b"\xff\xc4", second_scan)
    return data[:third_scan] + data[tables:third_scan] * 400 + data[third_scan:]


@pytest.fixture
def faulty_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    monkeypatch.syspath_prepend(str(tmp_path))
    with DecoderPool(DECODE, PREPROCESS, 2) as pool:
        yield pool


def cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_segfault_costs_its_image_alone_and_is_tried_twice(
    faulty_pool: DecoderPool, caplog: pytest.LogCaptureFixture
) -> None:
    files = [picture(i) for i in range(60)]
    bad = {7, 30, 31, 32, 59}
    items = ((i, data + CRASHES if i in bad else data) for i, data in enumerate(files))
    results = {result.index: result for result in faulty_pool.decode_many(items)}
    assert sorted(results) == list(range(60))
    for index, result in results.items():
        if index in bad:
            assert isinstance(result.error, DecoderCrashError)
            assert f"signal {signal.SIGSEGV:d}" in str(result.error)
        else:
            [crop] = result.crops
            [expected] = decode_one(files[index], DECODE, PREPROCESS)
            assert (crop.x_CHW == expected.x_CHW).all()
    assert caplog.text.count("a decoder process died") == 2 * len(bad)
    assert len(faulty_pool.pids()) == 2


def test_an_image_that_needs_too_much_memory_is_too_large(faulty_pool: DecoderPool) -> None:
    before = set(faulty_pool.pids())
    results = {
        r.index: r for r in faulty_pool.decode_many([(0, picture() + b"memory"), (1, picture())])
    }
    assert isinstance(results[0].error, ImageTooLargeError)
    assert results[1].error is None
    assert set(faulty_pool.pids()) == before


def test_a_slow_image_times_out_and_the_rest_goes_on(slow_file: bytes) -> None:
    with DecoderPool(DECODE, PREPROCESS, 1, wall_limit_s=1.0) as pool:
        files = [picture(1), slow_file, picture(2), picture(3)]
        start_s = time.monotonic()
        results = {r.index: r for r in pool.decode_many(enumerate(files))}
        assert time.monotonic() - start_s < 10
        assert isinstance(results[1].error, DecodeTimeoutError)
        assert [i for i, result in results.items() if result.error is None] == [0, 2, 3]


def test_a_child_that_is_killed_for_memory_gets_its_image_a_second_chance(slow_file: bytes) -> None:
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        results = pool.decode_many([(0, slow_file)])
        stop = threading.Event()

        def kill_whatever_works() -> None:
            while not stop.wait(0.05):
                for pid in pool.pids():
                    if cpu_s(pid) > 0.6:  # a start takes less
                        os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_whatever_works)
        killer.start()
        try:
            [result] = list(results)
        finally:
            stop.set()
            killer.join()
        assert isinstance(result.error, DecoderCrashError)
        assert [r.error for r in pool.decode_many([(1, picture())])] == [None]


def test_children_end_in_the_midst_of_a_slow_image_when_the_parent_is_killed(
    slow_file: bytes, tmp_path: Path
) -> None:
    (tmp_path / "slow.jpg").write_bytes(slow_file)
    script = (
        "import sys, threading\n"
        "from imgcls.image.decoders.pool import DecoderPool\n"
        "from imgcls.image.spec import DecodeSpec, PreprocessSpec\n"
        "pool = DecoderPool(DecodeSpec(), PreprocessSpec.for_image_px(32), 1)\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "threading.Timer(1, lambda: print(pool.pids()[0], flush=True)).start()\n"
        "list(pool.decode_many([(0, data)]))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "slow.jpg")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_children_that_cannot_start_end_the_job_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        DecoderPool(DECODE, PREPROCESS, 2) as pool,
        pytest.raises(ImgclsError, match=r"do not start \(exit code 7"),
    ):
        list(pool.decode_many([(0, picture())]))
    del capfd


def test_a_child_has_limits_and_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with DecoderPool(DECODE, PREPROCESS, 1) as pool, Path(__file__).open() as held:
        assert [r.error for r in pool.decode_many([(0, picture())])] == [None]
        child = Path(f"/proc/{pool.pids()[0]}")
        assert b"hidden" not in (child / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split() for line in (child / "limits").open()}
        assert int(limits["Max address space"][0]) < 4 << 30
        assert limits["Max open files"][:2] == ["64", "64"]
        assert limits["Max core file size"][0] == "0"
        assert limits["Max file size"][0] == "0"
        assert int(limits["Max cpu time"][0]) < 60
        targets = {str(fd.readlink()) for fd in (child / "fd").iterdir()}
        assert held.name not in targets
        assert sum(target.startswith("socket:") for target in targets) == 1
        assert (child / "cwd").readlink() == Path("/")


DAMAGED_PNGS = """
import sys, torch
from torchvision.io import decode_image, ImageReadMode
data = open(sys.argv[1], "rb").read()
for start in range(0, len(data), int(sys.argv[2])):
    body = data[start:start + int(sys.argv[2])].rstrip(b"\\x01")
    try:
        decode_image(torch.frombuffer(bytearray(body), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        pass
"""


def damaged_pngs() -> list[bytes]:
    """Cut and flipped PNGs, with no regard to checksums."""
    import numpy as np

    rng = np.random.default_rng(5)
    out = io.BytesIO()
    noise = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    whole = out.getvalue()
    files = [whole[:cut] for cut in range(40, len(whole) - 12, 150)]
    for _ in range(40):
        body = bytearray(whole)
        body[int(rng.integers(8, len(whole) - 12))] ^= 1 << int(rng.integers(0, 8))
        files.append(bytes(body))
    return files


def test_files_that_crash_torchvisions_png_decoder_are_corrupt_here(tmp_path: Path) -> None:
    files = damaged_pngs()
    width = max(map(len, files)) + 1
    (tmp_path / "files").write_bytes(b"".join(file.ljust(width, b"\x01") for file in files))
    theirs = subprocess.run(
        [sys.executable, "-c", DAMAGED_PNGS, str(tmp_path / "files"), str(width)],
        capture_output=True,
        check=False,
    )
    with DecoderPool(DECODE, PREPROCESS, 2) as pool:
        before = pool.pids()
        results = list(pool.decode_many(enumerate(files)))
        assert pool.pids() == before
    assert len(results) == len(files)
    assert all(isinstance(result.error, CorruptImageError) for result in results)
    assert theirs.returncode in (-signal.SIGSEGV, -signal.SIGABRT), theirs.stderr[-500:]
