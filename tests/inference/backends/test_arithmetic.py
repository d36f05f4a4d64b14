"""fp32 is IEEE on every device, and bf16 and tf32 are taken only from hardware that has them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from imgcls.errors import BundleError, ConfigError
from imgcls.inference.backends import arithmetic, choose, golden_check
from imgcls.inference.backends.arithmetic import gpu_has_bf16, has_tf32, set_fp32_arithmetic
from imgcls.inference.backends.demand import Demand
from imgcls.inference.backends.network import Network
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import make_bundle

CUDA = torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def _as_torch_has_it() -> Iterator[None]:
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False


def allowed() -> tuple[bool, bool, str]:
    """What torch does with float32, by its old names and its new one."""
    return (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.conv.fp32_precision,
    )


def test_fp32_is_ieee_and_tf32_is_not() -> None:
    assert allowed()[0], "torch's own default"
    for _ in range(2):
        set_fp32_arithmetic("tf32")
        assert allowed() == (True, True, "tf32")
        set_fp32_arithmetic("fp32")
        assert allowed() == (False, False, "none")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool, str]]:
    """What was allowed in each pass of a network."""
    real, found = Network.forward, list[tuple[bool, bool, str]]()

    def forward(self: Network, x_BCHW: torch.Tensor) -> torch.Tensor:
        found.append(allowed())
        return real(self, x_BCHW)

    monkeypatch.setattr(Network, "forward", forward)
    return found


def test_whatever_predicts_in_fp32_is_ieee_from_its_first_pass_on(
    passes: list[tuple[bool, bool, str]],
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    predictor = open_predictor(make_bundle(), device="cpu", precision="fp32")
    predictor.predict(np.zeros((1, 3, 32, 32), np.uint8))
    assert passes == [(False, False, "none")] * 2


def test_tf32_is_proven_beside_fp32_with_the_tolerance_of_bf16(
    passes: list[tuple[bool, bool, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "has_tf32", lambda device: True)
    predictor = open_predictor(make_bundle(), device="cpu", precision="tf32")
    assert predictor.name == "eager tf32 on cpu"
    predictor.predict(np.zeros((1, 3, 32, 32), np.uint8))
    assert passes == [(False, False, "none"), (True, True, "tf32"), (True, True, "tf32")]
    monkeypatch.setattr(golden_check, "LOW_PRECISION_TOLERANCE", -1.0)
    with pytest.raises(BundleError, match=r"golden probabilities move by .*, allowed -1"):
        open_predictor(make_bundle(), device="cpu", precision="tf32")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), ("fp16", "fp32")),  # V100
        ((7, 5), ("fp16", "fp32")),  # T4
        ((8, 0), ("bf16", "fp16", "tf32", "fp32")),  # A100
        ((9, 0), ("bf16", "fp16", "tf32", "fp32")),  # H100
    ],
)
def test_a_gpu_that_emulates_bf16_is_not_asked_for_it(
    capability: tuple[int, int], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def of(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", of)
    # By default torch takes emulation for support.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert choose._precisions(make_bundle(), Demand(CUDA, "auto"), 4.0, [], long=False) == expected
    assert set(asked) == {CUDA}, "of the device that it is for"
    assert gpu_has_bf16(CUDA) == has_tf32(CUDA) == (capability[0] >= 8)


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match=r"--precision tf32: cpu has no such.*--precision auto"):
        open_predictor(make_bundle(), device="cpu", precision="tf32")
    assert not arithmetic.has_tf32(torch.device("cpu"))
