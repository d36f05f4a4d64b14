"""Pictures with an object planted in them, and models that learn in seconds to name it."""

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import nn

from imgcls.data.class_names import ClassNames
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.backends.network import Network
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden

CLASSES = ClassNames(("green", "none", "red"))
NONE = 1
_COLORS = {0: (60, 200, 70), 2: (220, 60, 50)}
_BATCH = 24


class Planted(NamedTuple):
    """x_BCHW uint8; the label of each; where its object lies: left, top, right, bottom."""

    x_BCHW: npt.NDArray[np.uint8]
    label_B: npt.NDArray[np.int64]
    boxes: list[tuple[int, int, int, int]]


def draw(
    size_px: tuple[int, int], label: int, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A grey, mottled picture, with a disc in it unless the label says none."""
    width, height = size_px
    grain = rng.normal(120, 28, (max(2, height // 6), max(2, width // 6))).clip(0, 255)
    image = Image.fromarray(grain.astype(np.uint8)).resize(size_px, Image.Resampling.BICUBIC)
    image = image.convert("RGB")
    side = int(min(size_px) * rng.uniform(0.26, 0.34))
    left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
    box = (left, top, left + side, top + side)
    if label != NONE:
        ImageDraw.Draw(image).ellipse(box, fill=_COLORS[label])
    return image, box


def plant(count: int, image_px: int, seed: int, *, labels: tuple[int, ...] = (0, 1, 2)) -> Planted:
    """Square pictures of all labels in turn."""
    rng = np.random.default_rng(seed)
    label_B = np.array([labels[number % len(labels)] for number in range(count)])
    drawn = [draw((image_px, image_px), label, rng) for label in label_B.tolist()]
    x_BCHW = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in drawn])
    return Planted(x_BCHW, label_B, [box for _, box in drawn])


def train_planted(
    arch: str, image_px: int, *, epochs: int, lr: float = 0.004, spec: PreprocessSpec | None = None
) -> Bundle:
    """A bundle that tells the planted objects apart."""
    torch.manual_seed(0)
    model = build_model(arch, len(CLASSES), image_px=image_px)
    spec = spec or PreprocessSpec.for_image_px(image_px)
    network = Network(model, spec, "fp32")
    images = plant(240, image_px, seed=1)
    x_BCHW, label_B = torch.from_numpy(images.x_BCHW), torch.from_numpy(images.label_B)
    optimizer = torch.optim.AdamW(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * len(x_BCHW) // _BATCH)
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(x_BCHW)).split(_BATCH):
            loss = nn.functional.cross_entropy(network(x_BCHW[rows]), label_B[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    _settle(network, x_BCHW)
    model = network.classifier.eval().to(memory_format=torch.contiguous_format)
    golden = x_BCHW[:4]
    return Bundle(
        arch=arch,
        class_names=CLASSES,
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="0" * 64,
        training={"seed": 0, "counts": {}, "versions": {}},
        golden_x_BCHW=golden,
        golden_probs_BK=make_golden(model, golden, spec),
    )


def _settle(network: nn.Module, x_BCHW: torch.Tensor) -> None:
    """Give batch norms the statistics of all pictures, as a long training does."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # of all that it sees from now on
    with torch.no_grad():
        for some_BCHW in x_BCHW.split(2 * _BATCH):
            network.train()(some_BCHW)


def jpeg(image: Image.Image, **options: object) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()
