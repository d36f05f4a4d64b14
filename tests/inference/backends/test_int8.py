"""int8 by OpenVINO: calibrated, judged on other images, refused when it changes labels."""

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from imgcls.errors import BundleError, ConfigError
from imgcls.inference.backends import int8, openvino
from imgcls.inference.backends.network import Network
from imgcls.metrics.calibration import Calibration
from imgcls.model.bundle import Bundle
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import IMAGE_PX, make_bundle, make_sure_bundle

pytestmark = pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")), reason="the extra int8 is not installed"
)


def network_of(bundle: Bundle) -> Network:
    return Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()


def sample(count: int = 2 * int8.MIN_CALIBRATION) -> torch.Tensor:
    """Images of one brightness each: a network of random weights tells them apart."""
    generator = torch.Generator().manual_seed(0)
    level_B111 = torch.randint(0, 200, (count, 3, 1, 1), generator=generator)
    noise_BCHW = torch.randint(0, 55, (count, 3, IMAGE_PX, IMAGE_PX), generator=generator)
    return (level_B111 + noise_BCHW).to(torch.uint8)


@pytest.fixture(scope="module")
def quantized() -> tuple[Bundle, bytes]:
    bundle = make_sure_bundle()
    return bundle, int8.quantize(network_of(bundle), sample())


def test_every_load_of_the_same_bytes_predicts_the_same(quantized: tuple[Bundle, bytes]) -> None:
    bundle, data = quantized
    x_BCHW = sample(int8.BATCH_SIZE)
    one, other = (openvino.load(data, streams, "int8")(x_BCHW) for streams in (1, 2))
    assert torch.equal(one, other)
    assert one.shape == (int8.BATCH_SIZE, len(bundle.class_names))
    with torch.inference_mode():
        torch.testing.assert_close(one, network_of(bundle)(x_BCHW), rtol=0.05, atol=5.0)


def test_predictor_names_the_engine_and_several_threads_share_it(
    quantized: tuple[Bundle, bytes],
) -> None:
    bundle, data = quantized
    predictor = open_predictor(
        int8.with_network(bundle, data, {}),
        device="cpu",
        precision="int8",
        batch_size=int8.BATCH_SIZE,
        num_streams=2,
    )
    assert predictor.name == "openvino int8 on cpu"
    assert predictor.predict(sample(5)).label_B.tolist() == [0] * 5
    batches = list(sample(4 * int8.BATCH_SIZE).split(int8.BATCH_SIZE))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predictor._model, batches))
    alone = openvino.load(data, 1, "int8")
    for logits_BK, x_BCHW in zip(found, batches, strict=True):
        assert torch.equal(logits_BK, alone(x_BCHW))


class Contrary(nn.Module):
    """Answers the other way round for every third image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK = self.network(x_BCHW).clone()
        logits_BK[::3] *= -1
        return logits_BK


def test_labels_that_change_refuse_the_network_with_the_figure() -> None:
    network = network_of(make_bundle())
    x_BCHW = sample(32)
    int8.check_agreement(network, network, x_BCHW, multi_label=False)
    words = r"only 20 of 32 golden images .* \(62\.5%\), 99% are needed"
    with pytest.raises(BundleError, match=words):
        int8.check_agreement(Contrary(network), network, x_BCHW, multi_label=False)


def test_a_network_of_before_whose_probabilities_move_runs_and_this_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, x_BCHW = network_of(make_sure_bundle()), sample(4)

    with torch.inference_mode():
        int8.check_agreement(network, network, x_BCHW, multi_label=False)
        assert caplog.records[-1].levelname == "INFO"
        int8.check_agreement(lambda x: network(x) / 5000, network, x_BCHW, multi_label=False)
    assert caplog.records[-1].levelname == "WARNING"
    assert "4 of 4 golden images keep their fp32 labels; their probabilities move by up to 0." in (
        caplog.text
    )


def test_thresholds_that_were_fitted_again_refuse_the_network_that_was_judged_by_others(
    quantized: tuple[Bundle, bytes],
) -> None:
    bundle, data = quantized
    made = int8.with_network(bundle, data, {})
    assert int8.why_not(made) == ""
    calibration = Calibration(1.5, "", 20, 0.5, 0.5, 0.1, 0.1, ())
    moved = replace(made, calibration=calibration.to_dict())
    with pytest.raises(ConfigError, match=r"judged by other thresholds.*imgcls quantize --model"):
        open_predictor(moved, device="cpu", precision="int8", batch_size=int8.BATCH_SIZE)


def test_neither_library_reports_its_use(quantized: tuple[Bundle, bytes]) -> None:
    import sys

    assert quantized
    assert sys.modules["openvino_telemetry"] is None


def test_log_handlers_of_others_keep_their_level() -> None:
    of_others = logging.StreamHandler(io.StringIO())
    logging.getLogger("nncf").addHandler(of_others)
    try:
        int8.quantize(network_of(make_sure_bundle()), sample())
    finally:
        logging.getLogger("nncf").removeHandler(of_others)
    assert of_others.level == logging.NOTSET


def test_nothing_is_left_in_the_working_folder(
    quantized: tuple[Bundle, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    openvino.load(quantized[1], 1, "int8")
    assert not list(tmp_path.iterdir())
