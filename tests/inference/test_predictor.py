"""What a backend must prove before it predicts, and what it does when it cannot."""

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.errors import ConfigError, DeviceFailedError
from imgcls.inference import device
from imgcls.inference.backends import golden_check
from imgcls.inference.backends.backend import Backend
from imgcls.inference.backends.demand import choose_batch_size, choose_num_streams, demand_of_run
from imgcls.inference.backends.features import Features
from imgcls.inference.backends.network import Network
from imgcls.inference.device import pick_device
from imgcls.model.bundle import make_golden
from tests.inference.resnet import IMAGE_PX, images, make_resnet
from tests.kit.predictors import open_predictor


def test_batches_at_a_time_give_what_one_at_a_time_gives() -> None:
    bundle = make_resnet(1.0)
    alone = open_predictor(bundle, batch_size=4, device="cpu")
    several = open_predictor(bundle, batch_size=4, device="cpu", num_streams=3)
    batches = [images(4, seed) for seed in range(9)]
    before_s = several.busy_s()
    futures = [several.submit(x_BCHW) for x_BCHW in batches]
    for future, x_BCHW in zip(futures, batches, strict=True):
        expected = alone.predict(x_BCHW)
        np.testing.assert_allclose(future.result().probs_BK, expected.probs_BK, atol=1e-6)
    assert several.busy_s() > before_s


def test_streams_share_out_the_cores_and_leave_the_caller_its_own() -> None:
    num_threads = torch.get_num_threads()
    found: list[int] = []
    try:
        torch.set_num_threads(4)
        predictor = open_predictor(make_resnet(1.0), batch_size=4, device="cpu", num_streams=2)
        real = predictor._model

        def model(x_BCHW: torch.Tensor) -> torch.Tensor:
            found.append(torch.get_num_threads())
            return real(x_BCHW)

        predictor._model = model
        predictor.predict(images(4))
        assert found == [2]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize(
    ("num_cpus", "num_batches", "expected"), [(2, 100, 2), (2, 1, 1), (64, 1000, 8), (4, 0, 1)]
)
def test_no_more_batches_at_a_time_than_cores_or_batches(
    num_cpus: int, num_batches: int, expected: int
) -> None:
    assert choose_num_streams(torch.device("cpu"), num_cpus, num_batches) == expected
    assert choose_num_streams(torch.device("cuda"), num_cpus, num_batches) == min(2, expected)


def test_batch_size_suits_the_device_unless_one_is_asked_for() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_batch_size(cpu, 0, "auto") < choose_batch_size(cuda, 0, "auto")
    assert choose_batch_size(cpu, 7, "auto") == choose_batch_size(cuda, 7, "auto") == 7
    # The shape is part of the calibrated network.
    assert choose_batch_size(cpu, 7, "int8") == choose_batch_size(cpu, 9, "int8")


def test_int8_without_a_network_of_its_own_is_refused_with_the_line_that_makes_one() -> None:
    with pytest.raises(ConfigError, match=r"has no int8 network.*imgcls quantize --model"):
        open_predictor(make_resnet(1.0), precision="int8", device="cpu")


