"""The network in int8 on a CPU, by OpenVINO: calibrated once, then the same bytes everywhere.

In: a bundle and uint8 [n,C,P,P] images of the kind to come. Out: a calibrated network as bytes, and
from those bytes a way to run it. Invariant: half of the images calibrate, the other half were never
seen by calibration and must keep their fp32 label in MIN_AGREEMENT of all cases, or there is no
int8 network.

Calibration adds up in an order that depends on the machine; the bytes do not: whoever shares them
predicts with the same weights and scales.

OpenVINO int8 on 2 cores (AVX-512 VNNI), ResNet-18 at 224 px: 223 images/s, beside 118 in its bf16
and 92 in torch's.

Legend: B batch, C channel, P image_px, N classes.
"""

import importlib
import io
import logging
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from imgcls.errors import BundleError, ConfigError

MIN_AGREEMENT: Final = 0.99
# Images to calibrate with; as many again judge.
NUM_CALIBRATION: Final = 128
MIN_CALIBRATION: Final = 32
# Rows of a forward pass: one number, for its shape is part of the calibrated network.
BATCH_SIZE: Final = 16
_NAMES: Final = ("network.xml", "network.bin")
# A fixed time: equal networks give equal bytes.
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)

Forward = Callable[[Tensor], Tensor]

_log = logging.getLogger(__name__)


def require_openvino() -> None:
    """Raise ConfigError where OpenVINO or its quantiser is not installed."""
    # Both report their use to their makers unless told not to; here they cannot.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not there
    os.environ.setdefault("NNCF_CI", "1")
    try:
        importlib.import_module("openvino")
        importlib.import_module("nncf")
    except ImportError as error:
        raise ConfigError(
            f'--precision int8 needs OpenVINO and NNCF ({error}): pip install "imgcls[int8]", or '
            "take --precision auto"
        ) from error


def quantize(network: nn.Module, sample_BCHW: Tensor, *, multi_label: bool) -> bytes:
    """Return the network in int8, as `load` takes it.

    Args:
        network: uint8 [B,C,P,P] -> logits float32 [B,N], on the CPU, in evaluation mode.
        sample_BCHW: uint8, images of the kind to come: every second one calibrates, the others
            judge.
        multi_label: a prediction is every class with a probability of 0.5 or more, not the top one.

    Raises:
        ConfigError: OpenVINO is not installed, or there are too few images.
        BundleError: too many labels differ from fp32.
    """
    require_openvino()
    calibration_BCHW, held_out_BCHW = sample_BCHW[::2], sample_BCHW[1::2]
    if len(held_out_BCHW) < MIN_CALIBRATION:
        raise ConfigError(
            f"--precision int8 needs {2 * MIN_CALIBRATION} images that decode, to calibrate with "
            f"and to judge by, not {len(sample_BCHW)}: take --precision auto"
        )
    _log.info("int8: calibrating on %d images of the run, once", len(calibration_BCHW))
    data = _quantize(network, calibration_BCHW)
    check_agreement(load(data, 1), network, held_out_BCHW, multi_label=multi_label)
    return data


def check_agreement(
    forward: Forward, network: nn.Module, x_BCHW: Tensor, *, multi_label: bool
) -> None:
    """Compare predictions of uint8 [n,C,P,P] with the fp32 network's.

    Raises:
        BundleError: fewer than MIN_AGREEMENT are equal.
    """
    agreement, num_images = 0, len(x_BCHW)
    with torch.inference_mode():
        for images_BCHW in _batches(x_BCHW):
            num_rows = len(images_BCHW)
            padding_BCHW = images_BCHW.new_zeros((BATCH_SIZE - num_rows, *x_BCHW.shape[1:]))
            logits_BN = forward(torch.cat([images_BCHW, padding_BCHW]))[:num_rows]
            decided, expected = (
                of >= 0 if multi_label else of.argmax(dim=1, keepdim=True)
                for of in (logits_BN, network(images_BCHW))
            )
            agreement += int((decided == expected).all(dim=1).sum())
    fraction = agreement / num_images
    told = f"{agreement} of {num_images} images that calibration never saw keep their fp32 labels"
    if fraction < MIN_AGREEMENT:
        raise BundleError(
            f"--precision int8 refused: only {told} ({fraction:.1%}), {MIN_AGREEMENT:.0%} are "
            "needed. Take --precision auto."
        )
    _log.info("int8: %s", told)


def _quantize(network: nn.Module, x_BCHW: Tensor) -> bytes:
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    batches = [
        images_BCHW.contiguous().numpy()
        for images_BCHW in _batches(x_BCHW)
        if len(images_BCHW) == BATCH_SIZE
    ]
    with redirect_stdout(io.StringIO()), TemporaryDirectory(prefix="imgcls-int8-") as folder:
        exported = torch.export.export(network, (torch.from_numpy(batches[0]),))
        float_network = openvino.convert_model(exported)
        int8_network = nncf.quantize(
            float_network,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
        )
        openvino.save_model(int8_network, Path(folder, _NAMES[0]), compress_to_fp16=False)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name in _NAMES:
                archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), Path(folder, name).read_bytes())
    return packed.getvalue()


def _batches(x_BCHW: Tensor) -> list[Tensor]:
    return [x_BCHW[start : start + BATCH_SIZE] for start in range(0, len(x_BCHW), BATCH_SIZE)]


def load(data: bytes, num_streams: int) -> Forward:
    """Return uint8 [BATCH_SIZE,C,P,P] -> logits float32 [BATCH_SIZE,N], for any thread to call.

    Args:
        data: what `quantize` returned.
        num_streams: batches at a time, a share of torch's threads each.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    require_openvino()
    import openvino

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        xml, weights = (archive.read(name) for name in _NAMES)
    core = openvino.Core()
    compiled: Any = core.compile_model(
        core.read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8))),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",  # of the few layers that are not int8
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": num_streams * torch.get_num_threads(),
            # Decoders share these cores: a thread must be free to move out of their way.
            "ENABLE_CPU_PINNING": False,
        },
    )
    of_thread = threading.local()

    def forward(x_BCHW: Tensor) -> Tensor:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        outputs = of_thread.request.infer([x_BCHW.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(outputs[0].copy())

    return forward
