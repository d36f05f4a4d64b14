"""From a decoded image to the model's input: resize, centre crop, normalise.

In: uint8 [H,W,C]. Out: uint8 [C,P,P] (`preprocess`), then float32 [B,C,P,P] on the model's device
(`normalize`). Invariant: integer arithmetic up to the crop, so the same pixels on every CPU; torch
is not imported.

Legend: H, W height and width of the source, C channels, P side of the model's input, B batch.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from imgcls.image.resample import resample
from imgcls.image.spec import PreprocessSpec

if TYPE_CHECKING:
    import torch


def preprocess(image_HWC: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Resize the short side to `spec.resize_px` (bilinear, antialiased) and crop the centre.

    Only the part that the crop keeps is resampled; a pixel gets the value that it has in the whole
    resized image.

    Args:
        image_HWC: uint8 [H,W,C] 0..255, C 1 or 3.
        spec: the preprocess spec.

    Returns:
        uint8 [C,P,P], C-contiguous.
    """
    height_px, width_px, _ = image_HWC.shape
    crop_HWC = resample(image_HWC, crop_box(width_px, height_px, spec), spec.image_px)
    return np.ascontiguousarray(crop_HWC.transpose(2, 0, 1))


def crop_box(
    width_px: int, height_px: int, spec: PreprocessSpec
) -> tuple[float, float, float, float]:
    """Return the centre crop in coordinates of the source: left, top, right, bottom.

    Sizes and offsets round as torchvision's Resize and CenterCrop do.
    """
    short_px = min(width_px, height_px)
    resized_w = spec.resize_px * width_px // short_px
    resized_h = spec.resize_px * height_px // short_px
    left = round((resized_w - spec.image_px) / 2)
    top = round((resized_h - spec.image_px) / 2)
    scale_x, scale_y = width_px / resized_w, height_px / resized_h
    return (
        left * scale_x,
        top * scale_y,
        (left + spec.image_px) * scale_x,
        (top + spec.image_px) * scale_y,
    )


def normalize(x_BCHW: "torch.Tensor", spec: PreprocessSpec) -> "torch.Tensor":
    """Turn pixels into model input: (x / 255 - mean) / std per channel.

    Args:
        x_BCHW: uint8 [B,C,P,P] on any device, in any memory format.
        spec: the preprocess spec.

    Returns:
        float32 [B,C,P,P] on the same device, in the same memory format.
    """
    from imgcls.image.constants import constant  # brings torch, which decoders do without

    x = x_BCHW.float()
    mean_C11 = constant(spec.mean, x).view(-1, 1, 1)
    std_C11 = constant(spec.std, x).view(-1, 1, 1)
    return x.div_(255).sub_(mean_C11).div_(std_C11)
