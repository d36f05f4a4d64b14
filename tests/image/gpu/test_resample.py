"""Resampling in torch equals the library's, bit for bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from imgcls.image.fit.filters import PLAIN, Kernel
from imgcls.image.fit.placement import place
from imgcls.image.fit.resample import resample
from imgcls.image.gpu.resample import preprocess_on_device, resample_on_device
from imgcls.image.gpu.weights import side_weights
from imgcls.image.preprocess import preprocess
from imgcls.image.spec import PreprocessSpec

Box = tuple[float, float, float, float]
CPU = torch.device("cpu")


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise has every value at every rounding: the worst case."""
    rng = np.random.default_rng((seed, width, height, channels))
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def assert_equal(image_HWC: np.ndarray, box: Box, side_px: int, device: str = "cpu") -> None:
    image_on_device = torch.from_numpy(image_HWC).to(device)
    found = resample_on_device(image_on_device, box, side_px, side_px)
    assert found.dtype == torch.uint8
    assert found.device == image_on_device.device
    expected = resample(image_HWC, box, side_px, side_px)
    np.testing.assert_array_equal(found.cpu().numpy(), expected, err_msg=f"{box} to {side_px}")


def random_cases(count: int, seed: int) -> Iterator[tuple[np.ndarray, Box, int]]:
    """Sizes and sides of all orders; boxes fractional, whole, or all of the image."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        width, height, side_px = (round(2 ** rng.uniform(0, top)) for top in (10, 10, 7.5))
        image_HWC = noise(width, height, int(rng.choice([1, 3])), seed=int(rng.integers(1 << 30)))
        if rng.random() < 0.2:
            image_HWC = np.where(image_HWC < 128, 0, 255).astype(np.uint8)
        ends = []
        for size in (width, height):
            start, end = np.sort(rng.uniform(0, size, 2)).tolist()
            kind = rng.choice(["fractional", "whole", "all"], p=[0.5, 0.2, 0.3])
            if kind == "whole":
                start, end = float(int(start)), float(int(end) + 1)
            if kind == "all" or end - start < 1e-6:
                start, end = 0.0, float(size)
            ends.append((start, end))
        (left, right), (top, bottom) = ends
        yield image_HWC, (left, top, right, bottom), side_px


def test_random_boxes_of_noise_equal_the_library() -> None:
    for image_HWC, box, side_px in random_cases(600, seed=1):
        assert_equal(image_HWC, box, side_px)


@pytest.mark.parametrize("image_px", [32, 56, 64, 90, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_real_specs_equal_the_library(image_px: int, channels: int) -> None:
    spec = PreprocessSpec.for_image_px(image_px, mean=(0.5,) * channels, std=(0.5,) * channels)
    sizes = [(500, 375), (375, 500), (333, 251), (256, 256), (224, 224), (64, 64), (32, 32)]
    sizes += [
        (29, 30),
        (1024, 683),
        (301, 1001),
        (100, 80),
        (8, 8),
        (9, 7),
        (1, 1),
        (1, 50),
        (3, 2),
    ]
    for width, height in sizes:
        image_HWC = noise(width, height, channels)
        assert_equal(image_HWC, place(width, height, spec).box, image_px)


@pytest.mark.parametrize(
    ("width", "height", "box", "side_px"),
    [
        (64, 64, (0, 0, 64, 64), 64),  # a copy
        (80, 90, (7, 11, 71, 75), 64),  # a copy of a part
        (64, 200, (0, 0, 64, 200), 64),  # no horizontal pass
        (200, 64, (0, 0, 200, 64), 64),  # no vertical pass
        (80, 90, (7.5, 11, 71.5, 75), 64),  # equal size, shifted by half a pixel
        (80, 90, (7, 11.25, 71, 75.25), 64),
        (80, 90, (7 + 19661 / 2**16, 11, 71 + 19661 / 2**16, 75), 64),  # weights that end in a half
        (8, 8, (0, 0, 8, 8), 64),
        (8, 8, (3.1, 2.2, 3.4, 2.9), 32),  # less than a pixel
        (1, 1, (0, 0, 1, 1), 5),
        (64, 64, (0, 0, 64, 64), 1),
        (64, 48, (0.1, 0.2, 63.7, 47.9), 63),  # scale about 1
    ],
)
def test_passes_that_copy_shift_or_enlarge_equal_the_library(
    width: int, height: int, box: Box, side_px: int
) -> None:
    for channels in (1, 3):
        assert_equal(noise(width, height, channels), box, side_px)


@pytest.mark.parametrize(
    ("width", "height", "side_px"),
    [
        (3000, 40, 8),
        (40, 3000, 8),
        (3000, 2000, 224),
        (9000, 3, 16),
        (2, 9000, 3),
        (30000, 1, 1),
        (20000, 64, 64),
    ],
)
def test_large_reductions_equal_the_library(width: int, height: int, side_px: int) -> None:
    """Where 255 times the sum of the weights exceeds what float32 holds exactly."""
    for image_HWC in (noise(width, height, 1), np.full((height, width, 1), 255, np.uint8)):
        assert_equal(image_HWC, (0, 0, width, height), side_px)


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_constant_stays_constant(value: int) -> None:
    image_HWC = np.full((411, 613, 3), value, np.uint8)
    for side_px in (7, 64, 224, 500):
        box = (10.3, 0.7, 600.1, 400.9)
        assert_equal(image_HWC, box, side_px)
        assert (
            resample_on_device(torch.from_numpy(image_HWC), box, side_px, side_px) == value
        ).all()


def test_gradients_equal_the_library() -> None:
    across = np.linspace(0, 255, 517).astype(np.uint8)[None, :].repeat(389, axis=0)
    down = np.linspace(255, 0, 389).astype(np.uint8)[:, None].repeat(517, axis=1)
    image_HWC = np.stack([across, down, across ^ down], axis=-1)
    for side_px in (31, 64, 224, 600):
        assert_equal(image_HWC, (0, 0, 517, 389), side_px)
        assert_equal(image_HWC, (33.3, 12.75, 400.2, 379.65), side_px)


KERNELS = [
    PLAIN,
    *(Kernel(name, arithmetic="torch") for name in ("bilinear", "bicubic")),
    *(Kernel(name, antialias=False, arithmetic="torch") for name in ("bilinear", "bicubic")),
    Kernel("area"),
    Kernel("gaussian", outside=127.5),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_filter_equals_that_of_the_cpu(kernel: Kernel) -> None:
    for width, height in ((300, 200), (90, 233), (64, 64)):
        for channels in (1, 3):
            image_HWC = noise(width, height, channels)
            for box in ((0.0, 0.0, float(width), float(height)), (4.0, 7.0, 60.0, 61.0)):
                for out_width, out_height in ((64, 48), (56, 54), (224, 40)):
                    on_device = torch.from_numpy(image_HWC)
                    found = resample_on_device(on_device, box, out_width, out_height, kernel)
                    expected = resample(image_HWC, box, out_width, out_height, kernel)
                    np.testing.assert_array_equal(found.numpy(), expected)


FITS: list[dict[str, Any]] = [
    {},
    {"resize_px": 80},
    {"fit": "stretch", "resize": "exact"},
    {"fit": "pad", "resize": "longest", "pad_color": (1, 2, 3)},
    {"resize": "exact", "filter": "area"},
    {"resize_px": 90, "filter": "bicubic", "arithmetic": "torch"},
    {"resize_px": 40, "crop_place": "top_left"},
]


@pytest.mark.parametrize("fit", FITS, ids=str)
def test_every_fit_equals_that_of_the_cpu(fit: dict[str, Any]) -> None:
    spec = PreprocessSpec(56, 72, **fit)
    for width, height in ((300, 200), (90, 233), (64, 64), (2, 900)):
        image_HWC = noise(width, height)
        found = preprocess_on_device(torch.from_numpy(image_HWC), spec)
        assert found.is_contiguous()
        np.testing.assert_array_equal(found.numpy(), preprocess(image_HWC, spec))


def test_memory_format_of_the_source_does_not_matter() -> None:
    image_HWC = noise(123, 77)
    planar = torch.from_numpy(image_HWC.transpose(2, 0, 1).copy()).permute(1, 2, 0)
    assert not planar.is_contiguous()
    box = (1.5, 2.5, 120.25, 70.0)
    expected = resample_on_device(torch.from_numpy(image_HWC), box, 32, 32)
    assert torch.equal(resample_on_device(planar, box, 32, 32), expected)


@pytest.mark.parametrize("scale", [0.3, 1, 2, 4.1, 9, 33, 129, 260, 2000, 30000])
def test_every_sum_is_exact_in_float32_even_of_bfloat16_products(scale: float) -> None:
    in_px = int(scale * 8) + 1
    digits_DPN = side_weights(in_px, 0.0, scale * 8, 8, CPU, PLAIN).digits_DPN.long()
    assert torch.equal(digits_DPN.bfloat16().long(), digits_DPN)
    assert 255 * int(digits_DPN.sum(-1).max()) < 1 << 24


def test_order_of_the_passes_matters() -> None:
    """Else the tests above would not notice a swap."""
    image_HWC = noise(200, 150)
    box = (3.3, 4.4, 190.1, 140.2)
    left, top, right, bottom = box
    swapped = resample(image_HWC.transpose(1, 0, 2), (top, left, bottom, right), 64, 64)
    assert not np.array_equal(swapped.transpose(1, 0, 2), resample(image_HWC, box, 64, 64))


@pytest.mark.gpu
@pytest.mark.parametrize("matmul_precision", ["highest", "high", "medium"])
def test_cuda_equals_the_library_with_tf32_too(matmul_precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul_precision)
    try:
        for image_HWC, box, side_px in random_cases(300, seed=2):
            assert_equal(image_HWC, box, side_px, "cuda")
    finally:
        torch.set_float32_matmul_precision(before)
