"""What a backend must prove before it predicts, and what it does when it cannot."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.config.choices import Precision
from imgcls.data.class_names import ClassNames
from imgcls.errors import BundleError, ConfigError, DeviceFailedError
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference import device
from imgcls.inference.backends import choose, golden_check, openvino
from imgcls.inference.backends.arithmetic import has_fast_bf16
from imgcls.inference.backends.backend import Backend
from imgcls.inference.backends.demand import choose_batch_size, choose_num_streams, demand_of_run
from imgcls.inference.backends.features import Features
from imgcls.inference.backends.golden_check import LOW_PRECISION_TOLERANCE
from imgcls.inference.backends.network import Network
from imgcls.inference.device import pick_device
from imgcls.inference.predictor import Predictor
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden, read_bundle, write_bundle
from tests.kit.predictors import open_predictor

IMAGE_PX = 64
MANY_IMAGES = 10_000_000

Make = Callable[..., Bundle]


def make_resnet(sure_by: float = 10.0) -> Bundle:
    """ResNet-18 with batch norms that do something, and a lead of `sure_by` for class 1."""
    torch.manual_seed(3)
    model = build_model("resnet18", 4, image_px=IMAGE_PX).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        assert isinstance(model.fc, nn.Linear)
        model.fc.bias.zero_()[1] = sure_by
    spec = PreprocessSpec.for_image_px(IMAGE_PX)
    x_BCHW = torch.randint(0, 256, (3, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)
    return Bundle(
        arch="resnet18",
        class_names=ClassNames(("a", "b", "c", "d")),
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="",
        training={},
        golden_x_BCHW=x_BCHW,
        golden_probs_BK=make_golden(model, x_BCHW, spec),
    )


def images(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, IMAGE_PX, IMAGE_PX), dtype=np.uint8)


@pytest.fixture
def log_of_imgcls(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="imgcls")
    logging.getLogger("imgcls").propagate = True
    return caplog


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CPU can run bf16; only some can fast."""
    monkeypatch.setattr(choose, "has_fast_bf16", lambda: True)


@pytest.mark.usefixtures("fast_bf16")
def test_auto_takes_bf16_when_the_golden_images_allow_it(
    log_of_imgcls: pytest.LogCaptureFixture,
) -> None:
    predictor = open_predictor(make_resnet(), batch_size=4, precision="auto", device="cpu")
    assert predictor.name == "eager bf16 on cpu"
    assert "3 golden images keep their label" in log_of_imgcls.text


@pytest.mark.usefixtures("fast_bf16")
def test_auto_stays_in_fp32_when_a_golden_probability_moves_too_far(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_check, "LOW_PRECISION_TOLERANCE", 1e-12)
    predictor = open_predictor(make_resnet(1.0), batch_size=4, precision="auto", device="cpu")
    assert predictor.name == "eager fp32 on cpu"
    assert "eager bf16 on cpu refused: golden probabilities move by" in log_of_imgcls.text


@pytest.mark.usefixtures("fast_bf16")
def test_auto_stays_in_fp32_when_a_golden_label_changes(
    log_of_imgcls: pytest.LogCaptureFixture,
) -> None:
    bundle = make_resnet(0.0)
    # A tie: two classes of one weight, the second ahead by less than bf16 can tell.
    state = {name: tensor.clone() for name, tensor in bundle.state_dict.items()}
    state["fc.weight"][1] = state["fc.weight"][0]
    state["fc.bias"][:] = torch.tensor([50.0, 50.0 + 1e-4, 0.0, 0.0])
    model = replace(bundle, state_dict=state).to_model()
    golden_BK = make_golden(model, bundle.golden_x_BCHW, bundle.preprocess_spec)
    assert golden_BK.argmax(dim=1).tolist() == [1, 1, 1]
    tied = replace(bundle, state_dict=state, golden_probs_BK=golden_BK)
    assert open_predictor(tied, batch_size=4, precision="auto", device="cpu").name.startswith(
        "eager fp32"
    )
    assert "3 of 3 golden images change their label" in log_of_imgcls.text


def test_precision_asked_for_is_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_check, "LOW_PRECISION_TOLERANCE", 1e-12)
    with pytest.raises(
        BundleError, match=r"--precision bf16: .* move by \d.*Take --precision fp32"
    ):
        open_predictor(make_resnet(1.0), batch_size=4, precision="bf16", device="cpu")


