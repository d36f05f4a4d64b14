"""What a batch loses when single passes fail: the images at fault, and nothing else."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from imgcls.errors import DeviceFailedError, StorageError
from imgcls.inference import passes
from imgcls.inference.passes import Failure, Found, Passes


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.time, "sleep", lambda _s: None)


class Device:
    """Fails on some rows, and above so many; `forward` returns the rows that it was given."""

    def __init__(self, bad: set[int], max_rows: int = 1 << 30) -> None:
        self.bad, self.max_rows = bad, max_rows
        self.sizes: list[int] = []
        self.checked: list[int] = []

    def forward(self, rows: slice, size: int) -> list[int]:
        self.sizes.append(size)
        if size > self.max_rows:
            raise out_of_memory()
        found = list(range(rows.start, rows.stop))
        assert 1 <= len(found) <= size
        if not self.bad.isdisjoint(found):
            raise ValueError(f"cannot look at one of {found}\nat all")
        return found

    def check(self, size: int) -> None:
        self.checked.append(size)
        if size > self.max_rows:
            raise out_of_memory()


def rows_of(found: Found[list[int]]) -> tuple[list[int], list[int]]:
    """Return the rows that came through and those that failed; all of them, in order."""
    covered = [row for rows, _ in found for row in range(rows.start, rows.stop)]
    assert covered == list(range(len(covered)))
    assert all(r.stop - r.start == 1 for r, result in found if isinstance(result, Failure))
    good = [row for _, result in found if not isinstance(result, Failure) for row in result]
    return good, [rows.start for rows, result in found if isinstance(result, Failure)]


@pytest.mark.parametrize("max_rows", [1, 3, 8, 16, 64])
@pytest.mark.parametrize("seed", range(6))
def test_only_the_rows_at_fault_fail_whatever_their_number(max_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for num_bad in (0, 1, 2, 6):
        num_rows = int(rng.integers(1, 41))
        bad = set(rng.integers(0, num_rows, num_bad).tolist())
        device = Device(bad, max_rows)
        good, failed = rows_of(Passes(16, device.check).run(num_rows, device.forward))
        assert failed == sorted(bad)
        assert good == [row for row in range(num_rows) if row not in bad]


def test_a_batch_that_goes_through_costs_one_pass_and_no_check() -> None:
    device = Device(set())
    Passes(16, device.check).run(16, device.forward)
    assert (device.sizes, device.checked) == ([16], [])


def test_one_bad_row_of_a_batch_costs_two_passes_per_halving_and_one_more_try() -> None:
    device = Device({77})
    found = Passes(128, device.check).run(128, device.forward)
    assert rows_of(found)[1] == [77]
    assert len(device.sizes) == 1 + 2 * 7 + 1
    assert device.checked == [128], "known images go through before the row is blamed"
    [reason] = [r.reason for _, r in found if isinstance(r, Failure)]
    assert reason == "ValueError: cannot look at one of [77]", "one line"


def test_what_memory_holds_is_remembered_and_checked_in_that_shape() -> None:
    device = Device(set(), max_rows=8)
    passes_ = Passes(32, device.check)
    for _ in range(3):
        assert rows_of(passes_.run(32, device.forward)) == (list(range(32)), [])
    assert passes_.max_rows == 8
    assert device.sizes == [32] + 12 * [8], "the larger shapes were not tried a second time"
    assert device.checked == [16, 8]


def test_a_row_that_no_memory_is_enough_for_does_not_make_all_others_slow() -> None:
    class Greedy(Device):
        def forward(self, rows: slice, size: int) -> list[int]:
            if rows.start <= 5 < rows.stop:
                raise out_of_memory()
            return super().forward(rows, size)

    device = Greedy(set())
    passes_ = Passes(16, device.check)
    good, failed = rows_of(passes_.run(16, device.forward))
    assert failed == [5]
    assert len(good) == 15
    assert passes_.max_rows == 16
    assert device.checked.count(1) >= 3, "memory is seen to be there, again and again"


def test_no_memory_for_known_images_either_is_the_devices_fault() -> None:
    device = Device(set(), max_rows=0)
    with pytest.raises(DeviceFailedError, match="out of memory with one image a pass"):
        Passes(16, device.check).run(16, device.forward)


def test_a_row_that_goes_through_the_second_time_is_no_failure() -> None:
    num_calls = [0]

    def forward(rows: slice, _size: int) -> list[int]:
        if rows.start <= 3 < rows.stop:
            num_calls[0] += 1
            if num_calls[0] <= 5:  # 16, 8, 4, 2 and 1 rows
                raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
        return list(range(rows.start, rows.stop))

    assert rows_of(Passes(16, lambda _size: None).run(16, forward)) == (list(range(16)), [])


def test_a_model_that_fails_on_known_images_too_makes_no_row() -> None:
    def broken(_size: int) -> None:
        raise RuntimeError("no such operator")

    with pytest.raises(DeviceFailedError, match=r"known, too.*no such operator"):
        Passes(16, broken).run(16, Device(set(range(16))).forward)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
    ],
)
def test_an_error_of_the_accelerator_ends_it_at_once(error: Exception) -> None:
    num_calls = [0]

    def forward(_rows: slice, _size: int) -> None:
        num_calls[0] += 1
        raise error

    with pytest.raises(DeviceFailedError, match=r"answers nothing more in this process: .*CUDA"):
        Passes(16, lambda _size: None).run(16, forward)
    assert num_calls == [1]


def test_our_own_errors_are_no_images() -> None:
    def forward(_rows: slice, _size: int) -> None:
        raise StorageError("the store is down")

    with pytest.raises(StorageError, match="the store is down"):
        Passes(16, lambda _size: None).run(16, forward)


@pytest.mark.parametrize(
    "error",
    [
        out_of_memory(),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"
                     " memory: you tried to allocate 4503599627370496 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
)  # fmt: skip
def test_want_of_memory_is_known_by_all_its_names(error: Exception) -> None:
    assert Failure.of(error).is_out_of_memory


def test_want_of_memory_is_known_from_torch_itself() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert Failure.of(raised.value).is_out_of_memory


def test_batches_at_a_time_remember_the_smallest() -> None:
    device = Device(set(), max_rows=4)
    passes_ = Passes(16, device.check)
    start = threading.Barrier(4)

    def run(_number: int) -> tuple[list[int], list[int]]:
        start.wait()
        return rows_of(passes_.run(16, device.forward))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, range(4))) == [(list(range(16)), [])] * 4
    assert passes_.max_rows == 4


def test_a_failure_holds_no_tensor_of_the_pass() -> None:
    """Else the next, smaller pass would find the memory of this one still taken."""
    passed: list[weakref.ref[torch.Tensor]] = []
    num_alive: list[int] = []

    def forward(_rows: slice, size: int) -> list[int]:
        num_alive.append(sum(before() is not None for before in passed))
        activations = torch.zeros(4)
        passed.append(weakref.ref(activations))
        if size > 2:
            raise out_of_memory()
        return [0]

    Passes(8, lambda _size: None).run(2, forward)
    assert num_alive == [0, 0, 0]
