"""The network in int8 on a CPU, by OpenVINO: calibrated once, then the same bytes everywhere.

In: a network and images of the kind to come. Out: a calibrated network as bytes, which openvino.py
runs. Invariant: the bytes are an attachment of a bundle, judged when they were made: whoever has
the bundle predicts with the same weights and scales.

Calibration adds up in an order that depends on the machine; the bytes do not.

OpenVINO int8 on 2 cores (AVX-512 VNNI), ResNet-18 at 224 px: 223 images/s, beside 118 in its bf16
and 92 in torch's.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

import io
import logging
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from imgcls.errors import BundleError
from imgcls.inference.backends import openvino
from imgcls.inference.backends.openvino import Forward
from imgcls.metrics.top_classes import top_label
from imgcls.model.bundle import Bundle, to_probs
from imgcls.model.bundle_files import INT8, calibration_digest, why_no_int8

MIN_AGREEMENT: Final = 0.99
# By how much a probability of such an image may move; ten times what bf16 may. Labels alone say
# little of a model that calls nearly everything by one name.
MAX_MOVED: Final = 0.1
# Images to calibrate with; at least as many as the least judge.
NUM_CALIBRATION: Final = 128
MIN_CALIBRATION: Final = 32
# Rows of a forward pass: one number, for its shape is part of the calibrated network.
BATCH_SIZE: Final = 16

_log = logging.getLogger(__name__)


def require_openvino() -> None:
    """Raise ConfigError where OpenVINO or its quantiser is not installed."""
    openvino.require("openvino", "nncf")


def quantize(network: nn.Module, calibration_BCHW: Tensor) -> bytes:
    """Return the network in int8, as `openvino.load` takes it.

    Args:
        network: pixels [B,C,H,W] -> logits float32 [B,K], on the CPU, in evaluation mode.
        calibration_BCHW: at least MIN_CALIBRATION images of the kind to come.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    require_openvino()
    return _quantize(network, calibration_BCHW)


def why_not(bundle: Bundle) -> str:
    """Return why a bundle cannot be run in int8, "" if it can."""
    return why_no_int8(bundle.attachments, vars(bundle))


def with_network(bundle: Bundle, data: bytes, facts: Mapping[str, Any]) -> Bundle:
    """Return a bundle with an int8 network, and with what is to be said of it."""
    judged_by = {"calibration_digest": calibration_digest(vars(bundle))}
    return replace(
        bundle,
        attachments=bundle.attachments | {INT8: data},
        training=bundle.training | {"int8": {**facts, **judged_by}},
    )


def check_agreement(
    forward: Forward, network: nn.Module, x_BCHW: Tensor, *, multi_label: bool
) -> None:
    """Compare predictions of uint8 [n,C,H,W] with the fp32 network's; say how far they move.

    Raises:
        BundleError: fewer than MIN_AGREEMENT are equal.
    """
    agreement, moved, num_images = 0, 0.0, len(x_BCHW)
    with torch.inference_mode():
        for images_BCHW in _batches(x_BCHW):
            num_rows = len(images_BCHW)
            padding_BCHW = images_BCHW.new_zeros((BATCH_SIZE - num_rows, *x_BCHW.shape[1:]))
            logits_BK = forward(torch.cat([images_BCHW, padding_BCHW]))[:num_rows]
            both = logits_BK, network(images_BCHW)
            decided, expected = (of_BK >= 0 if multi_label else _top_B1(of_BK) for of_BK in both)
            agreement += int((decided == expected).all(dim=1).sum())
            now_BK, before_BK = (to_probs(of_BK, multi_label=multi_label) for of_BK in both)
            moved = max(moved, float((now_BK - before_BK).abs().max()))
    fraction = agreement / num_images
    said = f"{agreement} of {num_images} golden images keep their fp32 labels"
    if fraction < MIN_AGREEMENT:
        raise BundleError(
            f"--precision int8 refused: only {said} ({fraction:.1%}), {MIN_AGREEMENT:.0%} are "
            "needed. Take --precision auto."
        )
    # A network that `quantize` made before it looked at probabilities still runs, and this is said.
    _log.log(
        logging.WARNING if moved > MAX_MOVED else logging.INFO,
        "int8: %s; their probabilities move by up to %.2g",
        said,
        moved,
    )


def _top_B1(logits_BK: Tensor) -> Tensor:
    """Return the label of each row, as a row of predictions names it."""
    return torch.from_numpy(top_label(logits_BK.softmax(dim=1).numpy())[:, None])


def _quantize(network: nn.Module, x_BCHW: Tensor) -> bytes:
    import nncf

    # Not by nncf.set_log_level: that sets whatever handlers others have put there, too.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    batches = [
        images_BCHW.contiguous().numpy()
        for images_BCHW in _batches(x_BCHW)
        if len(images_BCHW) == BATCH_SIZE
    ]
    with redirect_stdout(io.StringIO()):
        int8_network = nncf.quantize(
            openvino.convert(network, torch.from_numpy(batches[0])),
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
        )
    return openvino.pack(int8_network)


def _batches(x_BCHW: Tensor) -> list[Tensor]:
    return [x_BCHW[start : start + BATCH_SIZE] for start in range(0, len(x_BCHW), BATCH_SIZE)]
