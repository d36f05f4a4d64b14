import numpy as np
import pytest
import torch

from imgcls.image.fit.view import resize_view
from imgcls.image.preprocess import preprocess
from imgcls.image.spec import PreprocessSpec
from imgcls.training.augment.geometric import (
    NUM_DRAWS,
    PRESETS,
    AugmentRecipe,
    Preset,
    augment,
    build_recipe,
    views_of,
)


def images(num: int, channels: int = 3, side_px: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (num, channels, side_px, side_px), dtype=torch.uint8, generator=generator
    )


def draws(num: int) -> torch.Tensor:
    return torch.rand(num, NUM_DRAWS, generator=torch.Generator().manual_seed(1))


def test_none_returns_the_very_batch() -> None:
    x = images(3)
    assert augment(x, draws(3), PRESETS["none"]) is x


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_keep_shape_and_dtype_and_change_pixels(preset: str, channels: int) -> None:
    x = images(8, channels)
    out = augment(x, draws(8), build_recipe(preset))  # type: ignore[arg-type]  # a name of the parametrisation
    assert out.shape == x.shape
    assert out.dtype == torch.uint8
    assert all(not torch.equal(a, b) for a, b in zip(out, x, strict=True))


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_an_image_does_not_depend_on_its_neighbours(preset: str) -> None:
    x, u = images(8), draws(8)
    recipe = build_recipe(preset)  # type: ignore[arg-type]  # a name of the parametrisation
    together = augment(x, u, recipe)
    alone = torch.cat([augment(x[i : i + 1], u[i : i + 1], recipe) for i in range(8)])
    # Another summation order may move a value across a rounding border, no further.
    assert (together.int() - alone.int()).abs().max() <= 1


def test_neutral_draws_leave_the_image_as_it_was() -> None:
    x = images(2)
    neutral = torch.full((2, NUM_DRAWS), 0.5)
    recipe = AugmentRecipe(
        max_rotation_deg=30, max_shift_fraction=0.2, max_brightness=0.5, max_contrast=0.5
    )
    assert (augment(x, neutral, recipe).int() - x.int()).abs().max() <= 1


def test_no_preset_flips() -> None:
    assert all(recipe.flip == "none" for recipe in PRESETS.values())


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", [3]), ("vertical", [2])])
def test_flip_mirrors_about_half_of_the_images(flip: str, axes: list[int]) -> None:
    x, u = images(64), draws(64)
    out = augment(x, u, AugmentRecipe(flip=flip))  # type: ignore[arg-type]  # a name of the parametrisation
    mirrored = [torch.equal(a, b) for a, b in zip(out, x.flip(axes), strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, x, strict=True)]
    assert sum(mirrored) + sum(kept) == 64
    assert 16 < sum(mirrored) < 48


def test_shift_moves_the_picture_by_the_drawn_fraction() -> None:
    x = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    x[0, 0, 10, 10] = 255
    u = torch.full((1, NUM_DRAWS), 0.5)
    u[0, 2] = 1.0  # as far right as the recipe allows
    out = augment(x, u, AugmentRecipe(max_shift_fraction=0.1))
    assert out[0, 0].nonzero().tolist() == [[10, 8]]  # 0.1 of 20 pixels


def test_zoom_in_shows_only_pixels_of_the_image() -> None:
    """A zoomed-in part lies inside the image, wherever the draw puts it: no border is repeated."""
    ramp = torch.arange(32, dtype=torch.uint8).repeat(32, 1)[None, None].repeat(16, 1, 1, 1) * 8
    out = augment(ramp, draws(16), AugmentRecipe(min_zoom=0.5, max_zoom=0.5))
    width = (out[:, 0, 0].float().diff(dim=1) > 0).float().mean()
    assert width > 0.9


def test_erase_blanks_only_the_drawn_share_of_images() -> None:
    x, u = images(256), draws(256)
    out = augment(x, u, AugmentRecipe(erase_probability=0.25, max_erase_fraction=0.5))
    changed = (out != x).flatten(1).any(dim=1).float().mean()
    assert 0.12 < changed < 0.33


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
@pytest.mark.parametrize("shape", [(48, 48), (32, 80)])
def test_changes_of_a_view_are_those_of_the_whole(preset: Preset, shape: tuple[int, int]) -> None:
    """Of a smooth picture, which has no detail to gain."""
    height, width = shape
    y, x = np.mgrid[0 : 4 * height, 0 : 4 * width]
    image_HW = 120 + 80 * np.sin(x / 4 / 9) * np.cos(y / 4 / 9)
    image_HWC = image_HW[..., None].astype(np.float32)
    spec = PreprocessSpec(
        height, width, fit="stretch", resize="exact", channels=1, mean=(0.0,), std=(1.0,)
    )
    u = draws(12)
    recipe, of_views = (build_recipe(preset, "both", from_source=is_so) for is_so in (False, True))
    whole = torch.from_numpy(preprocess(image_HWC, spec))
    expected = augment(whole[None].repeat(12, 1, 1, 1), u, recipe)
    views = views_of(u, of_views, width / height).tolist()
    seen = torch.stack([torch.from_numpy(resize_view(image_HWC, spec, v)) for v in views])
    found = augment(seen, u, of_views)
    difference = (found - expected).abs()
    assert expected.std() > 20
    assert difference.quantile(0.99) < 6
    assert difference.median() < 1.5
