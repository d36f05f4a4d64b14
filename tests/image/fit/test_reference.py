"""Preprocessing equals that of torchvision, timm, transformers, OpenCV and scikit-image.

On 100 photographs each, from the same decoded pixels to the model's input, in steps of 1/255 of the
input's range. A step of 1 is allowed: a half rounded the other way.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import resize as skimage_resize
from timm.data import create_transform
from torchvision import models
from torchvision.transforms import v2
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from imgcls.image.preprocess import normalize, preprocess
from imgcls.image.spec import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from tests.image.fit.photographs import photographs

NUM_PHOTOS = 100
ALLOWED = 1.0 + 1e-3  # of 255; the rest is float32
Reference = Callable[[np.ndarray], torch.Tensor]

HALF: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
XRAY = PreprocessSpec(
    224,
    224,
    fit="crop",
    resize="exact",
    filter="gaussian",
    crop_place="center_halves",
    input_range=(-1024.0, 1024.0),
    mean=(0.0,),
    std=(1.0,),
    channels=1,
)


def by_pillow(transform: Any) -> Reference:
    return lambda image_HWC: transform(Image.fromarray(image_HWC))


def by_tensor(transform: Any) -> Reference:
    return lambda image_HWC: transform(torch.from_numpy(image_HWC.transpose(2, 0, 1).copy()))


def by_processor(processor: Any) -> Reference:
    return lambda image_HWC: processor(Image.fromarray(image_HWC), return_tensors="pt")[
        "pixel_values"
    ][0]


def by_timm(size: tuple[int, int], mode: str, fraction: float, name: str) -> Reference:
    transform = create_transform(
        (3, *size), interpolation=name, crop_mode=mode, crop_pct=fraction, is_training=False
    )
    return by_pillow(transform)


def by_torchxrayvision(image_HWC: np.ndarray) -> torch.Tensor:
    """xrv.utils.normalize, XRayCenterCrop, XRayResizer(224), line by line (its datasets.py)."""
    x_HW = (2 * (image_HWC[:, :, 0].astype(np.float32) / 255) - 1.0) * 1024
    height, width = x_HW.shape
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    x_HW = x_HW[top : top + side, left : left + side]
    return torch.from_numpy(
        skimage_resize(x_HW[None], (1, 224, 224), mode="constant", preserve_range=True)
    )


def by_opencv(image_HWC: np.ndarray) -> torch.Tensor:
    resized = cv2.resize(image_HWC, (400, 120), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(resized.transpose(2, 0, 1) / 255.0)


def cut(resize_px: int, **values: Any) -> PreprocessSpec:
    return PreprocessSpec(224, 224, resize_px=resize_px, **values)


def squeezed(height: int, width: int, **values: Any) -> PreprocessSpec:
    return PreprocessSpec(height, width, fit="stretch", resize="exact", **values)


PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
CUBIC: dict[str, Any] = {"filter": "bicubic"}
TORCH: dict[str, Any] = {"filter": "bicubic", "arithmetic": "torch"}
RESNET = models.ResNet18_Weights.DEFAULT.transforms()
FLOAT = [v2.ToDtype(torch.float32, scale=True)]
CASES: dict[str, tuple[PreprocessSpec, Reference]] = {
    "torchvision resnet18, a file": (cut(256), by_pillow(RESNET)),
    "torchvision resnet18, a tensor": (cut(256), by_tensor(RESNET)),
    "torchvision resnet50 V2": (cut(232), by_pillow(models.ResNet50_Weights.DEFAULT.transforms())),
    "torchvision efficientnet, bicubic": (
        cut(256, **CUBIC),
        by_pillow(models.EfficientNet_B0_Weights.DEFAULT.transforms()),
    ),
    "torchvision without antialias": (
        squeezed(120, 300, antialias=False, arithmetic="torch", **PLAIN),
        by_tensor(v2.Compose([v2.Resize([120, 300], antialias=False), *FLOAT])),
    ),
    "timm center": (cut(256, **CUBIC), by_timm((224, 224), "center", 0.875, "bicubic")),
    "timm center, bilinear": (cut(235), by_timm((224, 224), "center", 0.95, "bilinear")),
    "timm center, not a square": (
        PreprocessSpec(192, 320, crop_fraction=0.95, **CUBIC),
        by_timm((192, 320), "center", 0.95, "bicubic"),
    ),
    "timm squash": (
        squeezed(224, 224, crop_fraction=0.9, **CUBIC),
        by_timm((224, 224), "squash", 0.9, "bicubic"),
    ),
    "timm border": (
        PreprocessSpec(
            224,
            224,
            fit="pad",
            resize="longest",
            pad_color=tuple(round(255 * mean) for mean in IMAGENET_MEAN),
            **CUBIC,
        ),
        by_timm((224, 224), "border", 1.0, "bicubic"),
    ),
    "timm lanczos": (
        cut(248, filter="lanczos"),
        by_timm((224, 224), "center", 0.9, "lanczos"),
    ),
    "transformers ViT": (squeezed(224, 224, **HALF), by_processor(ViTImageProcessor())),
    "transformers SigLIP": (
        squeezed(224, 224, **TORCH, **HALF),
        by_processor(SiglipImageProcessor()),
    ),
    "transformers CLIP": (
        cut(224, crop_place="center_floor", **TORCH, **CLIP),
        by_processor(CLIPImageProcessor()),
    ),
    "transformers DINOv2": (
        cut(256, crop_place="center_floor", **TORCH),
        by_processor(
            BitImageProcessor(
                size={"shortest_edge": 256}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
            )
        ),
    ),
    "transformers ConvNeXT": (
        cut(256, crop_place="center_floor", **TORCH, **HALF),
        by_processor(ConvNextImageProcessor(size={"shortest_edge": 224})),
    ),
    "transformers, a cut larger than the picture": (
        cut(200, crop_place="center_floor", pad_color=(0,), **TORCH, **CLIP),
        by_processor(CLIPImageProcessor(size={"shortest_edge": 200})),
    ),
    "torchxrayvision": (XRAY, by_torchxrayvision),
    "opencv area": (squeezed(120, 400, filter="area", **PLAIN), by_opencv),
}


def differences(spec: PreprocessSpec, reference: Reference) -> Iterator[float]:
    """Yield the largest difference of each photograph, in steps of 1/255 of the input's range."""
    low, high = spec.input_range
    step_C11 = torch.tensor([(high - low) / 255 / std for std in spec.std])[:, None, None]
    for image_HWC in photographs(NUM_PHOTOS):
        image_HWC = image_HWC if spec.channels == 3 else image_HWC[:, :, :1]
        x_BCHW = torch.from_numpy(preprocess(image_HWC, spec))[None]
        found_CHW = normalize(x_BCHW, spec)[0]
        yield float(((found_CHW - reference(image_HWC)) / step_C11).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_input_equals_the_librarys(name: str, record_property: Callable[[str, Any], None]) -> None:
    spec, reference = CASES[name]
    largest = max(differences(spec, reference))
    record_property("largest difference of 255", round(largest, 3))
    assert largest <= ALLOWED


@pytest.mark.parametrize("name", ["torchvision resnet18, a file", "timm center, bilinear"])
def test_exact_pillow_is_pillow_to_the_bit(name: str) -> None:
    spec, reference = CASES[name]
    exact = dataclasses.replace(spec, arithmetic="pillow_exact")
    assert max(differences(exact, reference)) < 1e-3  # of float32, after mean and std
    assert max(differences(spec, reference)) > 0.9


UNCHANGED: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    **{
        f"pillow {name}": (
            {"filter": name},
            lambda x, name=name: np.asarray(
                Image.fromarray(x).resize((224, 224), Image.Resampling[name.upper()])
            ),
        )
        for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
    },
    **{
        f"torch {name}, antialias {antialias}": (
            {"filter": name, "antialias": antialias, "arithmetic": "torch"},
            lambda x, name=name, antialias=antialias: (
                torch.nn.functional.interpolate(
                    torch.from_numpy(x.transpose(2, 0, 1).copy())[None],
                    (224, 224),
                    mode=name,
                    antialias=antialias,
                )[0]
                .permute(1, 2, 0)
                .numpy()
            ),
        )
        for name in ("bilinear", "bicubic")
        for antialias in (True, False)
    },
    "opencv area": (
        {"filter": "area"},
        lambda x: cv2.resize(x, (224, 224), interpolation=cv2.INTER_AREA),
    ),
    "skimage gaussian": (
        {"filter": "gaussian"},
        lambda x: np.round(skimage_resize(x, (224, 224, 3), preserve_range=True)).astype(np.uint8),
    ),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_picture_of_the_inputs_size_is_the_input_as_in_every_library(name: str) -> None:
    values, resize = UNCHANGED[name]
    image_HWC = np.random.default_rng(3).integers(0, 256, (224, 224, 3), np.uint8)
    assert np.array_equal(resize(image_HWC), image_HWC)
    x_CHW = preprocess(image_HWC, PreprocessSpec(224, 224, fit="pad", resize="longest", **values))
    assert np.array_equal(x_CHW, image_HWC.transpose(2, 0, 1))
    grey_HWC = np.ascontiguousarray(image_HWC[:, :, :1])
    spec = PreprocessSpec(
        224, 224, fit="pad", resize="longest", channels=1, mean=(0.5,), std=(0.5,), **values
    )
    assert not np.shares_memory(preprocess(grey_HWC, spec), grey_HWC)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("timm center", {"resize_px": 248}),
        ("timm center", {"filter": "bilinear"}),
        ("timm center", {"mean": (0.485, 0.456, 0.420)}),
        ("timm center", {"std": (0.229, 0.224, 0.220)}),
        ("timm border", {"pad_color": (124, 116, 120)}),
        ("timm squash", {"crop_fraction": 0.95}),
        ("torchvision resnet18, a file", {"resize_px": 257}),
        ("torchvision resnet18, a file", {"filter": "bicubic"}),
        ("torchvision without antialias", {"antialias": True}),
        ("transformers CLIP", {"crop_place": "center"}),
        ("transformers CLIP", {"filter": "bilinear"}),
        ("transformers SigLIP", {"mean": IMAGENET_MEAN}),
        ("torchxrayvision", {"filter": "area"}),
        ("torchxrayvision", {"crop_place": "center_floor"}),
        ("torchxrayvision", {"input_range": (-1024.0, 1050.0)}),
        ("opencv area", {"filter": "box"}),
    ],
    ids=str,
)
def test_what_is_nearly_right_is_found(name: str, wrong: dict[str, Any]) -> None:
    spec, reference = CASES[name]
    assert max(differences(dataclasses.replace(spec, **wrong), reference)) > 2 * ALLOWED
