"""Which arithmetic and which library a run gets, and who decides."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imgcls.config.choices import Precision
from imgcls.errors import BundleError
from imgcls.inference.backends import choose, golden_check, openvino
from imgcls.inference.backends.arithmetic import has_fast_bf16
from imgcls.inference.backends.golden_check import LOW_PRECISION_TOLERANCE
from imgcls.inference.backends.network import Network
from imgcls.inference.predictor import Predictor
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.model.bundle import Bundle, make_golden, read_bundle, write_bundle
from tests.inference.resnet import images, make_resnet
from tests.kit.predictors import open_predictor

Make = Callable[..., Bundle]


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
    wide = open_predictor(make_resnet(), precision="auto", embedding=True)
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


def test_run_without_a_compiler_is_not_compiled_and_says_so(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_compiler(_network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(_x_BCHW: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("No working C++ compiler found")

        return forward

    monkeypatch.setattr(choose, "compile_network", without_compiler)
    predictor = open_predictor(
        make_resnet(), batch_size=4, device="cpu", num_images=1000, kind="compiled"
    )
    assert predictor.name == "folded fp32 on cpu"
    assert "refused: RuntimeError: No working C++ compiler found" in log_of_imgcls.text


needs_openvino = pytest.mark.skipif(
    not openvino.is_installed(), reason="the extra openvino is not installed"
)


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvinos_network_is_converted_once_and_cached(
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
            kind="openvino",
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
        other, batch_size=4, precision="fp32", device="cpu", num_images=1000, kind="openvino"
    )
    assert "openvino fp32 on cpu refused: " in log_of_imgcls.text
    assert predictor.name == "folded fp32 on cpu"


def test_network_that_openvino_cannot_take_runs_without_it(
    log_of_imgcls: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> bytes:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(openvino, "convert_once", cannot)
    predictor = open_predictor(
        make_resnet(), batch_size=4, device="cpu", num_images=1000, kind="openvino"
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

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    bundle = make_resnet(1.0)
    plain = open_predictor(bundle, batch_size=4, precision=precision, device="cpu")
    compiled = open_predictor(
        bundle, batch_size=4, precision=precision, device="cpu", kind="compiled"
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
