"""ONNX from a bundle, for runtimes without torch.

In: a Bundle. Out: the bytes of one ONNX file: uint8 [B,C,P,P] preprocessed pixels -> float32 [B,K]
probabilities. Invariant: normalisation and softmax are inside, so that nobody can forget them; the
golden inputs of the bundle give its golden probabilities.

Decoding, resizing and cropping stay outside: they are the spec that the file's metadata names.
"""

import importlib
import io
import json
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.errors import BundleError, ConfigError
from imgcls.image.preprocess import normalize
from imgcls.image.spec import PreprocessSpec, spec_digest
from imgcls.model.artifact import GOLDEN_TOLERANCE, Bundle

INPUT, OUTPUT = "image", "probs"
OPSET = 18


class _Scorer(nn.Module):
    """Pixels in, probabilities out."""

    def __init__(self, model: nn.Module, spec: PreprocessSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, x_BCHW: Tensor) -> Tensor:
        probs_BK: Tensor = self.model(normalize(x_BCHW, self.spec)).softmax(dim=1)
        return probs_BK


def to_onnx(bundle: Bundle) -> bytes:
    """Return the bundle's model as ONNX, with any batch size.

    Raises:
        ConfigError: the packages of the extra `export` are not installed.
        BundleError: the architecture cannot be exported.
    """
    onnx = _optional("onnx")
    _optional("onnxscript")  # torch.onnx needs it, and says so less clearly
    scorer = _Scorer(bundle.to_model(), bundle.preprocess_spec).eval()
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
        "imgcls.model_digest": bundle.digest,
        "imgcls.spec_digest": spec_digest(bundle.decode_spec, bundle.preprocess_spec),
        "imgcls.decode_spec": json.dumps(bundle.decode_spec.to_dict()),
        "imgcls.preprocess_spec": json.dumps(bundle.preprocess_spec.to_dict()),
    }
