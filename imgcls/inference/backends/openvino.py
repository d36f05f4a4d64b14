"""A network in OpenVINO's own format: converted once, then run from the same bytes by any thread.

In: a torch network for uint8 [B,C,H,W], or such bytes. Out: the bytes, or a way to run them.
Invariant: nothing here decides whether the result is good enough: the golden check and int8's gate
do.

OpenVINO beside torch, ResNet-18 at 224 px on 2 cores with AVX-512 (bf16, VNNI), batches of 16, two
at a time, medians of 3 in one run: bf16 120 images/s beside 105 folded, fp32 57 beside 52.

Legend: B batch, C channels, H height, W width, K classes.
"""

import importlib
import io
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from imgcls.errors import ConfigError
from imgcls.inference.backends.network import Network, cache_folder, write_cache
from imgcls.model.networks.onnx_network import OnnxNetwork
from imgcls.scratch import scratch_folder

_NAMES: Final = ("network.xml", "network.bin")
# Converted networks that a cache keeps: 45 MB each for resnet18.
_MAX_CACHED: Final = 8
# A fixed time: equal networks give equal bytes.
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
_HINTS: Final = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # int8: of the few layers that stay

Forward = Callable[[Tensor], Tensor]


def is_installed() -> bool:
    """Tell whether OpenVINO is here, without importing it."""
    return find_spec("openvino") is not None


def require(*packages: str) -> None:
    """Import OpenVINO's packages; ConfigError, with the way out, where one is missing."""
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f'--precision int8 needs OpenVINO and NNCF ({error}): pip install "imgcls[int8]", or '
            "take --precision auto"
        ) from error


def convert(network: nn.Module, x_BCHW: Tensor) -> Any:  # noqa: ANN401 - openvino.Model, untyped
    """Return the network as OpenVINO's model, for batches of the shape and type of `x_BCHW`.

    Args:
        network: pixels [B,C,H,W] -> logits float32 [B,K], on the CPU, in evaluation mode.
        x_BCHW: any images.

    Raises:
        Exception: whatever torch.export or OpenVINO raise for a network that they cannot take.
    """
    require("openvino")
    import openvino

    if isinstance(network, Network) and isinstance(network.classifier, OnnxNetwork):
        return network.classifier.to_openvino(len(x_BCHW), network.spec)
    return openvino.convert_model(torch.export.export(network, (x_BCHW,)))


def pack(model: Any) -> bytes:  # noqa: ANN401 - openvino.Model, untyped
    """Return a model as `load` takes it."""
    import openvino

    packed = io.BytesIO()
    with scratch_folder("openvino") as folder:
        openvino.save_model(model, Path(folder, _NAMES[0]), compress_to_fp16=False)
        with zipfile.ZipFile(packed, "w") as archive:
            for name in _NAMES:
                archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), Path(folder, name).read_bytes())
    return packed.getvalue()


class Compiled:
    """uint8 [B,C,H,W] -> logits float32 [B,K], for any thread to call."""

    def __init__(self, compiled: Any) -> None:  # noqa: ANN401 - openvino.CompiledModel, untyped
        self._compiled = compiled
        self._of_thread = threading.local()

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Run one batch."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        found = self._of_thread.request.infer([x_BCHW.contiguous().numpy()], share_inputs=True)
        logits_BK, *rest = (torch.from_numpy(found[at].copy()) for at in range(len(found)))
        self._of_thread.rest = rest
        return logits_BK

    def rest(self) -> list[Tensor]:
        """Return the other outputs of the calling thread's latest pass."""
        rest: list[Tensor] = self._of_thread.rest
        return rest


def load(data: bytes, num_streams: int, precision: str) -> Compiled:
    """Return what runs a network, for any thread to call.

    Args:
        data: what `pack` returned; B is that of `convert`.
        num_streams: batches at a time, a share of torch's threads each.
        precision: fp32 or bf16; int8 for a network that was quantised.

    Raises:
        ConfigError: OpenVINO is not installed.
        BadZipFile: the bytes are damaged.
    """
    require("openvino")
    import openvino

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        xml, weights = (archive.read(name) for name in _NAMES)
    core = openvino.Core()
    compiled: Any = core.compile_model(
        core.read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8))),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": num_streams * torch.get_num_threads(),
            # Decoders share these cores: a thread must be free to move out of their way.
            "ENABLE_CPU_PINNING": False,
        },
    )
    return Compiled(compiled)


def convert_once(network: nn.Module, x_BCHW: Tensor, key: str) -> bytes:
    """Convert and pack, or take what an earlier start of this user left in its cache.

    Args:
        network: as for `convert`.
        x_BCHW: as for `convert`.
        key: of the network's weights and of all else that makes it; "" is never cached.
    """
    require("openvino")
    import openvino

    batch_size, _, height_px, width_px = x_BCHW.shape
    shape = f"{batch_size}x{width_px}" + (f"x{height_px}" if height_px != width_px else "")
    shape += "-float" if x_BCHW.is_floating_point() else ""
    versions = f"{openvino.__version__}-{torch.__version__}"
    name = f"{key}-{shape}-{versions}.zip"
    cached = cache_folder() / "openvino" / name
    if key and (data := _read_cache(cached)):
        return data
    data = pack(convert(network, x_BCHW))
    if key:
        _write_cache(cached, data)
    return data


def _read_cache(path: Path) -> bytes:
    """Return what is cached there, or nothing if it is damaged or absent."""
    try:
        data = path.read_bytes()
        is_whole = zipfile.ZipFile(io.BytesIO(data)).testzip() is None
        path.touch()  # the oldest are thrown away
    except (OSError, zipfile.BadZipFile):
        return b""
    return data if is_whole else b""


def _write_cache(path: Path, data: bytes) -> None:
    """Keep a network, and the newest of the others."""
    write_cache(path, data)
    with suppress(OSError):  # another process throws away, too
        newest_first = sorted(path.parent.glob("*.zip"), key=lambda one: -one.stat().st_mtime)
        for old in newest_first[_MAX_CACHED:]:
            old.unlink(missing_ok=True)
