"""Pixels of every mode, depth and orientation, against values computed without the decoder."""

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from imgcls.errors import (
    ImageTooLargeError,
    NotAnImageError,
    UnsupportedImageError,
)
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec
from tests.image.decoding import DEEP_COLORS, encode, pixels, tiff
from tests.image.encoders import short_side

RAMP_16 = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))


def test_16_bit_ramp_keeps_256_levels_where_pillow_keeps_2() -> None:
    image = Image.fromarray(RAMP_16)
    expected = np.rint(RAMP_16 / 65535 * 255).astype(np.uint8)
    with io.BytesIO(encode(image, "PNG")) as file:
        assert len(np.unique(np.asarray(Image.open(file).convert("RGB")))) <= 2
    for kind in ("PNG", "TIFF", "JPEG2000", "PPM"):
        for color in ("rgb", "gray"):
            found = pixels(encode(image, kind), color=color)
            assert len(np.unique(found)) == 256
            np.testing.assert_array_equal(found, np.repeat(expected[..., None], found.shape[2], 2))


def test_big_endian_16_bit_tiff() -> None:
    image = Image.frombytes("I;16B", (256, 4), RAMP_16.astype(">u2").tobytes())
    expected = np.rint(RAMP_16 / 65535 * 255)
    np.testing.assert_array_equal(pixels(encode(image, "TIFF"), color="gray")[..., 0], expected)


def test_12_bits_in_16_by_gray_bits() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(16, 256)
    found = pixels(encode(Image.fromarray(ramp), "PNG"), gray_range="bits", gray_bits=12)
    assert len(np.unique(found)) == 256
    np.testing.assert_array_equal(found[..., 0], np.rint(ramp / 4095 * 255))


def test_fixed_window_and_min_max() -> None:
    data = encode(Image.fromarray(np.array([[1000, 2000, 3000]], np.uint16)), "PNG")
    window = pixels(data, gray_range="window", gray_window=(1000.0, 2000.0), color="gray")
    assert window.ravel().tolist() == [0, 255, 255]
    assert pixels(data, gray_range="min_max", color="gray").ravel().tolist() == [0, 128, 255]


def test_float_tiff_takes_0_to_1_and_no_nan_becomes_bright() -> None:
    values = np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan, np.inf]], np.float32)
    found = pixels(encode(Image.fromarray(values), "TIFF"), color="gray")
    assert found.ravel().tolist() == [0, 128, 255, 255, 0, 0, 255]


@pytest.mark.parametrize(
    ("dtype", "sample_format", "low", "high"),
    [
        (np.uint16, 1, 0, 65535), (np.int16, 2, -32768, 32767), (np.uint32, 1, 0, 2**32 - 1),
        (np.int32, 2, -(2**31), 2**31 - 1),
    ],
)  # fmt: skip
def test_tiff_sample_types_use_their_full_range(
    dtype: Any, sample_format: int, low: int, high: int
) -> None:
    ramp = np.linspace(low, high, 64).round().astype(np.int64)
    values = ramp.clip(low, high).astype(dtype).reshape(1, 64)
    found = pixels(tiff(values, sample_format), color="gray").ravel()
    expected = np.rint((values.ravel().astype(np.float64) - low) / (high - low) * 255)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("dtype", "sample_format"), [(np.uint8, 1), (np.uint16, 1), (np.float32, 3)]
)
def test_tiff_whose_white_is_zero(dtype: Any, sample_format: int) -> None:
    high = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    values = np.array([[0, high / 4, high]]).astype(dtype)
    found = pixels(tiff(values, sample_format, photometric=0), color="gray").ravel().tolist()
    assert found[0] == 255
    assert found[1] in (191, 192)
    assert found[2] == 0


def test_alpha_is_composited_on_the_background() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    for kind in ("PNG", "TIFF"):
        found = pixels(encode(Image.fromarray(rgba), kind), alpha_background=(200, 100, 0))
        np.testing.assert_array_equal(found[0, :2], [[10, 20, 30], [200, 100, 0]])
        np.testing.assert_allclose(found[0, 2], [99.6, 49.8, 0], atol=1)
    la = np.array([[[77, 255], [77, 0]]], np.uint8)
    found = pixels(encode(Image.fromarray(la, "LA"), "PNG"), color="gray")
    assert found.ravel().tolist() == [77, 255]


