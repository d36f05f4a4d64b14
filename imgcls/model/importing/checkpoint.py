"""Somebody's own weights of a known architecture: .safetensors, or .pt with weights only.

In: a file, --arch and the names of the classes. Out: Foreign. Invariant: nothing in the file is
run, and every tensor of the architecture comes from it. No library says how such a model's pictures
were prepared: its owner does.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from imgcls.errors import ConfigError
from imgcls.image.spec import PreprocessSpec
from imgcls.model.architectures import build_model, find_head, library_of
from imgcls.model.importing.foreign import Foreign, with_version
from imgcls.model.pretrained import load_weights, read_weights_file


def read_checkpoint(
    path: Path,
    arch: str,
    spec: PreprocessSpec,
    *,
    class_names: Sequence[str],
    is_backbone: bool,
) -> Foreign:
    """Read a file of weights.

    Args:
        path: .safetensors, .pt, .pth or .bin.
        arch: One of torchvision's names, or `timm:NAME`.
        spec: How pictures are prepared.
        class_names: Of its outputs, in their order.
        is_backbone: Leave the head away, or know that there is none.

    Raises:
        ConfigError: the file or a tensor, and what does not fit.
    """
    found = read_weights_file(str(path))
    num_outputs = 0 if is_backbone else len(class_names)
    size_px = spec.shape_CHW[1:]
    model = build_model(arch, num_outputs, in_channels=spec.channels, image_px=size_px)
    if is_backbone:
        wanted = set(model.state_dict())
        found = {name: tensor for name, tensor in found.items() if name in wanted}
        _load(model, found, path, arch)
    else:
        _refuse_other_classes(model, found, path, num_outputs)
        load_weights(model, arch, str(path), keep_head=True, image_px=size_px)
    model.eval()

    def run(x_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits_BK: torch.Tensor = model(x_BCHW)
        return logits_BK

    with torch.inference_mode():
        width = model(torch.zeros(1, *spec.shape_CHW)).shape[1]
    return Foreign(
        kind="a checkpoint of its owner",
        arch=arch,
        class_names=() if is_backbone else tuple(class_names),
        num_outputs=width,
        preprocess_spec=spec,
        state_dict=dict(model.state_dict()),
        run=run,
        runtime=with_version(library_of(arch)),
        preprocessing="as the flags of the import say",
        is_backbone=is_backbone,
        files=(path,),
    )


def _load(model: torch.nn.Module, found: dict[str, torch.Tensor], path: Path, arch: str) -> None:
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise ConfigError(f"{path} does not fit {arch}: {lines[:300]}") from error


def _refuse_other_classes(
    model: torch.nn.Module, found: dict[str, torch.Tensor], path: Path, num_classes: int
) -> None:
    name = f"{find_head(model)[0]}.weight"
    if name in found and len(found[name]) != num_classes:
        raise ConfigError(
            f"{path} gives {len(found[name])} classes ({name}), --classes names {num_classes}"
        )