def test_bf16_is_not_taken_where_the_cpu_emulates_it(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n")
    (tmp_path / "new").write_text("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n")
    (tmp_path / "arm").write_text("processor : 0\nFeatures\t: asimd bf16 i8mm\n")
    found = [has_fast_bf16(tmp_path / name) for name in ("old", "new", "arm", "none")]
    assert found == [False, True, True, False]


@pytest.mark.usefixtures("fast_bf16")
def test_small_network_and_embedding_stay_in_fp32(make_bundle: Make) -> None:
    small = open_predictor(make_bundle(), precision="auto", device="cpu")
    assert small.name == "eager fp32 on cpu"
    wide = open_predictor(make_resnet(), precision="auto", embedding=True, num_images=MANY_IMAGES)
    assert "fp32" in wide.name
    assert wide.predict(images(1)).embedding_BE is not None


def test_folded_network_gives_the_same_probabilities() -> None:
    bundle = make_resnet(1.0)
    plain = open_predictor(bundle, batch_size=4, device="cpu")
    folded = open_predictor(bundle, batch_size=4, device="cpu", num_images=1000)
    assert (plain.name, folded.name) == ("eager fp32 on cpu", "folded fp32 on cpu")
    x_BCHW = images(4)
    expected, found = plain.predict(x_BCHW), folded.predict(x_BCHW)
    np.testing.assert_allclose(found.probs_BK, expected.probs_BK, atol=1e-5)
    np.testing.assert_array_equal(found.label_B, expected.label_B)


def test_network_that_cannot_be_traced_runs_unfolded(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_network: nn.Module) -> nn.Module:
        raise torch.fx.proxy.TraceError("control flow")

    monkeypatch.setattr(choose, "fold_batchnorm", fail)
    predictor = open_predictor(make_resnet(), batch_size=4, device="cpu", num_images=1000)
    assert predictor.name == "eager fp32 on cpu"
    assert "not folded: TraceError" in log_of_imgcls.text


def test_long_run_without_a_compiler_is_not_compiled_and_says_so(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_compiler(_network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(_x_BCHW: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("No working C++ compiler found")

        return forward

    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    monkeypatch.setattr(choose, "compile_network", without_compiler)
    predictor = open_predictor(make_resnet(), batch_size=4, device="cpu", num_images=MANY_IMAGES)
    assert predictor.name == "folded fp32 on cpu"
    assert "refused: RuntimeError: No working C++ compiler found" in log_of_imgcls.text


needs_openvino = pytest.mark.skipif(
    not openvino.is_installed(), reason="the extra openvino is not installed"
)


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_long_run_on_a_cpu_is_openvinos_converted_once_and_cached(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_bundle(make_resnet(1.0), str(tmp_path / "bundle"))
    bundle = read_bundle(str(tmp_path / "bundle"))
    plain = open_predictor(bundle, batch_size=4, precision="fp32", device="cpu")

    def openvinos() -> Predictor:
        return open_predictor(
            bundle,
            batch_size=4,
            precision=precision,
            device="cpu",
            num_images=MANY_IMAGES,
            num_streams=2,
        )

    first = openvinos()
    assert (first.name, first.precision) == (f"openvino {precision} on cpu", precision)
    x_BCHW = images(4)
    expected = plain.predict(x_BCHW)
    tolerance = 1e-5 if precision == "fp32" else LOW_PRECISION_TOLERANCE
    for found in [done.result() for done in [first.submit(x_BCHW) for _ in range(6)]]:
        np.testing.assert_allclose(found.probs_BK, expected.probs_BK, atol=tolerance)
        np.testing.assert_array_equal(found.label_B, expected.label_B)

    def never(*_: object) -> None:
        raise AssertionError("converted a second time")

    (cached,) = (tmp_path / "cache").rglob("*.zip")
    with monkeypatch.context() as patched:
        patched.setattr(openvino, "convert", never)
        again = openvinos()
        np.testing.assert_array_equal(again.predict(x_BCHW).probs_BK, found.probs_BK)
    damaged = bytearray(cached.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    cached.write_bytes(damaged)
    mended = openvinos()
    np.testing.assert_array_equal(mended.predict(x_BCHW).probs_BK, found.probs_BK)


@needs_openvino
def test_openvino_must_keep_the_golden_predictions_too(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_resnet(1.0)
    wrong = {name: tensor * 1.5 for name, tensor in other.state_dict.items() if "fc" in name}
    wrong_network = Network(
        replace(other, state_dict=other.state_dict | wrong).to_model(),
        other.preprocess_spec,
        "fp32",
    ).eval()
    real = openvino.convert_once
    monkeypatch.setattr(
        openvino, "convert_once", lambda _network, *args: real(wrong_network, *args)
    )
    predictor = open_predictor(
        other, batch_size=4, precision="fp32", device="cpu", num_images=MANY_IMAGES // 200
    )
    assert "openvino fp32 on cpu refused: " in log_of_imgcls.text
    assert predictor.name == "folded fp32 on cpu"


def test_network_that_openvino_cannot_take_runs_without_it(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> bytes:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(openvino, "is_installed", lambda: True)
    monkeypatch.setattr(openvino, "convert_once", cannot)
    predictor = open_predictor(
        make_resnet(), batch_size=4, device="cpu", num_images=MANY_IMAGES // 200
    )
    assert predictor.name == "folded fp32 on cpu"
    assert "not converted to OpenVINO: NotImplementedError" in log_of_imgcls.text


def test_a_golden_image_on_the_other_side_of_a_threshold_refuses_the_precision(
    log_of_imgcls: pytest.LogCaptureFixture, fast_bf16: None
) -> None:
    """bf16 moves a probability by less than the tolerance, and across a threshold."""
    bundle = make_resnet(1.0)
    in_bf16 = open_predictor(bundle, batch_size=4, precision="bf16", device="cpu")
    low_B = in_bf16.predict(bundle.golden_x_BCHW).probs_BK[:, 1]
    exact_B = bundle.golden_probs_BK[:, 1].numpy()
    image = int(np.abs(low_B - exact_B).argmax())
    between = float(low_B[image] + exact_B[image]) / 2
    facts = (0.0, 0.9, [0.8, 1.0], 0.9, [0.8, 1.0], 10, 10)
    point = OperatingPoint("b:recall>=0.9", "b", "recall", 0.9, between, between, between, *facts)
    calibration = Calibration(1.0, "", 20, 0.5, 0.5, 0.1, 0.1, (point,))
    decided = replace(bundle, calibration=calibration.to_dict())
    assert open_predictor(decided, batch_size=4, precision="auto", device="cpu").precision == "fp32"
    assert "1 of 3 golden images change their label or decision" in log_of_imgcls.text


def test_fp32_mismatch_stops_whatever_precision_is_asked_for() -> None:
    bundle = make_resnet(1.0)
    changed = replace(bundle, golden_probs_BK=bundle.golden_probs_BK.roll(1, dims=1))
    for precision in ("auto", "fp32", "bf16"):
        with pytest.raises(BundleError, match="does not reproduce its golden probabilities"):
            open_predictor(changed, precision=precision, device="cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_how_full_its_batch_is(precision: Precision) -> None:
    predictor = open_predictor(make_resnet(), batch_size=4, precision=precision, device="cpu")
    x_BCHW = images(4)
    whole = predictor.predict(x_BCHW)
    for row in range(4):
        alone = predictor.predict(x_BCHW[row : row + 1])
        # Its place in the batch may change the order of a sum, never its company.
        np.testing.assert_allclose(alone.probs_BK[0], whole.probs_BK[row], atol=1e-6)
    np.testing.assert_array_equal(predictor.predict(x_BCHW[:2]).probs_BK, whole.probs_BK[:2])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_network_agrees_is_compiled_once_and_cached_on_disk(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    bundle = make_resnet(1.0)
    plain = open_predictor(bundle, batch_size=4, precision=precision, device="cpu")
    compiled = open_predictor(
        bundle, batch_size=4, precision=precision, device="cpu", num_images=MANY_IMAGES
    )
    assert compiled.name == f"compiled {precision} on cpu"
    num_graphs = counters["stats"]["unique_graphs"]
    with ThreadPoolExecutor(1) as shard:
        for num_rows in (3, 4):
            x_BCHW = images(num_rows)
            found = shard.submit(compiled.predict, x_BCHW).result()
            expected = plain.predict(x_BCHW)
            np.testing.assert_allclose(found.probs_BK, expected.probs_BK, atol=0.01)
    assert counters["stats"]["unique_graphs"] == num_graphs, "compiled at the start, not again"
    assert list((tmp_path / "imgcls" / "inductor").rglob("*.so"))


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
