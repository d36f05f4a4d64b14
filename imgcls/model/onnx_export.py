"""ONNX from a bundle, for runtimes without torch.

In: a Bundle. Out: the bytes of one ONNX file: preprocessed pixels [B,C,H,W], uint8 or of depth 16
float32, -> float32 [B,K] probabilities. Invariant: normalisation and softmax (multi-label: sigmoid)
are inside, so that nobody can forget them; the golden inputs of the bundle give its golden
probabilities.

Decoding, resizing and cropping stay outside: they are the spec that the file's metadata names.
"""

import hashlib
import importlib
import importlib.util
import io
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.config.models import ExportConfig
from imgcls.errors import BundleError, ConfigError
from imgcls.image.preprocess import normalize
from imgcls.image.spec import spec_digest
from imgcls.model.bundle import GOLDEN_TOLERANCE, Bundle, read_bundle, to_probs
from imgcls.model.bundle_files import refuse_backbone
from imgcls.model.networks import onnx_network
from imgcls.model.registry import resolve
from imgcls.storage.objects import put
from imgcls.storage.uri import is_local, split_uri

INPUT, OUTPUT = "image", "probs"
OPSET = 18

_log = logging.getLogger(__name__)


class _Scorer(nn.Module):
    """Pixels in, probabilities out."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model, self.spec = bundle.to_model(), bundle.preprocess_spec
        self.multi_label = bundle.multi_label

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.model(normalize(x_BCHW, self.spec))
        return to_probs(logits_BK, multi_label=self.multi_label)


def export(config: ExportConfig) -> dict[str, Any]:
    """Run `imgcls export`: write a bundle as ONNX, if it reproduces the golden probabilities.

    Returns:
        JSON-able: model, model_digest, output, size_bytes, sha256, opset; checked, and
        largest_difference from the golden probabilities, null where ONNX Runtime is not installed.

    Raises:
        ConfigError: no such model, or the packages of the extra `export` are not installed.
        BundleError: the architecture cannot be exported, or the export gives other numbers; nothing
            was written.
    """
    split_uri(config.output)
    if config.output.endswith("/") or (is_local(config.output) and Path(config.output).is_dir()):
        raise ConfigError(f"--output {config.output} is a folder: name a file, such as model.onnx")
    bundle = read_bundle(resolve(config.model))
    if bundle.arch == onnx_network.ARCH:
        kept = "; its last layer was fitted here and lies in the bundle's model.safetensors"
        raise ConfigError(
            f"{config.model} came as an ONNX file: take the file that it came from"
            + (kept if "new_head" in bundle.arch_options else "")
        )
    refuse_backbone(bundle.is_backbone, config.model, "export")
    data = to_onnx(bundle)
    difference: float | None = None
    if importlib.util.find_spec("onnxruntime") is not None:
        difference = check_onnx(data, bundle)
        _log.info("ONNX Runtime gives the golden probabilities within %.1g", difference)
    else:
        _log.warning("not checked: ONNX Runtime is not installed; pip install 'imgcls[export]'")
    put(config.output, data)
    return {
        "model": config.model,
        "model_digest": bundle.digest,
        "output": config.output,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "opset": OPSET,
        "checked": difference is not None,
        "largest_difference": difference,
    }


def to_onnx(bundle: Bundle) -> bytes:
    """Return the bundle's model as ONNX, with any batch size.

    Raises:
        ConfigError: the packages of the extra `export` are not installed.
        BundleError: the architecture cannot be exported.
    """
    onnx = _optional("onnx")
    _optional("onnxscript")  # torch.onnx needs it, and says so less clearly
    scorer = _Scorer(bundle).eval()
    # Two images: a batch of one would be taken for a constant.
    example = bundle.golden_x_BCHW[:1].repeat(2, 1, 1, 1)
    try:
        program = torch.onnx.export(
            scorer,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x_BCHW": {0: torch.export.Dim("batch", min=1)}},
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).partition("\n")[0]
        raise BundleError(f"{bundle.arch} cannot be exported to ONNX: {reason}") from error
    assert program is not None, "dynamo=True returns a program"
    model = program.model_proto
    for key, value in _metadata(bundle).items():
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def check_onnx(data: bytes, bundle: Bundle) -> float:
    """Run an export on the bundle's golden inputs with ONNX Runtime, on the CPU.

    Returns:
        The largest difference from the golden probabilities.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        BundleError: the difference is larger than `GOLDEN_TOLERANCE`.
    """
    onnxruntime = _optional("onnxruntime")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    [probs_BK] = session.run([OUTPUT], {INPUT: bundle.golden_x_BCHW.numpy()})
    difference = float((torch.from_numpy(probs_BK) - bundle.golden_probs_BK).abs().max())
    # Written so that a NaN is refused too.
    if not difference <= GOLDEN_TOLERANCE:
        raise BundleError(
            f"the ONNX export does not reproduce the golden probabilities: largest difference "
            f"{difference:.2g}, allowed {GOLDEN_TOLERANCE:g}"
        )
    return difference


def _optional(package: str) -> Any:  # noqa: ANN401  (a module that may not be installed)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"ONNX export needs the package {package}: pip install 'imgcls[export]'"
        ) from error


def _metadata(bundle: Bundle) -> dict[str, str]:
    """Return what a user of the file alone needs to feed it."""
    return {
        "imgcls.arch": bundle.arch,
        "imgcls.class_names": json.dumps(list(bundle.class_names.names)),
        "imgcls.multi_label": json.dumps(bundle.multi_label),
        "imgcls.model_digest": bundle.digest,
        "imgcls.spec_digest": spec_digest(bundle.decode_spec, bundle.preprocess_spec),
        "imgcls.decode_spec": json.dumps(bundle.decode_spec.to_dict()),
        "imgcls.preprocess_spec": json.dumps(bundle.preprocess_spec.to_dict()),
    }