def test_palette_with_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([9, 8, 7, 60, 50, 40, 1, 2, 3])
    found = pixels(encode(image, "PNG", transparency=1))
    np.testing.assert_array_equal(found, [[[9, 8, 7], [255, 255, 255], [1, 2, 3]]])
    found = pixels(encode(image, "GIF", transparency=1), alpha_background=(0, 0, 0))
    np.testing.assert_array_equal(found, [[[9, 8, 7], [0, 0, 0], [1, 2, 3]]])


def test_16_bit_png_with_one_transparent_value(make_png: Any) -> None:
    values = np.array([[100 << 8, 7]], ">u2")
    rows = b"\x00" + values.tobytes()
    data = make_png(2, 1, 16, 0, rows, transparent=struct.pack(">H", 7))
    assert pixels(data, color="gray").ravel().tolist() == [100, 255]


def adobe_cmyk(transform: int | None) -> bytes:
    """A JPEG of cyan in four inks, stored inverted, as Photoshop does and all others after it."""
    ink = np.full((16, 16, 4), (255, 0, 0, 0), np.uint8)  # cyan: R 0, G 255, B 255
    data = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)
    marker = data.index(b"Adobe")
    if transform is None:
        start = marker - 4
        data = data[:start] + data[start + 16 :]
    return data


@pytest.mark.parametrize("transform", [0, None])
@pytest.mark.parametrize("is_odd", [False, True])
def test_cmyk_is_inverted_with_and_without_adobes_marker(
    transform: int | None, is_odd: bool
) -> None:
    data = adobe_cmyk(transform)
    if is_odd:  # what libjpeg warns of
        huffman = data.index(b"\xff\xc4")
        data = data[:huffman] + bytes(5) + data[huffman:]
    np.testing.assert_allclose(pixels(data)[8, 8].astype(int), [0, 255, 255], atol=3)
    [pillows] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[8:9, 8]
    np.testing.assert_array_equal(pixels(data)[8, 8], pillows)


def test_ycck_is_turned_into_cmyk_first() -> None:
    data = adobe_cmyk(0)
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    # The same four planes, read as Y, Cb, Cr, K of inverted ink (BT.601), stored 0, 255, 255, 255.
    luma, blue, red, black = 0.0, 127.0, 127.0, 255.0
    rgb = np.array([luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue])
    # libjpeg gives C = 255 - R and so on; Adobe's inversion undoes that.
    expected = (255 - np.clip(rgb, 0, 255)) * black / 255
    np.testing.assert_allclose(pixels(ycck)[8, 8], expected, atol=4)


QUADRANTS = np.zeros((32, 48, 3), np.uint8)


QUADRANTS[:16, :24], QUADRANTS[:16, 24:] = (250, 10, 10), (10, 250, 10)


QUADRANTS[16:, :24], QUADRANTS[16:, 24:] = (10, 10, 250), (250, 250, 10)


# Where the stored row 0 and column 0 lie in the upright picture (EXIF 2.32, table 6), as numpy says
# it.
TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", sorted(TURNED))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95, "lossless": True} if kind == "WEBP" else {}
    [found] = decode(encode(Image.fromarray(QUADRANTS), kind, exif=exif, **options), DecodeSpec())
    expected = TURNED[orientation](QUADRANTS)
    assert (found.height_px, found.width_px) == expected.shape[:2]
    assert found.image_HWC.shape == expected.shape
    # centres of the quadrants: lossy formats smear the edges
    height, width = expected.shape[:2]
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            np.testing.assert_allclose(
                found.image_HWC[y, x].astype(int), expected[y, x].astype(int), atol=12
            )


