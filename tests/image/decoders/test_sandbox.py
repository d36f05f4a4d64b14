"""A decoder process that hostile bytes took over: what it tries comes to nothing."""

import io
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.config.operations import DoctorConfig
from imgcls.errors import DecodeError
from imgcls.image.decoders import sandbox
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.operations.doctor import doctor

DECODE, PREPROCESS = DecodeSpec(), PreprocessSpec.for_image_px(32)
# Found by the site module of a decoder whose sys.path holds its folder: what code in a codec that
# was taken over would try.
ATTACK = """
import ctypes, os, resource, socket, subprocess, threading
import imgcls.image.decode as module
from imgcls.errors import UnsupportedImageError
decode_raster = module.decode_raster
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *args):
    if function(*args) < 0:
        raise OSError(ctypes.get_errno(), "")
TRIES = {
    "read a file": lambda: open("/etc/passwd"),
    "write a file": lambda: open(MARK, "w"),
    "list a folder": lambda: os.listdir("/"),
    "remove": lambda: os.unlink("/nothing"),
    "tcp": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "udp": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "fork": os.fork,
    "vfork": lambda: call(libc.vfork),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "run": lambda: subprocess.run(["/bin/true"]),
    "ptrace": lambda: call(libc.ptrace, 16, os.getppid(), 0, 0),
    "kill": lambda: os.kill(os.getppid(), 0),
    "limits of others": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
    "memory of others": lambda: call(libc.process_vm_readv, os.getppid(), 0, 0, 0, 0, 0),
    "io_uring": lambda: call(libc.syscall, 425, 1, 0),
    "memfd": lambda: os.memfd_create("code"),
    "a filter of its own": lambda: call(libc.prctl, 22, 2, 0, 0, 0),
}
def attack(data, *args):
    if not data.endswith(b"attack"):
        yield from decode_raster(data, *args)
        return
    done = []
    for name, what in TRIES.items():
        try:
            what()
            done.append(name)
        except OSError as error:
            if error.errno != 1:
                done.append(f"{name}: errno {error.errno}")
    numbers = []
    thread = threading.Thread(target=numbers.append, args=(7,))
    thread.start()
    thread.join()
    raise UnsupportedImageError(f"{len(TRIES)} tried, done: {done}, threads: {numbers}")
module.decode_raster = attack
"""


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 0, 0)).save(out, "PNG")
    return out.getvalue()


def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_what_a_decoder_that_was_taken_over_tries_gets_an_errno(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    inject(tmp_path, monkeypatch, f"MARK = {str(mark)!r}\n{ATTACK}")
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        pids = pool.pids()
        files = [picture(), picture() + b"attack", picture()]
        results = {r.index: r for r in pool.decode_many(enumerate(files))}
        assert pool.pids() == pids, "a denied call ended the process"
    assert str(results[1].error) == "20 tried, done: [], threads: [7]"
    assert results[0].error is None
    assert results[2].error is None
    assert not mark.exists()


def test_every_thread_of_a_decoder_is_filtered() -> None:
    with DecoderPool(DECODE, PREPROCESS, 1) as pool:
        assert pool.unconfined() == ""
        list(pool.decode_many([(i, picture()) for i in range(8)]))
        for pid in pool.pids():
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            assert threads
            for thread in threads:
                status = (thread / "status").read_text()
                assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
                assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)


def test_without_a_filter_decoding_works_and_doctor_and_the_log_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inject(tmp_path, monkeypatch, "import platform\nplatform.machine = lambda: 'riscv64'\n")
    with DecoderPool(DECODE, PREPROCESS, 2) as pool:
        [result] = list(pool.decode_many([(0, picture())]))
        assert result.error is None
        assert "riscv64" in pool.unconfined()
    assert caplog.text.count("without their sandbox: no filter for riscv64") == 1
    assert doctor(DoctorConfig())["decoders"]["sandbox"].startswith(
        "missing: no filter for riscv64"
    )


def test_doctor_says_that_the_sandbox_is_whole() -> None:
    assert doctor(DoctorConfig())["decoders"]["sandbox"].startswith("ok")


def test_a_kernel_that_refuses_the_filter_is_named() -> None:
    # Inside a sandbox the call that would make another one is denied.
    script = "from imgcls.image.decoders.sandbox import enter_sandbox as e; e(); print(e())"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout == "the kernel refuses no_new_privs: Operation not permitted\n"


def test_the_numbers_are_the_kernels() -> None:
    folder = Path("/usr/include")
    headers = (
        folder / f"{platform.machine()}-linux-gnu" / "asm" / "unistd_64.h",
        folder / "asm-generic" / "unistd.h",
    )
    if not all(header.exists() for header in headers):
        pytest.skip("no kernel headers here")
    for column, header in enumerate(headers):
        found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", header.read_text(), re.MULTILINE)
        numbers = {name: int(number) for name, number in found}
        for name, ours in sandbox._ALLOWED.items():
            assert numbers.get(name) == ours[column], name
        machine = list(sandbox._MACHINES.values())[column]
        for name in ("seccomp", "clone", "clone3", "prlimit64", "tgkill"):
            assert numbers[name] == getattr(machine, name)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dicom_of_every_coding_gives_the_same_pixels_within_the_sandbox() -> None:
    pydicom = pytest.importorskip("pydicom")
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files = [path.read_bytes() for path in sorted(folder.glob("*.dcm"))]
    files = [data for data in files if len(data) < 1 << 20]
    spec = DecodeSpec(frames="all")
    with DecoderPool(spec, PREPROCESS, 2) as pool:
        results = {r.index: r for r in pool.decode_many(enumerate(files))}
    num_equal = 0
    for index, data in enumerate(files):
        found = results[index]
        try:
            expected = decode_one(data, spec, PREPROCESS)
        except DecodeError as error:
            told = f"{error.status}: {error}"
            expected = []
        if not expected:
            assert isinstance(found.error, DecodeError)
            assert f"{found.error.status}: {found.error}" == told
            continue
        assert found.error is None
        assert len(found.crops) == len(expected)
        for crop, other in zip(found.crops, expected, strict=True):
            np.testing.assert_array_equal(crop.x_CHW, other.x_CHW)
        num_equal += 1
    assert num_equal >= 50
