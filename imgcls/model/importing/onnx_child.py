"""Take an ONNX file apart in a process of its own, with nothing in reach.

In, by stdin: the file, then what it keeps outside of it. Out, by stdout: what it keeps outside;
then what it says of itself as JSON, and the network as a bundle keeps it, in one file, with logits
as the first output and the embedding as the second. Invariant: bytes of strangers are parsed after
the walls are up: no file, no socket, no program, a bounded amount of memory and time.

Run as `python -m imgcls.model.importing.onnx_child`; a frame is 8 bytes of length, then as many.
"""

import json
import resource
import struct
import sys
from collections.abc import Iterator
from typing import IO, Any, Final

_LENGTH: Final = struct.Struct("<Q")
_MAX_BYTES: Final = 12 << 30
_MAX_CPU_S: Final = 300
_PASSED: Final = ("Identity", "Cast", "Flatten", "Squeeze", "Dropout")
_TAILS: Final = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_STANDARD: Final = ("", "ai.onnx")


def read_frame(stream: IO[bytes]) -> bytes:
    """Return the next frame; empty at the end."""
    head = stream.read(_LENGTH.size)
    return stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Send a frame."""
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def main() -> None:
    """Answer one parent."""
    import onnx
    import onnx.checker
    import onnx.shape_inference

    from imgcls.image.decoders.sandbox import enter_sandbox

    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    enter_sandbox()
    data, wanted_output = read_frame(sys.stdin.buffer), read_frame(sys.stdin.buffer).decode()
    try:
        model = onnx.ModelProto()
        model.ParseFromString(data)
        outside = sorted({_external(tensor)["location"] for tensor in _kept_outside(model)})
        write_frame(sys.stdout.buffer, json.dumps({"outside": outside}).encode())
        files = {name: read_frame(sys.stdin.buffer) for name in outside}
        _bring_in(model, files)
        facts, network = _take_apart(onnx, model, wanted_output)
    except _RefusedError as error:
        facts, network = {"refused": str(error)}, b""
    except Exception as error:  # noqa: BLE001 - hostile bytes raise anything: it is not a network
        reason = " ".join(str(error).split())[:300]
        facts, network = (
            {"refused": f"it cannot be read as ONNX: {type(error).__name__}: {reason}"},
            b"",
        )
    write_frame(sys.stdout.buffer, json.dumps(facts).encode())
    write_frame(sys.stdout.buffer, network)


class _RefusedError(Exception):
    """What imgcls does not import, in words."""


def _take_apart(onnx: Any, model: Any, wanted_output: str) -> tuple[dict[str, Any], bytes]:  # noqa: ANN401
    if not model.graph.node:
        raise _RefusedError("it holds no network")
    _refuse_custom(model)
    onnx.checker.check_model(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: _shape(value)
        for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    }
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise _RefusedError(
            f"it has {len(inputs)} inputs ({names}), a classifier has one: the image"
        )
    output = _choose_output(model, shapes, wanted_output)
    made_by = {name: node for node in model.graph.node for name in node.output}
    tail, logits = _tail(made_by, output)
    embedding = _embedding(made_by, logits, held)
    facts = {
        "input": {
            "name": inputs[0].name,
            "shape": _shape(inputs[0]),
            "type": onnx.TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type),
        },
        "output": {"name": output, "shape": shapes.get(output, []), "tail": tail},
        "has_embedding": bool(embedding),
        "metadata": {prop.key: prop.value for prop in model.metadata_props},
        "opset": max(one.version for one in model.opset_import if one.domain in _STANDARD),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
    }
    outputs = [name for name in (logits, embedding) if name]
    del model.graph.output[:]
    for name in outputs:
        model.graph.output.add().name = name
    known = {v.name: v for v in (*inferred.graph.value_info, *inferred.graph.output)}
    for value in model.graph.output:
        if value.name in known:
            value.CopyFrom(known[value.name])
        else:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return facts, model.SerializeToString(deterministic=True)


def _graphs(graph: Any) -> Iterator[Any]:  # noqa: ANN401  (protobuf)
    """Yield a graph and all within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield attribute.t
                yield from attribute.tensors


