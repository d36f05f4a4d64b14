"""Colours of more than 8 bits, bit masks and floats."""

import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from imgcls.errors import (
    CorruptImageError,
    ImageTooLargeError,
)
from tests.image.decoding import DEEP_COLORS, encode, pixels
from tests.image.encoders import tiff as tiff_file


def deep_file(kind: str, colors_HWC: np.ndarray[Any, Any]) -> bytes:
    height, width, _ = colors_HWC.shape
    match kind:
        case "png":
            return imagecodecs.png_encode(colors_HWC)
        case "jp2":
            return imagecodecs.jpeg2k_encode(colors_HWC, level=0)
        case "ppm":
            return b"P6\n%d %d\n65535\n" % (width, height) + colors_HWC.astype(">u2").tobytes()
        case "plain ppm":
            numbers = b" ".join(b"%d" % value for value in colors_HWC.ravel())
            return b"P3\n# words\n%d %d\n65535\n" % (width, height) + numbers
    order = ">" if "big" in kind else "<"
    return tiff_file(
        colors_HWC, photometric=2, order=order, is_separate="planes" in kind, is_deflated=True
    )


@pytest.mark.parametrize(
    "kind", ["png", "jp2", "ppm", "plain ppm", "tiff", "tiff big", "tiff planes"]
)
def test_deep_colours_take_the_range_of_the_spec(kind: str) -> None:
    data = deep_file(kind, DEEP_COLORS)
    plain = pixels(data).astype(int)
    assert np.abs(plain - DEEP_COLORS / 65535 * 255).max() <= 1
    found = pixels(data, gray_range="bits", gray_bits=12).astype(int)
    np.testing.assert_array_equal(found, np.rint(DEEP_COLORS / 4095 * 255))
    found = pixels(data, gray_range="min_max").astype(int)  # of all channels together
    np.testing.assert_array_equal(found, np.rint(DEEP_COLORS / 4095 * 255))
    found = pixels(data, gray_range="window", gray_window=(1000.0, 2000.0)).astype(int)
    expected = np.rint(np.clip((DEEP_COLORS - 1000.0) / 1000 * 255, 0, 255))
    np.testing.assert_array_equal(found, expected)
    shallow = (DEEP_COLORS >> 4).astype(np.uint8)
    eight = encode(Image.fromarray(shallow), "PNG")
    np.testing.assert_array_equal(pixels(eight, gray_range="min_max"), shallow)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [3, 4])
def test_white_stays_white_in_a_deep_jpeg_2000(bits: int, channels: int) -> None:
    ramp = np.tile(np.linspace(0, 2**bits - 1, 512).round().astype(np.uint16), (8, 1))
    stored = np.stack([ramp, ramp[:, ::-1], ramp, np.full_like(ramp, 2**bits - 1)][:channels], 2)
    data = imagecodecs.jpeg2k_encode(stored, level=0, bitspersample=bits)
    expected = np.rint(stored[:, :, :3] / (2**bits - 1) * 255)
    assert np.abs(pixels(data).astype(int) - expected).max() <= 1


def test_16_bit_colours_with_one_transparent_colour(make_png: Any) -> None:
    values = np.array([[[0x1234, 7, 9], [0x1235, 7, 9], [0x3412, 0x0707, 0x0909]]], ">u2")
    rows = b"\x00" + values.tobytes()
    data = make_png(3, 1, 16, 2, rows, transparent=struct.pack(">HHH", 0x1234, 7, 9))
    found = pixels(data, alpha_background=(200, 100, 50))
    np.testing.assert_array_equal(found, [[[200, 100, 50], [18, 0, 0], [52, 7, 9]]])


