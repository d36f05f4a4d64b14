"""Change training images at random, a whole batch at once, on its device.

In: [B,C,H,W] and a row of uniform numbers per image. Out: [B,C,H,W] of its type. Invariant: a pure
function. An image's result depends on its pixels, its numbers and the recipe only, not on its
neighbours in the batch, so one worker and eight make the same images of the same sample.

No preset flips: left and right differ in an X-ray, up and down on a part in its fixture. Ask for
flips by name. Shape legend: B batch, C channel, H, W height and width
of the input, N NUM_DRAWS.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn.functional import affine_grid, grid_sample

from imgcls.image.constants import constant

Preset = Literal["none", "light", "standard", "strong"]
Flip = Literal["none", "horizontal", "vertical", "both"]


@dataclass(frozen=True, slots=True)
class AugmentRecipe:
    """How far an image may be changed; each amount is drawn evenly from its range."""

    max_rotation_deg: float = 0.0
    max_shear_deg: float = 0.0
    max_shift_fraction: float = 0.0  # of the side, in each direction
    min_zoom: float = 1.0  # side of the part shown, as a fraction of the image's side
    max_zoom: float = 1.0
    max_stretch: float = 1.0  # ratio of the two sides' zooms, 1 keeps the aspect
    max_brightness: float = 0.0  # 0.1: times 0.9 .. 1.1
    max_contrast: float = 0.0  # likewise, around the image's mean
    max_saturation: float = 0.0  # likewise, around grey; colour images only
    erase_probability: float = 0.0  # of one rectangle, filled with the image's mean
    max_erase_fraction: float = 0.0  # of the side, in each direction
    flip: Flip = "none"
    from_source: bool = False  # images come as the views of `views_of`, not whole


PRESETS: dict[Preset, AugmentRecipe] = {
    "none": AugmentRecipe(),
    # What positioning and exposure do between two pictures of the same thing.
    "light": AugmentRecipe(
        max_rotation_deg=8.0,
        max_shift_fraction=0.05,
        min_zoom=0.92,
        max_zoom=1.08,
        max_brightness=0.1,
        max_contrast=0.1,
    ),
    "standard": AugmentRecipe(
        max_rotation_deg=12.0,
        max_shear_deg=4.0,
        max_shift_fraction=0.05,
        min_zoom=0.7,
        max_zoom=1.1,
        max_stretch=1.15,
        max_brightness=0.2,
        max_contrast=0.2,
        max_saturation=0.2,
        erase_probability=0.1,
        max_erase_fraction=0.3,
    ),
    "strong": AugmentRecipe(
        max_rotation_deg=20.0,
        max_shear_deg=8.0,
        max_shift_fraction=0.1,
        min_zoom=0.4,
        max_zoom=1.2,
        max_stretch=4 / 3,
        max_brightness=0.4,
        max_contrast=0.4,
        max_saturation=0.4,
        erase_probability=0.25,
        max_erase_fraction=0.5,
    ),
}

# Columns of draws_BN.
(_ROTATE, _SHEAR, _SHIFT_X, _SHIFT_Y, _ZOOM, _STRETCH, _FLIP_X, _FLIP_Y) = range(8)
(_BRIGHT, _CONTRAST, _SATURATE, _ERASE, _ERASE_X, _ERASE_Y, _ERASE_W, _ERASE_H) = range(8, 16)
NUM_DRAWS = 16
# Of red, green and blue, by ITU-R BT.601, as torchvision's rgb_to_grayscale has them.
_LUMA = (0.299, 0.587, 0.114)


def build_recipe(
    preset: Preset, flip: Flip = "none", *, from_source: bool = False
) -> AugmentRecipe:
    """Return a preset, with flips if asked for, and of views if they move anything."""
    recipe = replace(PRESETS[preset], flip=flip)
    return replace(recipe, from_source=from_source and _moves(recipe))


def views_of(draws_BN: torch.Tensor, recipe: AugmentRecipe, aspect: float) -> torch.Tensor:
    """Return float32 [B,4]: which part of each input `augment` looks at, as shares of its sides.

    Left, top, right and bottom, see image/fit/view.py; `aspect` is width / height of the input.
    """
    matrix_B23 = _affine(draws_BN, recipe, aspect)
    half_B2, centre_B2 = matrix_B23[:, :, :2].abs().sum(2), matrix_B23[:, :, 2]
    return (torch.cat([centre_B2 - half_B2, centre_B2 + half_B2], 1) + 1) / 2


def augment(x_BCHW: torch.Tensor, draws_BN: torch.Tensor, recipe: AugmentRecipe) -> torch.Tensor:
    """Change each image by its own row of draws.

    Args:
        x_BCHW: uint8 or float32 [B,C,H,W], 0..255.
        draws_BN: float32 [B,NUM_DRAWS] in [0,1), on the same device.
        recipe: how far.

    Returns:
        [B,C,H,W] of the same type, floats not rounded; x_BCHW itself where the recipe changes
        nothing.
    """
    if recipe == AugmentRecipe():
        return x_BCHW
    x = x_BCHW.float()
    if _moves(recipe):
        matrix_B23 = _affine(draws_BN, recipe, x.shape[-1] / x.shape[-2])
        if recipe.from_source:  # x is just what is looked at
            matrix_B23 = matrix_B23 / matrix_B23[:, :, :2].abs().sum(2, keepdim=True)
            matrix_B23[:, :, 2] = 0.0
        grid = affine_grid(matrix_B23, list(x.shape), align_corners=False)
        # Border: what lies outside continues the edge. Black corners would be a feature to learn.
        x = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    x = _recolour(x, draws_BN, recipe)
    if recipe.erase_probability > 0:
        x = _erase(x, draws_BN, recipe)
    x = x.clamp_(0, 255)
    return x if x_BCHW.is_floating_point() else x.round_().to(x_BCHW.dtype)


def _moves(recipe: AugmentRecipe) -> bool:
    shape = (recipe.max_rotation_deg, recipe.max_shear_deg, recipe.max_shift_fraction)
    zoom = (recipe.min_zoom, recipe.max_zoom, recipe.max_stretch)
    return any(shape) or zoom != (1.0, 1.0, 1.0) or recipe.flip != "none"


def _around_zero(draw_B: torch.Tensor, limit: float) -> torch.Tensor:
    return (2.0 * draw_B - 1.0) * limit


def _affine(draws_BN: torch.Tensor, recipe: AugmentRecipe, aspect: float) -> torch.Tensor:
    """Return float32 [B,2,3]: where each output pixel looks, in units of half of either side.

    `aspect` is width / height: turning and shearing keep angles.
    """
    angle = _around_zero(draws_BN[:, _ROTATE], math.radians(recipe.max_rotation_deg))
    shear = torch.tan(_around_zero(draws_BN[:, _SHEAR], math.radians(recipe.max_shear_deg)))
    # Zoom and stretch are ratios: even in their logarithm, so that in and out are equally likely.
    low, high = math.log(recipe.min_zoom), math.log(recipe.max_zoom)
    zoom = torch.exp(low + draws_BN[:, _ZOOM] * (high - low))
    half_stretch = torch.exp(_around_zero(draws_BN[:, _STRETCH], math.log(recipe.max_stretch) / 2))
    zoom_x, zoom_y = zoom * half_stretch, zoom / half_stretch
    sign_x = _sign(draws_BN[:, _FLIP_X], recipe.flip in ("horizontal", "both"))
    sign_y = _sign(draws_BN[:, _FLIP_Y], recipe.flip in ("vertical", "both"))
    # The part shown may lie anywhere in the image, and beyond its edge by the permitted shift.
    shift_x = (2.0 * draws_BN[:, _SHIFT_X] - 1.0) * (
        2.0 * recipe.max_shift_fraction + (1.0 - zoom_x).clamp(min=0.0)
    )
    shift_y = (2.0 * draws_BN[:, _SHIFT_Y] - 1.0) * (
        2.0 * recipe.max_shift_fraction + (1.0 - zoom_y).clamp(min=0.0)
    )
    cos, sin = torch.cos(angle), torch.sin(angle)
    x_of_y = (shear * cos - sin) * zoom_y * sign_y / aspect
    y_of_x = sin * zoom_x * sign_x * aspect
    row_x = torch.stack([cos * zoom_x * sign_x, x_of_y, shift_x], 1)
    row_y = torch.stack([y_of_x, (shear * sin + cos) * zoom_y * sign_y, shift_y], 1)
    return torch.stack([row_x, row_y], 1)


def _sign(draw_B: torch.Tensor, may_flip: bool) -> torch.Tensor:
    return 1.0 - 2.0 * (draw_B < 0.5).float() if may_flip else torch.ones_like(draw_B)


def _recolour(x_BCHW: torch.Tensor, draws_BN: torch.Tensor, recipe: AugmentRecipe) -> torch.Tensor:
    def factor(column: int, limit: float) -> torch.Tensor:
        return (1.0 + _around_zero(draws_BN[:, column], limit))[:, None, None, None]

    if recipe.max_saturation > 0 and x_BCHW.shape[1] == 3:
        luma = constant(_LUMA, x_BCHW)[None, :, None, None]
        grey = (x_BCHW * luma).sum(1, keepdim=True)
        x_BCHW = grey + (x_BCHW - grey) * factor(_SATURATE, recipe.max_saturation)
    if recipe.max_contrast > 0:
        mean = x_BCHW.mean((1, 2, 3), keepdim=True)
        x_BCHW = mean + (x_BCHW - mean) * factor(_CONTRAST, recipe.max_contrast)
    if recipe.max_brightness > 0:
        x_BCHW = x_BCHW * factor(_BRIGHT, recipe.max_brightness)
    return x_BCHW


def _erase(x_BCHW: torch.Tensor, draws_BN: torch.Tensor, recipe: AugmentRecipe) -> torch.Tensor:
    """Fill one rectangle with the image's mean (Zhong et al., Random erasing, AAAI 2020)."""

    def inside(centre: int, size: int, side_px: int) -> torch.Tensor:
        position = torch.arange(side_px, device=x_BCHW.device)[None, :] / side_px
        half_B1 = draws_BN[:, size, None] * recipe.max_erase_fraction / 2
        return (position - draws_BN[:, centre, None]).abs() <= half_B1

    chosen_B = draws_BN[:, _ERASE] < recipe.erase_probability
    height_px, width_px = x_BCHW.shape[-2:]
    rows_BH = inside(_ERASE_Y, _ERASE_H, height_px)
    columns_BW = inside(_ERASE_X, _ERASE_W, width_px)
    hole_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
    hole_BHW &= chosen_B[:, None, None]
    mean = x_BCHW.mean((1, 2, 3), keepdim=True)
    return torch.where(hole_BHW[:, None], mean, x_BCHW)
