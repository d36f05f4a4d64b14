"""Forward passes over a batch, any of which may fail: for want of memory, by one image, for good.

In: a function that runs some rows of a batch. Out: what it returned, by rows, and a Failure for
each row that it fails on. Invariant: a Failure is an image's own: the row failed alone, twice, and
in between the model gave what it must give for images that are known. Anything else is a
DeviceFailedError, and never a row.

    out of memory     half as many rows a pass; remembered once a whole batch went through so
    any other error   the halves of the batch, by themselves, down to the image: 2 log2(B) passes
    the accelerator   DeviceFailedError at once: after an error of its own CUDA answers nothing else

A model that fails on known images too is a DeviceFailedError; one that fails on nothing but what it
is asked to score is up to the failure budget of the run.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import torch

from imgcls.errors import DeviceFailedError, ImgclsError

T = TypeVar("T")

# As torch, CUDA's libraries, OpenVINO and the C++ library put it.
_OUT_OF_MEMORY: Final = ("out of memory", "allocate memory", "alloc_failed", "bad_alloc")
_OF_ACCELERATOR: Final = ("CUDA error", "HIP error")
# Before a failing row is tried again. Memory that another process holds for a moment is not the
# image's fault, so there is more of it.
_WAITS_S: Final = {False: (0.0,), True: (0.1, 1.0, 3.0)}
_MAX_REASON_CHARS: Final = 300

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a pass failed, in one line; the exception itself would keep the tensors of the pass."""

    reason: str
    is_out_of_memory: bool

    @staticmethod
    def of(error: Exception) -> "Failure":
        """Describe an error of a pass.

        Raises:
            DeviceFailedError: it is one of the accelerator.
            ImgclsError: it is one of ours, which is no image's.
        """
        if isinstance(error, ImgclsError):
            raise error
        failure = Failure(describe_error(error), is_out_of_memory(error))
        if not failure.is_out_of_memory and is_of_accelerator(error):
            raise DeviceFailedError(
                f"the accelerator failed and answers nothing more in this process: {failure.reason}"
            ) from error
        return failure


Found = list[tuple[slice, T | Failure]]


class Passes:
    """Runs batches in as many passes as memory and failing images ask for. Thread-safe.

    Args:
        max_rows: rows of a pass; fewer once memory does not hold so many.
        check: called with the rows of a pass; raises DeviceFailedError, or for want of memory
            whatever that raises, unless the model gives what it must for known images.
    """

    def __init__(self, max_rows: int, check: Callable[[int], None]) -> None:
        self.max_rows = max_rows
        self._check = check
        self._checked = {max_rows}
        self._lock = threading.Lock()  # of both

    def run(self, num_rows: int, forward: Callable[[slice, int], T]) -> Found[T]:
        """Run `forward(rows, size)` over all rows of a batch, at most `size` of them a pass.

        Returns:
            (rows, result) in order, without a gap; rows that failed one by one.

        Raises:
            DeviceFailedError: the model fails whatever the image.
        """
        found = self._attempt_all(slice(0, num_rows), self.max_rows, forward)
        return self._try_again(found, forward)

    def _attempt_all(self, rows: slice, size: int, forward: Callable[[slice, int], T]) -> Found[T]:
        found: Found[T] = []
        start = rows.start
        while start < rows.stop:
            size = min(size, self.max_rows)  # found out meanwhile, here or by another batch
            part = slice(start, min(start + size, rows.stop))
            found += self._attempt(part, size, forward)
            start = part.stop
        return found

    def _attempt(self, rows: slice, size: int, forward: Callable[[slice, int], T]) -> Found[T]:
        """Run at most `size` rows in one pass, or in more where that fails."""
        try:
            self._check_once(size)
            return [(rows, forward(rows, size))]
        except Exception as error:  # noqa: BLE001 - which errors a network raises, nobody knows
            failure = Failure.of(error)
        # Here, where the error is gone, and the tensors that it held with it.
        if failure.is_out_of_memory:
            return self._attempt_smaller(rows, size, forward, failure)
        if rows.stop - rows.start == 1:
            return [(rows, failure)]
        middle = (rows.start + rows.stop) // 2
        halves = (slice(rows.start, middle), slice(middle, rows.stop))
        return [each for half in halves for each in self._attempt(half, size, forward)]

    def _attempt_smaller(
        self, rows: slice, size: int, forward: Callable[[slice, int], T], failure: Failure
    ) -> Found[T]:
        release_memory()
        if size == 1:
            return [(rows, failure)]
        half = size // 2
        found = self._attempt_all(rows, half, forward)
        # An image that no memory is enough for says nothing of how many others fit.
        failures = [result for _, result in found if isinstance(result, Failure)]
        if not any(failure.is_out_of_memory for failure in failures):
            with self._lock:
                is_news = half < self.max_rows
                self.max_rows = min(self.max_rows, half)
            if is_news:
                _log.warning(
                    "out of memory with %d images a pass: %d from now on (%s)",
                    size,
                    half,
                    failure.reason,
                )
        return found

    def _check_once(self, size: int) -> None:
        """Prove the model in passes of a size that it has not run in before."""
        if size in self._checked:
            return
        self._check(size)
        with self._lock:
            self._checked.add(size)

    def _try_again(self, found: Found[T], forward: Callable[[slice, int], T]) -> Found[T]:
        """Try rows that failed once more, alone, after the model was seen to work."""
        for was_out_of_memory, waits_s in _WAITS_S.items():
            for wait_s in waits_s:
                failed = [
                    number
                    for number, (_, result) in enumerate(found)
                    if isinstance(result, Failure) and result.is_out_of_memory == was_out_of_memory
                ]
                if not failed:
                    break
                time.sleep(wait_s)
                size = self._check_now(1 if was_out_of_memory else self.max_rows)
                for number in failed:
                    [found[number]] = self._attempt(found[number][0], size, forward)
        return found

    def _check_now(self, size: int) -> int:
        """Prove the model, in passes of `size` or of what memory holds just now; return that."""
        try:
            _, size = run_in_memory(self._check, size, [])
        except ImgclsError:
            raise
        except Exception as error:
            raise DeviceFailedError(
                f"the model fails on images that are known, too: {describe_error(error)}"
            ) from error
        return size


def run_in_memory(run: Callable[[int], T], num_rows: int, notes: list[str]) -> tuple[T, int]:
    """Return what `run(num_rows)` does, with half as many rows as often as memory is short.

    Raises:
        DeviceFailedError: there is none for one row, or the device fails.
        Exception: whatever else `run` raises.
    """
    while True:
        try:
            return run(num_rows), num_rows
        except Exception as error:
            failure = Failure.of(error)
            if not failure.is_out_of_memory:
                raise
        # Here, where the error is gone, and the tensors that it held with it.
        if num_rows == 1:
            raise DeviceFailedError(
                f"out of memory with one image a pass: {failure.reason}. Let others leave the "
                "device, or take --device cpu"
            )
        release_memory()
        notes.append(f"out of memory with {num_rows} images a pass")
        num_rows //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether there was not enough memory, of whatever device and library."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def is_of_accelerator(error: BaseException) -> bool:
    """Tell whether the accelerator failed: CUDA then answers every call with the same error."""
    is_theirs = isinstance(error, torch.AcceleratorError)
    return is_theirs or any(words in str(error) for words in _OF_ACCELERATOR)


def describe_error(error: BaseException) -> str:
    """Return an error in one line."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:_MAX_REASON_CHARS]


def release_memory() -> None:
    """Give back the memory that torch keeps for later: a smaller pass needs other blocks."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