def test_a_multi_label_backend_must_keep_every_class_on_its_side_of_one_half(
    log_of_imgcls: pytest.LogCaptureFixture, fast_bf16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class on top stays, another one crosses 0.5 by less than the tolerance: refused."""
    bundle = make_resnet()
    golden_BK = make_golden(
        bundle.to_model(), bundle.golden_x_BCHW, bundle.preprocess_spec, multi_label=True
    )
    multi_label = replace(bundle, multi_label=True, golden_probs_BK=golden_BK)
    real = golden_check.golden_probs

    def moved(tried: Backend, *args: Any) -> torch.Tensor:
        probs_BK = real(tried, *args)
        if tried.precision == "bf16":
            probs_BK[0, 2] = golden_BK[0, 2] = 0.5
            probs_BK[0, 2] -= 1e-3
        return probs_BK

    monkeypatch.setattr(golden_check, "golden_probs", moved)
    predictor = open_predictor(multi_label, batch_size=4, precision="auto", device="cpu")
    assert predictor.name == "eager fp32 on cpu"
    assert "1 of 3 golden images change their label" in log_of_imgcls.text


def test_a_run_of_few_images_asks_for_no_more_rows_and_streams_than_they_fill() -> None:
    asked = partial(demand_of_run, device="cpu", precision="fp32", num_cores=2)
    few = asked(batch_size=0, num_images=3)
    assert (few.batch_size, few.num_streams) == (3, 1)
    many = asked(batch_size=4, num_images=9)
    assert (many.batch_size, many.num_streams) == (4, 2)


def test_closed_predictor_takes_no_batch_and_its_threads_end() -> None:
    before = set(threading.enumerate())
    predictor = open_predictor(make_resnet(), batch_size=4, device="cpu", num_streams=2)
    for done in [predictor.submit(images(4)) for _ in range(4)]:
        done.result()
    threads = set(threading.enumerate()) - before
    assert threads
    predictor.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError, match="shutdown"):
        predictor.predict(images(4))


class CountsCopies(torch.Tensor):
    """A tensor of a device: whatever is made of it is one, and copies to the host are counted."""

    num_copies = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            cls.num_copies += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("embedding", [False, True])
def test_all_that_a_batch_gives_leaves_the_device_in_one_copy(embedding: bool) -> None:
    """Each waits until the device has nothing more to do."""
    predictor = open_predictor(make_resnet(1.0), batch_size=4, device="cpu", embedding=embedding)
    x_BCHW = images(3)
    expected = predictor.predict(x_BCHW)
    real, real_features = predictor._model, predictor._features
    predictor._model = lambda x_BCHW: real(x_BCHW).as_subclass(CountsCopies)
    if real_features is not None:
        predictor._features = lambda: Features(
            real_features().embedding_BE.as_subclass(CountsCopies), None
        )
    CountsCopies.num_copies = 0
    found = predictor.predict(x_BCHW)
    assert CountsCopies.num_copies == 1
    for name in ("label_B", "confidence_B", "topk_label_BT", "topk_prob_BT", "probs_BK"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    if embedding:
        assert found.embedding_BE is not None
        np.testing.assert_array_equal(found.embedding_BE, expected.embedding_BE)
        assert found.embedding_BE.shape == (3, 512)


def holds_at_most(
    max_rows: int, monkeypatch: pytest.MonkeyPatch, precision: str = ""
) -> list[tuple[str, int]]:
    """Have every network, or those of one precision, run out of memory above so many rows."""
    real, passed = Network.forward, list[tuple[str, int]]()

    def forward(self: Network, x_BCHW: torch.Tensor) -> torch.Tensor:
        dtype = str(self._dtype)
        passed.append((dtype, len(x_BCHW)))
        if len(x_BCHW) > max_rows and dtype.endswith(precision):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, x_BCHW)

    monkeypatch.setattr(Network, "forward", forward)
    return passed


@pytest.mark.usefixtures("fast_bf16")
def test_want_of_memory_while_choosing_makes_passes_smaller_and_changes_no_precision(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = holds_at_most(4, monkeypatch, "bfloat16")
    predictor = open_predictor(make_resnet(), batch_size=16, precision="auto", device="cpu")
    assert predictor.name == "eager bf16 on cpu"
    assert "out of memory with 16 images a pass; out of memory with 8" in log_of_imgcls.text
    x_BCHW = images(16)
    passed.clear()
    found = predictor.predict(x_BCHW)
    assert passed == [("torch.bfloat16", 4)] * 4
    assert not found.error_by_row
    plain = open_predictor(make_resnet(), batch_size=4, precision="bf16", device="cpu")
    expected = [plain.predict(x_BCHW[at : at + 4]).probs_BK for at in range(0, 16, 4)]
    np.testing.assert_array_equal(found.probs_BK, np.concatenate(expected))


def test_no_memory_for_one_image_is_the_devices_fault_whatever_the_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holds_at_most(0, monkeypatch)
    with pytest.raises(DeviceFailedError, match="out of memory with one image a pass"):
        open_predictor(make_resnet(), batch_size=16, precision="auto", device="cpu")


def test_an_error_of_the_accelerator_while_choosing_changes_no_precision(
    monkeypatch: pytest.MonkeyPatch, fast_bf16: None
) -> None:
    real = Network.forward

    def forward(self: Network, x_BCHW: torch.Tensor) -> torch.Tensor:
        if self._dtype == torch.bfloat16:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return real(self, x_BCHW)

    monkeypatch.setattr(Network, "forward", forward)
    with pytest.raises(DeviceFailedError, match="illegal memory access"):
        open_predictor(make_resnet(), batch_size=4, precision="auto", device="cpu")


@pytest.mark.parametrize("embedding", [False, True])
def test_an_image_that_the_network_raises_on_is_named_and_the_others_keep_their_numbers(
    embedding: bool,
) -> None:
    predictor = open_predictor(make_resnet(1.0), batch_size=8, device="cpu", embedding=embedding)
    x_BCHW = images(8)
    expected = predictor.predict(x_BCHW)
    x_BCHW[5] = 255
    real = predictor._model

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
        if (x_BCHW.flatten(1) == 255).all(dim=1).any():
            raise ValueError("too bright")
        return real(x_BCHW)

    predictor._model = forward
    found = predictor.predict(x_BCHW)
    assert found.error_by_row == {5: "the model fails on it: ValueError: too bright"}
    assert found.ok_B.tolist() == [row != 5 for row in range(8)]
    ok_B = found.ok_B
    # Its place in the batch may change the order of a sum.
    np.testing.assert_allclose(found.probs_BK[ok_B], expected.probs_BK[ok_B], atol=1e-6)
    np.testing.assert_array_equal(found.label_B[ok_B], expected.label_B[ok_B])
    if embedding:
        assert found.embedding_BE is not None
        assert expected.embedding_BE is not None
        np.testing.assert_allclose(found.embedding_BE[ok_B], expected.embedding_BE[ok_B], atol=1e-5)
    only_bad = predictor.predict(np.full((2, 3, IMAGE_PX, IMAGE_PX), 255, np.uint8))
    assert sorted(only_bad.error_by_row) == [0, 1]


def test_a_network_that_no_longer_gives_its_golden_answers_blames_no_image() -> None:
    predictor = open_predictor(make_resnet(1.0), batch_size=8, device="cpu")
    real = predictor._model
    is_broken = [False]

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
        if is_broken[0] and (x_BCHW.flatten(1) == 255).all(dim=1).any():
            raise ValueError("too bright")
        return real(x_BCHW) * (-1 if is_broken[0] else 1)

    predictor._model = forward
    is_broken[0] = True
    with pytest.raises(DeviceFailedError, match="golden images change their label"):
        predictor.predict(np.full((2, 3, IMAGE_PX, IMAGE_PX), 255, np.uint8))


def test_warming_up_runs_all_streams_at_a_time() -> None:
    """Two batches that fit one by one may not fit together: that shows at the start."""
    predictor = open_predictor(make_resnet(), batch_size=4, device="cpu", num_streams=2)
    real, both_run = predictor._model, threading.Barrier(2)

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:
        if len(x_BCHW) > 2:
            both_run.wait(60)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(x_BCHW)

    predictor._model = forward
    predictor._warm_up()
    assert predictor._passes.max_rows == 2


def test_a_device_is_taken_as_it_is_with_its_index() -> None:
    assert pick_device(torch.device("cuda", 3)) == torch.device("cuda", 3)
    assert open_predictor(make_resnet(), device=torch.device("cpu")).device.type == "cpu"


def test_auto_that_passes_over_a_gpu_says_so(
    tmp_path: Path, log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_NVIDIA_DEVICES", (str(tmp_path), "nvidia[0-9]*"))
    assert pick_device("auto").type == "cpu"
    assert "NVIDIA" not in log_of_imgcls.text
    (tmp_path / "nvidia0").touch()
    assert pick_device("auto").type == "cpu"
    assert "this machine has an NVIDIA GPU" in log_of_imgcls.text
