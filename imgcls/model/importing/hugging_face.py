"""A folder of Hugging Face: config.json, preprocessor_config.json, model.safetensors.

In: the folder. Out: Foreign. Invariants: no code of the folder is ever run (`trust_remote_code` is
never set); the class that config.json names builds the network, and the processor that
preprocessor_config.json names is the reference for the pixels. What timm can build, timm builds.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.image.spec import PreprocessSpec
from imgcls.model.importing.foreign import Foreign, Prepare, run_by_torch, with_version
from imgcls.model.importing.preprocessing import processor_spec
from imgcls.model.networks import transformers_archs
from imgcls.model.pretrained import read_folder_config, read_weights_file
from imgcls.storage import objects
from imgcls.storage.json_text import parse_object

_PROCESSOR: Final = "preprocessor_config.json"
_WEIGHTS: Final = "model.safetensors"


def read_folder(folder: Path, *, class_names: Sequence[str], is_backbone: bool) -> Foreign:
    """Read a folder that `save_pretrained` wrote.

    Raises:
        ConfigError: what is missing, not known or does not fit, by name.
    """
    config = read_folder_config(folder)
    _refuse_code(folder, config)
    processor = _read_json(folder / _PROCESSOR)
    spec = processor_spec(processor)
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise ConfigError(
            f"{folder} has no {_WEIGHTS}: imgcls loads no pickles; save the model again with "
            "model.save_pretrained(FOLDER), which writes safetensors"
        )
    names = tuple(class_names) or _names_in(config)
    is_backbone = is_backbone or not _is_classifier(config)
    read_weights_file(str(weights))  # a damaged file is told in our words
    model = transformers_archs.load(folder, config, is_backbone=is_backbone).eval()
    with torch.inference_mode():
        width = model(torch.zeros(1, *spec.shape_CHW)).shape[1]
    kept = transformers_archs.plain_config(config)
    return Foreign(
        kind="a Hugging Face folder",
        arch=transformers_archs.ARCH,
        arch_options={"config": kept},
        class_names=() if is_backbone else names,
        num_outputs=width,
        preprocess_spec=spec,
        state_dict=dict(model.state_dict()),
        run=run_by_torch(model),
        runtime=f"{config['architectures'][0]} of {with_version('transformers')}",
        prepare=_processor(processor, spec),
        preprocessing=f"{processor.get('image_processor_type')} of {with_version('transformers')}",
        is_backbone=is_backbone,
        multi_label=config.get("problem_type") == "multi_label_classification",
        license=_license(folder),
        files=(folder / "config.json", folder / _PROCESSOR, weights),
        nights_need=transformers_archs.EXTRA,
    )


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    if "auto_map" in config or any(folder.glob("*.py")):
        raise ConfigError(
            f"{folder} wants code of its own to be run (auto_map or a .py file), and imgcls never "
            "does that (trust_remote_code): convert the model to ONNX where you trust it"
        )
    if not config.get("architectures"):
        raise ConfigError(f"{folder}/config.json names no architectures")


def _is_classifier(config: Mapping[str, Any]) -> bool:
    return str(config["architectures"][0]).endswith("ForImageClassification")


def _names_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label") or {}
    try:
        return tuple(str(named[key]) for key in sorted(named, key=int))
    except ValueError as error:
        raise ConfigError(
            f"config.json: id2label has keys that are not numbers: {error}"
        ) from error


def _processor(config: Mapping[str, Any], spec: PreprocessSpec) -> Prepare:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    transformers = importlib.import_module("transformers")
    found = getattr(transformers, kind, None)
    if found is None:
        raise ConfigError(
            f"{with_version('transformers')} has no {kind}, which {_PROCESSOR} names: install the "
            "version that wrote the folder"
        )
    processor = found.from_dict(dict(config))

    def prepare(image_HWC: Any) -> torch.Tensor:  # noqa: ANN401  (uint8 [H,W,C])
        from PIL import Image

        batch = processor(Image.fromarray(image_HWC.squeeze()).convert("RGB"), return_tensors="np")
        x_CHW = torch.from_numpy(np.asarray(batch["pixel_values"][0], np.float32))
        assert tuple(x_CHW.shape) == spec.shape_CHW or x_CHW.ndim == 3
        return x_CHW

    return prepare


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_object(objects.read(str(path)), str(path), ConfigError)
    except ObjectMissingError as error:
        raise ConfigError(
            f"{path} is missing: without it nobody knows how pictures are prepared; copy it from "
            "the model's hub"
        ) from error


def _license(folder: Path) -> str:
    card = folder / "README.md"
    lines = card.read_text("utf-8", "replace").splitlines()[:40] if card.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    return found[0] if found else ""
