"""From a decoded image to the model's input: resize, cut or pad, normalise.

In: uint8 [H,W,C], or float32 of a decode spec of depth 16. Out: the same type [C,Y,X]
(`preprocess`), then float32 [B,C,Y,X] on the model's device (`normalize`). Invariant: of uint8
integer arithmetic up to the crop, so the same pixels on every CPU; torch is not imported.

Legend: H, W height and width of the source, C channels, Y, X height and width of the model's input,
B batch.
"""

from typing import TYPE_CHECKING

import numpy as np

from imgcls.image.decoded import Pixels
from imgcls.image.fit.filters import Kernel
from imgcls.image.fit.placement import place
from imgcls.image.fit.resample import resample
from imgcls.image.spec import PreprocessSpec

if TYPE_CHECKING:
    import torch


def preprocess(image_HWC: Pixels, spec: PreprocessSpec) -> Pixels:
    """Fit an image into the model's input.

    Only the part that a cut keeps is resampled; a pixel gets the value that it has in the whole
    resized image.

    Args:
        image_HWC: uint8 or float32 [H,W,C] 0..255, C 1 or 3.
        spec: the preprocess spec; not of tiles.

    Returns:
        [C,Y,X] of the same type, C-contiguous.
    """
    height_px, width_px, _ = image_HWC.shape
    where = place(width_px, height_px, spec)
    part_HWC = where.resized(image_HWC, Kernel.of(spec), resample)
    if where.is_whole(spec):
        return part_HWC.transpose(2, 0, 1).copy()
    x_CHW = np.empty(spec.shape_CHW, image_HWC.dtype)
    x_CHW[:] = np.array(spec.pad_color)[:, None, None]
    rows = slice(where.top_px, where.top_px + where.height_px)
    columns = slice(where.left_px, where.left_px + where.width_px)
    x_CHW[:, rows, columns] = part_HWC.transpose(2, 0, 1)
    return x_CHW


def normalize(x_BCHW: "torch.Tensor", spec: PreprocessSpec) -> "torch.Tensor":
    """Turn pixels into model input: (range(x) - mean) / std per channel, where range is linear.

    Args:
        x_BCHW: uint8 or float32 0..255 [B,C,Y,X] on any device, in any memory format; it stays.
        spec: the preprocess spec; 0 and 255 become its `input_range`.

    Returns:
        float32 [B,C,Y,X] on the same device, in the same memory format.
    """
    from imgcls.image.constants import constant  # brings torch, which decoders do without

    # Of float32 `float` is the same memory, which is not ours.
    x = x_BCHW / 255 if x_BCHW.is_floating_point() else x_BCHW.float().div_(255)
    low, high = spec.input_range
    if (low, high) != (0.0, 1.0):
        x = x.mul_(high - low).add_(low)
    mean_C11 = constant(spec.mean, x).view(-1, 1, 1)
    std_C11 = constant(spec.std, x).view(-1, 1, 1)
    return x.sub_(mean_C11).div_(std_C11)