def _kept_outside(model: Any) -> Iterator[Any]:  # noqa: ANN401
    return (tensor for tensor in _tensors(model) if tensor.data_location == 1)


def _external(tensor: Any) -> dict[str, str]:  # noqa: ANN401
    found = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in found:
        raise _RefusedError(f"tensor {tensor.name} lies outside of the file, nobody says where")
    return found


def _bring_in(model: Any, files: dict[str, bytes]) -> None:  # noqa: ANN401
    for tensor in _kept_outside(model):
        where = _external(tensor)
        data, start = files[where["location"]], int(where.get("offset", 0))
        length = int(where.get("length", len(data) - start))
        if not 0 <= start <= start + length <= len(data):
            raise _RefusedError(f"tensor {tensor.name} lies beyond the end of {where['location']}")
        tensor.raw_data = data[start : start + length]
        del tensor.external_data[:]
        tensor.data_location = 0


def _refuse_custom(model: Any) -> None:  # noqa: ANN401
    defined = {(function.domain, function.name) for function in model.functions}
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    custom = {
        f"{node.domain}.{node.op_type}"
        for node in nodes
        if node.domain not in _STANDARD and (node.domain, node.op_type) not in defined
    }
    if custom:
        raise _RefusedError(
            f"it has operators that are not of the ONNX standard: {', '.join(sorted(custom)[:6])}; "
            "export it with standard operators only"
        )


def _choose_output(model: Any, shapes: dict[str, list[Any]], wanted: str) -> str:  # noqa: ANN401
    names = [value.name for value in model.graph.output]
    described = ", ".join(f"{name} {shapes.get(name, '?')}" for name in names)
    if wanted and wanted not in names:
        raise _RefusedError(f"it has no output {wanted!r}; it has {described}")
    if not wanted and len(names) != 1:
        raise _RefusedError(
            f"it has {len(names)} outputs ({described}): say which, by --output-name"
        )
    name = wanted or names[0]
    shape = shapes.get(name, [])
    classes = [side for side in shape[2:] if side != 1]
    if shape and (len(shape) < 2 or classes):
        raise _RefusedError(
            f"its output {described} is not one row of classes per picture: boxes, masks and maps "
            "are not classes, and imgcls does not import them"
        )
    return str(name)


def _tail(made_by: dict[str, Any], name: str) -> tuple[str, str]:
    """Return what turns logits into the output ("" for nothing), and the name of the logits."""
    current = name
    while (node := made_by.get(current)) is not None:
        if node.op_type in _TAILS and node.domain in _STANDARD:
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            if node.op_type != "Sigmoid" and axis not in (1, -1):
                break
            return _TAILS[node.op_type], str(node.input[0])
        if node.op_type not in _PASSED:
            break
        current = node.input[0]
    return "", name


def _embedding(made_by: dict[str, Any], logits: str, held: set[str]) -> str:
    """Return the name of what the last layer turns into logits, "" where that is not to be seen."""
    current = logits
    while (node := made_by.get(current)) is not None:
        if node.op_type in ("Gemm", "MatMul"):
            return str(node.input[0]) if _is_constant(made_by, held, node.input[1]) else ""
        if node.op_type in _PASSED:
            current = node.input[0]
        elif node.op_type == "Add":
            varying = [one for one in node.input if not _is_constant(made_by, held, one)]
            if len(varying) != 1:
                return ""
            current = varying[0]
        else:
            return ""
    return ""


def _is_constant(made_by: dict[str, Any], held: set[str], name: str) -> bool:
    while name not in held:
        node = made_by.get(name)
        if node is None:
            return False
        if node.op_type == "Constant":
            return True
        if node.op_type not in ("Cast", "Identity", "Transpose", "DequantizeLinear"):
            return False
        name = node.input[0]
    return True


def _shape(value: Any) -> list[Any]:  # noqa: ANN401
    """Return the sides, 0 for what is known when it runs."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else 0 for dim in dims]


if __name__ == "__main__":
    main()
