"""Resize, crop, normalise: against torchvision, and against the whole resized image."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from imgcls.image.fit.placement import place
from imgcls.image.preprocess import normalize, preprocess
from imgcls.image.spec import PreprocessSpec


def picture(width: int, height: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(width * height)
    coarse = rng.integers(0, 256, (9, 9, channels), dtype=np.uint8)
    planes = [
        np.asarray(
            Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC)
        )
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (256, 256), (300, 1000), (100, 80), (224, 224)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_torchvisions_resize_and_centre_crop(width: int, height: int, channels: int) -> None:
    image_HWC = picture(width, height, channels)
    spec = PreprocessSpec.for_image_px(224, mean=(0.5,) * channels, std=(0.5,) * channels)
    found = preprocess(image_HWC, spec)
    assert found.shape == (channels, 224, 224)
    assert found.flags.c_contiguous
    x = torch.from_numpy(image_HWC.transpose(2, 0, 1).copy())
    expected = v2.functional.center_crop(v2.functional.resize(x, [256], antialias=True), [224])
    difference = np.abs(found.astype(int) - expected.numpy())
    assert difference.max() <= 1


def test_crop_sees_its_neighbours_beyond_the_box() -> None:
    image_HWC = picture(700, 500)
    spec = PreprocessSpec(64, 64, resize_px=100)
    whole = Image.fromarray(image_HWC).resize((140, 100), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[18:82, 38:102].transpose(2, 0, 1).astype(int)
    assert np.abs(preprocess(image_HWC, spec).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (3, 2), (2, 70000)])
def test_any_shape_gives_a_crop(width: int, height: int) -> None:
    image_HWC = np.full((height, width, 3), 77, np.uint8)
    found = preprocess(image_HWC, PreprocessSpec.for_image_px(224))
    assert (found == 77).all()


@pytest.mark.parametrize("image_px", [56, 90])
def test_box_that_rounding_puts_beyond_the_image_is_cut_off(image_px: int) -> None:
    spec, num_beyond = PreprocessSpec.for_image_px(image_px), 0
    for width, height in [(29, 30), *((w, 3 * w // 2) for w in range(1, 600))]:
        _, _, right, bottom = place(width, height, spec).box
        num_beyond += right > width or bottom > height
        crop_CHW = preprocess(np.full((height, width, 3), 255, np.uint8), spec)
        assert crop_CHW.shape == (3, image_px, image_px)
        assert crop_CHW.min() == 255
    assert num_beyond > 0


def test_box_is_centred_and_inside() -> None:
    left, top, right, bottom = place(640, 480, PreprocessSpec.for_image_px(224)).box
    assert left == pytest.approx(640 - right, abs=2.5)
    assert top == pytest.approx(480 - bottom)
    assert (bottom - top) == pytest.approx(224 / 256 * 480)


def test_normalize_is_the_formula_in_any_memory_format() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8))
    spec = PreprocessSpec.for_image_px(8)
    expected = (x.numpy() / 255.0 - np.array(spec.mean)[:, None, None]) / np.array(spec.std)[
        :, None, None
    ]
    found = normalize(x, spec)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(normalize(last, spec), found)
    assert normalize(last, spec).is_contiguous(memory_format=torch.channels_last)


def test_normalize_leaves_pixels_of_depth_16_as_they_are() -> None:
    x = torch.rand((2, 3, 8, 8)) * 255
    before, spec = x.clone(), PreprocessSpec.for_image_px(8)
    rounded = x.round()
    assert torch.equal(normalize(rounded, spec), normalize(rounded.to(torch.uint8), spec))
    normalize(x, spec)
    assert torch.equal(x, before)
