"""An ONNX file: what it says of itself, and ONNX Runtime as the reference.

In: a file, what flags say where the file is silent. Out: Foreign. Invariants: the file is parsed in
a child without rights before anything else reads it; data outside of it lies in its own folder, and
no link leads elsewhere. Layout, logits or probabilities and the size of batches are read from the
file; range, mean and the rest of the preprocessing it cannot say.
"""

import ast
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import torch

from imgcls.errors import BundleError, ConfigError
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.importing.foreign import Foreign, Run, with_version
from imgcls.model.importing.onnx_child import read_frame, write_frame
from imgcls.model.networks import onnx_network
from imgcls.storage.json_text import parse_json, parse_object

Layout = Literal["auto", "NCHW", "NHWC"]
Outputs = Literal["auto", "logits", "probabilities", "sigmoids"]

_MAX_S: Final = 600
_OF_TAIL: Final[dict[str, Outputs]] = {
    "softmax": "probabilities", "log_softmax": "logits", "sigmoid": "sigmoids", "": "logits",
}  # fmt: skip
_NAMES_AT: Final = ("imgcls.class_names", "class_names", "names", "labels", "classes", "character")
_TYPES: Final = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "UINT8": np.uint8,
    "DOUBLE": np.float64,
}


@dataclass(frozen=True)
class OnnxFacts:
    """What the child found, and the network as a bundle keeps it."""

    facts: dict[str, Any]
    network: bytes
    files: tuple[Path, ...]

    @property
    def input_type(self) -> str:
        """FLOAT, UINT8 ..."""
        return str(self.facts["input"]["type"])

    @property
    def metadata(self) -> dict[str, str]:
        """What its maker wrote into it."""
        return dict(self.facts["metadata"])

    def layout(self, asked: Layout) -> tuple[Literal["NCHW", "NHWC"], tuple[int, int, int]]:
        """Return the layout, and channels, height and width (0 where the file leaves them open).

        Raises:
            ConfigError: neither the file nor the flag says it, or they contradict each other.
        """
        shape = self.facts["input"]["shape"]
        if len(shape) != 4:
            raise ConfigError(f"its input has the shape {shape}, an image's has four sides")
        fits = {"NCHW": shape[1] in (1, 3), "NHWC": shape[3] in (1, 3)}
        if asked == "auto":
            if fits["NCHW"] == fits["NHWC"]:
                raise ConfigError(
                    f"its input {shape} does not say where the channels are: --layout NCHW or NHWC"
                )
            asked = "NCHW" if fits["NCHW"] else "NHWC"
        sides = (
            (shape[1], shape[2], shape[3]) if asked == "NCHW" else (shape[3], shape[1], shape[2])
        )
        if sides[0] not in (0, 1, 3):
            raise ConfigError(f"--layout {asked}: its input {shape} has {sides[0]} channels then")
        return asked, (sides[0] or 3, sides[1], sides[2])

    def class_names(self) -> tuple[str, ...]:
        """Return the names that the file itself holds, none if it holds none."""
        for key in _NAMES_AT:
            if self.metadata.get(key):
                return _parse_names(self.metadata[key])
        return ()

    def _stored(self, name: str) -> dict[str, Any]:
        return parse_object(self.metadata[name], name, BundleError)

    def own_specs(self) -> tuple[DecodeSpec, PreprocessSpec] | None:
        """Return the specs of a network that imgcls exported, which takes plain pixels."""
        if "imgcls.preprocess_spec" not in self.metadata:
            return None
        try:
            decode = DecodeSpec.from_dict(self._stored("imgcls.decode_spec"))
            spec = PreprocessSpec.from_dict(self._stored("imgcls.preprocess_spec"))
        except (KeyError, ValueError, BundleError) as error:
            raise ConfigError(f"its metadata of imgcls is damaged: {error}") from error
        plain = replace(spec, input_range=(0.0, 255.0), mean=(0.0,), std=(1.0,))
        return replace(decode, dct_scaling=False), plain


