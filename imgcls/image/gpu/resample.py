"""`imgcls.image.preprocess` in torch, for images that are decoded on a GPU.

In: uint8 [H,W,C] on any device, and a preprocess spec. Out: uint8 [C,Y,X] on that device.
Invariant: every pixel equals that of `preprocess`, bit for bit, whatever the device and the order
in which it sums, and with TF32 or bfloat16 products allowed.

fast_image_resize resamples in two passes, columns and then rows, each a matrix of integer weights
times uint8 pixels, rounded to uint8. Here each is a matrix product of float32 that hold integers.
The weights have up to 15 bits and their sum, 2^precision, up to 21, too many for float32's 24 once
multiplied by a pixel; so they are split into digits of at most 8 bits, whose sums stay exact, see
weights.py. Filters that Pillow computes are not here: the order of its passes is its own.

Legend: H, W height and width of the source, C channels, Y, X height and width of the result, P
either of them, N pixels of a line that the box needs, M lines, D digits of a weight.
"""

from typing import Final

import torch

from imgcls.image.fit.filters import PLAIN, Kernel
from imgcls.image.fit.placement import place
from imgcls.image.fit.resample import Box, inside, weights_of
from imgcls.image.gpu.weights import SideWeights, side_weights
from imgcls.image.spec import PreprocessSpec

_MAX_PIXEL: Final = 255


def can_resample(kernel: Kernel) -> bool:
    """Tell whether a filter is computed here."""
    return kernel.computed_by != "pillow"


def preprocess_on_device(image_HWC: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """Fit an image into the model's input.

    Args:
        image_HWC: uint8 [H,W,C] on any device, in any memory format.
        spec: one whose filter `can_resample`.

    Returns:
        uint8 [C,Y,X] on the same device, C-contiguous.
    """
    height_px, width_px, _ = image_HWC.shape
    where = place(width_px, height_px, spec)
    part_HWC = where.resized(image_HWC, Kernel.of(spec), resample_on_device)
    part_CHW = part_HWC.permute(2, 0, 1)
    if where.is_whole(spec):
        return part_CHW.contiguous()
    color = torch.tensor(spec.pad_color, dtype=torch.uint8, device=part_CHW.device)
    x_CHW = color[:, None, None].expand(spec.shape_CHW).contiguous()
    rows = slice(where.top_px, where.top_px + where.height_px)
    columns = slice(where.left_px, where.left_px + where.width_px)
    x_CHW[:, rows, columns] = part_CHW
    return x_CHW


def resample_on_device(
    image_HWC: torch.Tensor, box: Box, out_width_px: int, out_height_px: int, kernel: Kernel = PLAIN
) -> torch.Tensor:
    """Resample `box` (left, top, right, bottom) to a width and a height.

    Args:
        image_HWC: uint8 [H,W,C] on any device, in any memory format.
        box: in pixels of `image_HWC`, inside it, fractions allowed, at most 32,000 times as large
            as the result.
        out_width_px: width of the result.
        out_height_px: height of it.
        kernel: the filter, one that `can_resample`.

    Returns:
        uint8 [Y,X,C] on the same device.
    """
    if kernel.computed_by == "weights":
        return _by_weights(image_HWC, box, (out_width_px, out_height_px), kernel)
    if not kernel.goes_across_first:
        return _in_two_passes(image_HWC, box, out_width_px, out_height_px, kernel)
    turned = (box[1], box[0], box[3], box[2])
    image_WHC = image_HWC.permute(1, 0, 2)
    x_XYC = _in_two_passes(image_WHC, turned, out_height_px, out_width_px, kernel)
    return x_XYC.permute(1, 0, 2)


def _in_two_passes(
    image_HWC: torch.Tensor, box: Box, width_px: int, height_px: int, kernel: Kernel
) -> torch.Tensor:
    """Go down the columns, then along the rows."""
    in_height_px, in_width_px, num_channels = image_HWC.shape
    left, top, right, bottom = box
    device = image_HWC.device
    of_rows = side_weights(in_height_px, top, bottom, height_px, device, kernel)
    of_columns = side_weights(in_width_px, left, right, width_px, device, kernel)
    part_HWC = image_HWC[_needed(of_rows), _needed(of_columns)]
    part_width_px = part_HWC.shape[1]
    x_YM = _weigh(of_rows, part_HWC.flatten(1))
    x_YWC = x_YM.view(height_px, part_width_px, num_channels)
    x_XM = _weigh(of_columns, x_YWC.permute(1, 2, 0).flatten(1))
    return x_XM.view(width_px, num_channels, height_px).permute(2, 0, 1)


def _needed(weights: SideWeights) -> slice:
    return slice(weights.first, weights.first + weights.digits_DPN.shape[-1])


def _weigh(weights: SideWeights, x_NM: torch.Tensor) -> torch.Tensor:
    """Multiply uint8 [N,M] by the weights: uint8 [P,M], halves rounded up."""
    num_digits, side_px, _ = weights.digits_DPN.shape
    digits = weights.digits_DPN.flatten(0, 1).float()
    sums_DPM = (digits @ x_NM.float()).int().view(num_digits, side_px, -1)
    total_PM = sums_DPM[0]
    for sums_PM in sums_DPM[1:]:
        total_PM = torch.add(sums_PM, total_PM, alpha=1 << weights.digit_bits)
    half = 1 << (weights.precision - 1)
    return ((total_PM + half) >> weights.precision).clamp_(0, _MAX_PIXEL).to(torch.uint8)


def _by_weights(
    image_HWC: torch.Tensor, box: Box, out_size: tuple[int, int], kernel: Kernel
) -> torch.Tensor:
    """Multiply by the weights across, then down, in float64, as on the CPU."""
    height_px, width_px, _ = image_HWC.shape
    size = (width_px, height_px)
    across, down = weights_of(kernel, size, inside(box, *size), out_size)
    across_XW, down_YH = (
        torch.from_numpy(of.weight_PN).to(image_HWC.device) for of in (across, down)
    )
    x_CHW = image_HWC.permute(2, 0, 1).double() - kernel.outside
    x_CHX = x_CHW @ across_XW.T / across.one
    if kernel.rounds_between:
        x_CHX = (x_CHX + 0.5).floor_().clamp_(0, _MAX_PIXEL)
    x_CYX = down_YH @ x_CHX / down.one + kernel.outside
    if kernel.filter == "gaussian":
        x_CYX = x_CYX.clamp_(image_HWC.min(), image_HWC.max())
    return (x_CYX + 0.5).floor_().clamp_(0, _MAX_PIXEL).to(torch.uint8).permute(1, 2, 0)
