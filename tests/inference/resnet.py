"""A small ResNet as a bundle, and images for it."""

import numpy as np
import torch
from torch import nn

from imgcls.data.class_names import ClassNames
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden

IMAGE_PX = 64


def make_resnet(sure_by: float = 10.0) -> Bundle:
    """ResNet-18 with batch norms that do something, and a lead of `sure_by` for class 1."""
    torch.manual_seed(3)
    model = build_model("resnet18", 4, image_px=IMAGE_PX).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        assert isinstance(model.fc, nn.Linear)
        model.fc.bias.zero_()[1] = sure_by
    spec = PreprocessSpec.for_image_px(IMAGE_PX)
    x_BCHW = torch.randint(0, 256, (3, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)
    return Bundle(
        arch="resnet18",
        class_names=ClassNames(("a", "b", "c", "d")),
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="",
        training={},
        golden_x_BCHW=x_BCHW,
        golden_probs_BK=make_golden(model, x_BCHW, spec),
    )


def images(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, IMAGE_PX, IMAGE_PX), dtype=np.uint8)