@pytest.mark.parametrize(
    ("coding", "bits"), [("lossy", 12), ("lossless", 12), ("lossless", 16), ("jpeg_ls", 16)]
)
def test_jpegs_of_more_than_8_bits(coding: str, bits: int) -> None:
    stored = (DEEP_COLORS[:, :, 0].astype(np.uint32) * (2**bits - 1) // 4095).astype(np.uint16)
    if coding == "jpeg_ls":
        data = imagecodecs.jpegls_encode(stored)
    elif coding == "lossless":
        data = imagecodecs.jpeg_encode(stored, lossless=True, bitspersample=bits)
    else:
        data = imagecodecs.jpeg_encode(stored, bitspersample=bits, level=100)
    found = pixels(data, color="gray")[:, :, 0].astype(int)
    assert np.abs(found - stored / (2**bits - 1) * 255).max() <= 1
    for cut in (40, len(data) // 2, len(data) - 40):
        with pytest.raises(CorruptImageError):
            pixels(data[:cut])
    with pytest.raises(ImageTooLargeError):
        pixels(data, max_pixels=1999)


MASKS = {
    "444": (16, (0xF00, 0xF0, 0xF)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "565 as bgr": (16, (0x1F, 0x7E0, 0xF800)),
    "233": (16, (0xC000, 0x3800, 0x700)),
    "10 bits": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "5-2-8": (32, (0xF8000000, 0x3000000, 0xFF)),
    "gbr": (32, (0xFF00, 0xFF, 0xFF0000)),
    "8 and alpha": (32, (0xFF, 0xFF0000, 0xFF00, 0xFF000000)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("is_top_down", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_bmp_of_any_bit_masks(name: str, is_top_down: bool, alpha: float) -> None:
    bits, masks = MASKS[name]
    y, x = np.mgrid[0:9, 0:13]
    values = np.stack([x / 12, y / 8, (x + y) / 20, np.full(x.shape, alpha)], -1)
    stored, levels = np.zeros(x.shape, np.uint32), []
    for channel, mask in enumerate(masks):
        shift = (mask & -mask).bit_length() - 1
        level = np.rint(values[:, :, channel] * (mask >> shift)).astype(np.uint32)
        stored |= level << np.uint32(shift)
        levels.append(level / (mask >> shift))
    rows = stored if is_top_down else stored[::-1]
    padded = np.zeros((9, -(-13 * bits // 32) * 32 // bits), f"<u{bits // 8}")
    padded[:, :13] = rows
    header_bytes = 56 if len(masks) == 4 else 40
    fields = struct.pack("<IiiHHIIiiII", header_bytes, 13, -9 if is_top_down else 9, 1, bits, 3,
                         0, 0, 0, 0, 0)  # fmt: skip
    fields += struct.pack(f"<{len(masks)}I", *masks)
    offset = 14 + len(fields)
    data = b"BM" + struct.pack("<IHHI", offset + padded.nbytes, 0, 0, offset) + fields
    data += padded.tobytes()
    shown = np.stack(levels[:3], -1)
    if len(masks) == 4 and alpha:  # a mask of alpha that nobody set bits under means none
        shown = shown * levels[3][..., None] + 1 - levels[3][..., None]
    assert np.abs(pixels(data).astype(int) - shown * 255).max() <= 2
    for cut in (60, 75, len(data) - 3):
        with pytest.raises(CorruptImageError):
            pixels(data[:cut])


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 4000), (-1000, 3000), (0.2, 0.7), (-5, -2), (0, 40)]
)
def test_a_float_picture_is_never_a_threshold(dtype: str, low: float, high: float) -> None:
    values = np.linspace(low, high, 256).astype(dtype).reshape(1, 256, 1)
    found = pixels(tiff_file(values), color="gray").ravel().astype(int)
    black, white = (0, 1) if low >= 0 and high <= 1 else (low, high)
    expected = (values.ravel().astype(float) - black) / (white - black) * 255
    np.testing.assert_allclose(found, expected, atol=1)
    if dtype == "f4":  # a background of zeros decides nothing
        padded = np.concatenate([np.zeros((4, 256, 1), np.float32), values])
        shown = pixels(tiff_file(padded), color="gray")[4].ravel().astype(int)
        if low >= 0:
            np.testing.assert_array_equal(shown, found)


def test_a_few_floats_beyond_1_are_clipped() -> None:
    values = np.full((10, 10, 1), 0.5, np.float32)
    values[0, :3] = 1.7
    found = pixels(tiff_file(values), color="gray")
    assert (found[0, 0, 0], found[5, 5, 0]) == (255, 128)