def read_facts(path: Path, output_name: str) -> OnnxFacts:
    """Take a file apart in a child.

    Raises:
        ConfigError: the extra is not installed, the file is refused, or its data lies elsewhere.
    """
    if missing := [one for one in ("onnx", "onnxruntime", "openvino") if find_spec(one) is None]:
        raise ConfigError(
            f"an ONNX file needs {', '.join(missing)}: pip install '{onnx_network.EXTRA}'"
        )
    child = subprocess.Popen(
        [sys.executable, "-m", "imgcls.model.importing.onnx_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None, "a pipe was asked for"
    assert child.stdout is not None, "a pipe was asked for"
    timer = threading.Timer(_MAX_S, child.kill)
    timer.start()
    files = [path]
    try:
        write_frame(child.stdin, path.read_bytes())
        write_frame(child.stdin, output_name.encode())
        facts = _facts_from(child.stdout)
        for location in facts.get("outside", ()):
            files.append(_inside(path, location))
            write_frame(child.stdin, files[-1].read_bytes())
        if "outside" in facts:
            facts = _facts_from(child.stdout)
        network = read_frame(child.stdout)
    except (BrokenPipeError, ValueError, BundleError):
        facts, network = {}, b""
    finally:
        timer.cancel()
        child.kill()
        child.communicate()
    if "refused" in facts:
        raise ConfigError(f"{path}: {facts['refused']}")
    if not network:
        raise ConfigError(
            f"{path}: the process that took it apart ended: it needs more memory or time than a "
            "network may, or is damaged"
        )
    return OnnxFacts(facts, network, tuple(files))


def to_foreign(
    found: OnnxFacts,
    spec: PreprocessSpec,
    *,
    layout: Literal["NCHW", "NHWC"],
    is_bgr: bool,
    outputs: Outputs,
    class_names: Sequence[str],
    is_backbone: bool,
    preprocessing: str,
) -> Foreign:
    """Put together what the file and the flags say.

    Raises:
        ConfigError: ONNX Runtime does not run it, or it gives something else than was said.
    """
    path, facts = found.files[0], found.facts
    tail = str(facts["output"]["tail"])
    said = _OF_TAIL[tail] if outputs == "auto" else outputs
    if tail and outputs not in ("auto", _OF_TAIL[tail]):
        raise ConfigError(
            f"--outputs {outputs}: the network itself ends with {tail}, so it gives "
            f"{_OF_TAIL[tail]}"
        )
    options: dict[str, Any] = {
        "layout": layout,
        "bgr": is_bgr,
        "batch_size": int(facts["input"]["shape"][0]),
        "has_embedding": bool(facts["has_embedding"]),
        # The logits are taken before a softmax or sigmoid of the network's own.
        "outputs": "logits" if tail else said,
    }
    network = onnx_network.OnnxNetwork(found.network, options)
    options["gmacs"] = network.count_gmacs(spec.shape_CHW)
    run = _runtime(path, found, options, said)
    with torch.inference_mode():
        example_BK = run(torch.zeros(1, *spec.shape_CHW))
    notes = [
        "Its output is taken as " + said + (f", for the network ends with {tail}." if tail else ".")
    ]
    return Foreign(
        kind="an ONNX file",
        arch=onnx_network.ARCH,
        arch_options=options,
        class_names=tuple(class_names),
        num_outputs=example_BK.shape[1],
        preprocess_spec=spec,
        state_dict={},
        run=run,
        runtime=with_version("onnxruntime"),
        preprocessing=preprocessing,
        multi_label=said == "sigmoids",
        is_backbone=is_backbone,
        attachments={onnx_network.FILE: found.network},
        license=found.metadata.get("license", ""),
        files=found.files,
        nights_need=onnx_network.EXTRA,
        notes=tuple(notes),
    )


def _runtime(path: Path, found: OnnxFacts, options: dict[str, Any], said: Outputs) -> Run:
    """Return the original file, run by ONNX Runtime: normalised [B,C,H,W] -> logits [B,K]."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: ONNX Runtime does not load it: {reason}") from error
    kind = _TYPES.get(found.input_type)
    if kind is None:
        raise ConfigError(f"{path}: its input is of type {found.input_type}, which no image is")
    name, output = found.facts["input"]["name"], found.facts["output"]["name"]
    log_softmax = found.facts["output"]["tail"] == "log_softmax"
    fixed = int(options["batch_size"])

    def run(x_BCHW: torch.Tensor) -> torch.Tensor:
        if options["bgr"]:
            x_BCHW = x_BCHW.flip(1)
        array = x_BCHW.numpy().astype(kind)
        if options["layout"] == "NHWC":
            array = array.transpose(0, 2, 3, 1)
        size = fixed or len(array)
        parts = []
        for start in range(0, len(array), size):
            part = array[start : start + size]
            short = size - len(part)
            filled = np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
            [given] = session.run([output], {name: np.ascontiguousarray(filled)})
            parts.append(np.asarray(given, np.float32).reshape(size, -1)[: len(part)])
        given_BK = torch.from_numpy(np.concatenate(parts))
        if said == "probabilities" and not log_softmax:
            return given_BK.log()
        return given_BK.logit() if said == "sigmoids" else given_BK

    return run


def _inside(path: Path, location: str) -> Path:
    """Return a file of external data, in the folder of the ONNX file."""
    folder = path.parent.resolve()
    place = Path(location)
    is_plain = not place.is_absolute() and ".." not in place.parts
    found = folder / place
    if not is_plain or not found.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{path} keeps its weights at {location!r}, outside of its folder: put them beside it"
        )
    if any(
        one.is_symlink()
        for one in (found, *found.parents)
        if one != folder and folder in one.parents
    ):
        raise ConfigError(f"{path} keeps its weights at {location!r}, which is a link: copy them")
    if not found.is_file():
        raise ConfigError(f"{path} keeps its weights at {location!r}, which is not there")
    return found


def _parse_names_as_json(text: str) -> Any:  # noqa: ANN401  (a JSON value)
    return parse_json(text, "the names", BundleError)


def _facts_from(stdout: IO[bytes]) -> dict[str, Any]:
    return parse_object(read_frame(stdout) or b"{}", "what the child found", BundleError)


def _parse_names(text: str) -> tuple[str, ...]:
    for parse in (_parse_names_as_json, ast.literal_eval):
        try:
            named = parse(text)
        except (ValueError, SyntaxError, RecursionError, BundleError):
            continue
        if isinstance(named, dict):
            return tuple(str(named[key]) for key in sorted(named, key=lambda key: int(key)))
        if isinstance(named, list | tuple):
            return tuple(map(str, named))
    separator = "\n" if "\n" in text.strip() else ","
    return tuple(name.strip() for name in text.strip().split(separator))
