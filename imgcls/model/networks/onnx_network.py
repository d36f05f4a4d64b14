"""A network that came as an ONNX file, as a module: OpenVINO runs it, on CPUs.

In: the bytes of a bundle's `network.onnx`, as `imgcls import` made them: one float32 input, logits
as the first output, and the embedding as the second where the file has one. Out: a module, float32
[B,C,H,W] -> logits_BK; or OpenVINO's own model of it, for those that run it whole. Invariant: no
other than the layout, the order of channels and the size of batches is changed for the network; a
last layer that was fitted here stands behind it, as a layer of torch.

Shape legend: B batch, C channels, H, W height and width of the input, K classes, E embedding.
"""

import math
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from imgcls.errors import ConfigError
from imgcls.image.spec import PreprocessSpec
from imgcls.model import bundle_files

ARCH: Final = "onnx"
FILE: Final = bundle_files.ONNX
EXTRA: Final = "imgcls[onnx]"


class Head(nn.Module):
    """Stands where the last layer of another network would: the embedding is its input."""

    def forward(self, _embedding_BE: Tensor, logits_BK: Tensor) -> Tensor:
        """Return the logits."""
        return logits_BK


class OnnxNetwork(nn.Module):
    """The network, run in float32 by OpenVINO with the threads that torch has here.

    `why_no_embedding` says why there is none, "" where there is one. `gmacs` are the multiply-adds
    of one image, in 1e9.

    Args:
        data: The ONNX file.
        options: layout (NCHW or NHWC), bgr, batch_size (0: any), has_embedding, gmacs; outputs:
            logits, or what is turned into them: probabilities, sigmoids; and new_head, where a last
            layer was fitted here: output (which of the file's is the embedding), width, classes.
    """

    head_name: Final = "head"

    def __init__(self, data: bytes, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._data, self._options = data, dict(options)
        self._new_head: dict[str, int] = dict(options.get("new_head", {}))
        self.head = (
            nn.Linear(self._new_head["width"], self._new_head["classes"])
            if self._new_head
            else Head()
        )
        self._of_thread = threading.local()
        self.gmacs = float(options.get("gmacs", 0.0))
        self.why_no_embedding = (
            ""
            if self._new_head or options.get("has_embedding")
            else "this ONNX file gives classes and nothing else"
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits float32 [B,K] of normalised images float32 [B,C,H,W], on their device."""
        size = self._options.get("batch_size", 0) or len(x_BCHW)
        passes = [self._run(part_BCHW, size) for part_BCHW in torch.split(x_BCHW, size)]
        logits_BK, embedding_BE = (
            torch.cat(parts).to(x_BCHW.device) for parts in zip(*passes, strict=True)
        )
        found: Tensor = (
            self.head(embedding_BE) if self._new_head else self.head(embedding_BE, logits_BK)
        )
        return found

    def options_with_head(
        self, num_classes: int, shape_CHW: tuple[int, int, int], *, is_backbone: bool
    ) -> dict[str, Any]:
        """Return the options of this network with a new last layer on its embedding.

        Raises:
            ConfigError: it gives none.
        """
        if not is_backbone and self.why_no_embedding:
            raise ConfigError(
                f"{self.why_no_embedding}: its last layer cannot be told from the rest, so no "
                "other can take its place; cut the file before that layer and import it by "
                "--backbone"
            )
        output = self._new_head.get("output", 0 if is_backbone else 1)
        model = self._model(self._options.get("batch_size", 0) or 1, shape_CHW, None)
        width = math.prod(list(model.outputs[output].get_shape())[1:])
        return self._options | {
            "new_head": {"output": output, "width": width, "classes": num_classes}
        }

    def to_openvino(self, batch_size: int, spec: PreprocessSpec) -> Any:  # noqa: ANN401  (openvino.Model, untyped)
        """Return OpenVINO's model, uint8 [B,C,H,W] -> logits [B,K], for batches of this size.

        Raises:
            ConfigError: OpenVINO is not installed.
            RuntimeError: the network takes other batches only, or its answer is not logits.
        """
        model = self._model(batch_size, spec.shape_CHW, spec)
        if self._new_head:
            return self._with_new_head(model)
        if self._options.get("outputs", "logits") != "logits":
            raise RuntimeError("its probabilities are turned into logits outside of OpenVINO")
        return model

    def _with_new_head(self, model: Any) -> Any:  # noqa: ANN401  (openvino.Model)
        openvino = _openvino()
        ops, given = openvino.opset13, model.outputs[self._new_head["output"]]
        assert isinstance(self.head, nn.Linear)
        weight_KE, bias_K = (one.detach().numpy() for one in (self.head.weight, self.head.bias))
        embedding = ops.reshape(
            given.get_node().input_value(0), np.array([0, -1]), special_zero=True
        )
        logits = ops.add(ops.matmul(embedding, weight_KE, False, True), bias_K)
        return openvino.Model([logits], model.get_parameters())

    def count_gmacs(self, shape_CHW: tuple[int, int, int]) -> float:
        """Return the multiply-adds of one image, in 1e9: of convolutions and matrix products."""
        fixed = self._options.get("batch_size", 0) or 1
        total = 0
        for node in self._model(fixed, shape_CHW, None).get_ops():
            kind = node.get_type_name()
            if kind not in ("Convolution", "GroupConvolution", "MatMul"):
                continue
            outputs = math.prod(node.get_output_shape(0))
            weight = list(node.get_input_shape(1))
            # Each output is a sum over one row of the weights.
            if kind == "MatMul":
                row = weight[-1 if node.get_attributes()["transpose_b"] else -2]
            else:
                row = math.prod(weight[1 if kind == "Convolution" else 2 :])
            total += outputs * row
        return total / fixed / 1e9

    def _model(
        self, batch_size: int, shape_CHW: tuple[int, int, int], spec: PreprocessSpec | None
    ) -> Any:  # noqa: ANN401  (openvino.Model)
        """Return the model for float32 that is normalised, or, with a spec, for uint8 pixels."""
        openvino = _openvino()
        fixed = self._options.get("batch_size", 0)
        if fixed and fixed != batch_size:
            raise RuntimeError(f"the network takes batches of {fixed} only, not {batch_size}")
        model = openvino.Core().read_model(self._data, b"")
        num_channels, height, width = shape_CHW
        is_last = self._options.get("layout") == "NHWC"
        own = (height, width, num_channels) if is_last else shape_CHW
        model.reshape({model.inputs[0]: [batch_size, *own]})
        steps = openvino.preprocess.PrePostProcessor(model)
        given = steps.input().tensor().set_layout(openvino.Layout("NCHW"))
        given.set_element_type(openvino.Type.f32 if spec is None else openvino.Type.u8)
        if spec is not None:
            mean, std = _of_pixels(spec)
            steps.input().preprocess().convert_element_type(openvino.Type.f32).mean(mean).scale(std)
        for number in range(len(model.outputs)):
            steps.output(number).tensor().set_element_type(openvino.Type.f32)
        steps.input().model().set_layout(openvino.Layout("NHWC" if is_last else "NCHW"))
        if self._options.get("bgr"):
            steps.input().preprocess().reverse_channels()
        return steps.build()

    def __deepcopy__(self, _memo: dict[int, Any]) -> "OnnxNetwork":
        """Return another of the same bytes: what is compiled is not copied."""
        copied = OnnxNetwork(self._data, self._options)
        copied.load_state_dict(self.state_dict())
        return copied.train(self.training)

    def _run(self, x_BCHW: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Run one pass; the rows that fill it up are dropped."""
        compiled = self.__dict__.setdefault("_compiled", {})
        shape = (size, *x_BCHW.shape[1:])
        if shape not in compiled:
            compiled[shape] = self._compile(shape)
        requests = self._of_thread.__dict__.setdefault("requests", {})
        if shape not in requests:
            requests[shape] = compiled[shape].create_infer_request()
        array_BCHW = x_BCHW.detach().float().cpu().contiguous().numpy()
        if len(array_BCHW) < size:
            array_BCHW = np.concatenate(
                [array_BCHW, np.zeros((size - len(array_BCHW), *shape[1:]), np.float32)]
            )
        outputs = requests[shape].infer([array_BCHW])
        at = self._new_head.get("output", 1 if len(outputs) > 1 else 0)
        logits, embedding = outputs[0], outputs[at]
        num_rows = len(x_BCHW)
        return (
            self._to_logits(torch.from_numpy(logits[:num_rows].copy()).flatten(1)),
            torch.from_numpy(embedding[:num_rows].copy()).flatten(1),
        )

    def _to_logits(self, given_BK: Tensor) -> Tensor:
        outputs = self._options.get("outputs", "logits")
        if outputs == "probabilities":
            return given_BK.log()
        return given_BK.logit() if outputs == "sigmoids" else given_BK

    def _compile(self, shape: tuple[int, ...]) -> Any:  # noqa: ANN401  (openvino.CompiledModel)
        openvino = _openvino()
        model = self._model(shape[0], (shape[1], shape[2], shape[3]), None)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,
        }
        return openvino.Core().compile_model(model, "CPU", settings)


def _of_pixels(spec: PreprocessSpec) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of values 0..255 (see `normalize`)."""
    low, high = spec.input_range
    scale = 255 / (high - low)
    mean = spec.mean * (spec.channels // len(spec.mean))
    std = spec.std * (spec.channels // len(spec.std))
    return [(value - low) * scale for value in mean], [value * scale for value in std]


def _openvino() -> Any:  # noqa: ANN401  (a module without types)
    if find_spec("openvino") is None:
        raise ConfigError(
            f"this model is an ONNX network, which OpenVINO runs: pip install '{EXTRA}'"
        )
    import openvino

    return openvino