def frames_of(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 10), (60 * i, 0, 0)) for i in range(4)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_frames_first_middle_all(kind: str) -> None:
    data = frames_of(kind)
    [first] = decode(data, DecodeSpec())
    [middle] = decode(data, DecodeSpec(frames="middle"))
    every = decode(data, DecodeSpec(frames="all"))
    assert (first.frame, first.image_HWC[0, 0, 0]) == (None, 0)
    assert (middle.frame, middle.image_HWC[0, 0, 0]) == (2, 120)
    assert [(f.frame, int(f.image_HWC[0, 0, 0])) for f in every] == [(i, 60 * i) for i in range(4)]
    with pytest.raises(ImageTooLargeError, match="4 frames"):
        decode(data, DecodeSpec(frames="all", max_frames=3))


def test_a_single_image_has_no_frame_number() -> None:
    [only] = decode(encode(Image.new("RGB", (4, 4)), "PNG"), DecodeSpec(frames="all"))
    assert only.frame is None


def test_icc_is_ignored_unless_the_spec_converts_it() -> None:
    # A profile whose red and blue are exchanged: what it says is plain to see.
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(lab)
    count = struct.unpack_from(">I", swapped, 128)[0]
    entries = {bytes(swapped[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    swapped[red + 4 : red + 12], swapped[blue + 4 : blue + 12] = (
        swapped[blue + 4 : blue + 12],
        swapped[red + 4 : red + 12],
    )
    image = Image.new("RGB", (16, 16), (250, 10, 20))
    for kind in ("PNG", "JPEG", "TIFF"):
        data = encode(image, kind, icc_profile=bytes(swapped))
        np.testing.assert_allclose(pixels(data)[8, 8].astype(int), [250, 10, 20], atol=3)
        converted = pixels(data, icc="srgb")[8, 8].astype(int)
        np.testing.assert_allclose(converted, [20, 10, 250], atol=4)
        junk = encode(image, kind, icc_profile=b"no profile at all")
        np.testing.assert_allclose(
            pixels(junk, icc="srgb")[8, 8].astype(int), [250, 10, 20], atol=3
        )


@pytest.mark.parametrize(
    ("size", "divisor"), [((1000, 500), 2), ((1000, 499), 1), ((4100, 2100), 8)]
)
def test_dct_scaling_keeps_the_short_side(size: tuple[int, int], divisor: int) -> None:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    smooth = np.stack([x * 255 // size[0], y * 255 // size[1], (x + y) % 256 // 2], -1)
    data = encode(Image.fromarray(smooth.astype(np.uint8)), "JPEG")
    [full] = decode(data, DecodeSpec())
    [scaled] = decode(data, DecodeSpec(), wanted_size=short_side(250))
    assert full.image_HWC.shape[:2] == size[::-1]
    assert scaled.image_HWC.shape[:2] == (-(-size[1] // divisor), -(-size[0] // divisor))
    assert (scaled.width_px, scaled.height_px) == size


def test_pixel_limit_is_checked_before_a_byte_is_decoded() -> None:
    import resource

    data = encode(Image.new("1", (20000, 20000)), "PNG")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLargeError, match="20000 x 20000"):
        decode(data, DecodeSpec())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
    assert decode(
        data[:0] + encode(Image.new("1", (100, 100)), "PNG"), DecodeSpec(max_pixels=10_000)
    )


def test_format_is_told_by_content_and_unread_ones_are_named() -> None:
    for data, words in [
        (b"", "empty"),
        (b"%PDF-1.4", "PDF"),
        (b"<html>", "HTML"),
        (b"8BPS" * 9, "Photoshop"),
    ]:
        with pytest.raises((UnsupportedImageError, NotAnImageError), match=words):
            decode(data, DecodeSpec())


def test_what_a_codec_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> None:  # as imagecodecs does of a conformance file
        raise imagecodecs.Jpeg2kError("subsampling not supported")

    data = imagecodecs.jpeg2k_encode(DEEP_COLORS, level=0)
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", refuse)
    with pytest.raises(UnsupportedImageError, match="3 x 16 bits: subsampling not supported"):
        pixels(data)
