"""Models as other people's tools save them: seeded weights, a head under which many classes win."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import nn

from imgcls.image.png import encode_png
from imgcls.model.importing.pictures import make_pictures

CLASS_NAMES = ("cat", "dog", "owl", "fox", "elk", "bee", "cow", "emu")


def spread_head(model: nn.Module, x_BCHW: torch.Tensor, head: nn.Module) -> None:
    """Scale a head so that several classes win on these inputs: random weights prefer one.

    Labels alone prove nothing where one class always wins.
    """
    model.eval()
    head = [one for one in head.modules() if isinstance(one, nn.Linear | nn.Conv2d)][-1]
    if not head.weight.any():  # as some networks begin: all answers are one
        nn.init.normal_(head.weight, std=0.02)
    with torch.inference_mode():
        logits_BK = model(x_BCHW)
        if not isinstance(logits_BK, torch.Tensor):
            logits_BK = logits_BK.logits
        scale_K = 3.0 / logits_BK.std(dim=0).clamp_min(1e-6)
        middle_K = logits_BK.mean(dim=0)
    with torch.no_grad():
        shape = (-1,) + (1,) * (head.weight.ndim - 1)
        head.weight.mul_(scale_K.view(shape))
        assert head.bias is not None
        head.bias.sub_(middle_K).mul_(scale_K)


def _settle(model: nn.Module, x_BCHW: torch.Tensor) -> None:
    """Give batch norms the statistics of these inputs, as training would.

    With those of a new network a deep one's answers differ by rounding alone.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches, which is this one
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(x_BCHW)


def timm_folder(
    folder: Path, name: str, pictures: Sequence[Image.Image] = (), **given: Any
) -> Path:
    """Save a timm model as a local folder; `given` replaces values of its pretrained_cfg.

    Several classes win on `pictures`, by default on those that an import generates.
    """
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=len(CLASS_NAMES))
    model.pretrained_cfg = dict(model.pretrained_cfg) | given
    data = timm.data.resolve_data_config({}, pretrained_cfg=dict(model.pretrained_cfg))
    transform = timm.data.create_transform(**data, is_training=False)
    x_BCHW = torch.stack([transform(one) for one in pictures or pil_pictures()])
    _settle(model, x_BCHW)
    spread_head(model, x_BCHW, model.get_classifier())
    save_for_hf(
        model,
        str(folder),
        model_config={"label_names": list(CLASS_NAMES)},
        safe_serialization=True,
    )
    return folder


def pil_pictures(number: int = 12) -> list[Image.Image]:
    """Return generated pictures as Pillow decodes them."""
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in make_pictures(3)[:number]]


def write_pictures(folder: Path, pictures: Sequence[Image.Image]) -> list[Path]:
    """Write pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"picture-{number:03d}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        import numpy as np

        path.write_bytes(encode_png(np.asarray(picture)))
    return paths


class SmallNet(nn.Module):
    """A small classifier, to be exported in many ways."""

    def __init__(self, channels: int = 3, classes: int = len(CLASS_NAMES)) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(128, classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x_BCHW))


def onnx_file(
    path: Path,
    model: nn.Module,
    shape: tuple[int, ...] = (2, 3, 64, 64),
    *,
    is_dynamic: bool = True,
    external_data: bool = False,
) -> Path:
    """Export a module, as its owner would."""
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(shape),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if is_dynamic else None,
    )
    assert program is not None
    program.save(str(path), external_data=external_data)
    return path
