"""TIFF that Pillow cannot decode: the samples, ranges and planes of science."""

import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imgcls.errors import CorruptImageError, DecodeError, ImageTooLargeError, UnsupportedImageError
from imgcls.image.decode import decode
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.formats.raster.tiff_tags import TiffTags
from imgcls.image.spec import DecodeSpec, PreprocessSpec

tifffile = pytest.importorskip("tifffile")
imagecodecs = pytest.importorskip("imagecodecs")

H, W = 64, 80
Y, X = np.mgrid[:H, :W]
GRAY = X / (W - 1) * 0.7 + Y / (H - 1) * 0.3
GRAY_8 = np.rint(GRAY * 255).astype(np.uint8)
RGB = np.rint(np.stack([X * 255 / (W - 1), Y * 255 / (H - 1), 127 + 127 * np.sin((X + Y) / 20)], 2))
RGB = RGB.astype(np.uint8)
RGB_16 = RGB.astype(np.uint16) * 257
LOSSLESS, LOSSY = 1, 8


def tiff(samples: npt.NDArray[Any], **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, metadata=None, **options)
    return out.getvalue()


def planes(samples_HWC: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(samples_HWC, -1, 0))


YCBCR = Image.fromarray(RGB).convert("YCbCr")


def deep(bits: int) -> npt.NDArray[np.uint16]:
    return np.rint(GRAY * (2**bits - 1)).astype(np.uint16)


OPAQUE = np.full((H, W, 1), 65535, np.uint16)
# name -> file, expected grey or RGB, tolerance
FILES: dict[str, tuple[bytes, npt.NDArray[np.uint8], int]] = {
    "float16 grey": (tiff(GRAY.astype(np.float16)), GRAY_8, LOSSLESS),
    "float64 grey": (tiff(GRAY), GRAY_8, LOSSLESS),
    "float64 grey, predicted": (
        tiff(GRAY, compression="zlib", predictor=3), GRAY_8, LOSSLESS,
    ),
    "float16 rgb": (tiff((RGB / 255).astype(np.float16), photometric="rgb"), RGB, LOSSLESS),
    "float32 rgb": (tiff((RGB / 255).astype(np.float32), photometric="rgb"), RGB, LOSSLESS),
    "float32 rgb, big-endian planes": (
        tiff(planes(RGB / 255).astype(np.float32), photometric="rgb", planarconfig="separate",
             byteorder=">"), RGB, LOSSLESS,
    ),
    "uint32 rgb": (tiff(RGB.astype(np.uint32) * 16843009, photometric="rgb"), RGB, 0),
    "uint64 grey": (tiff(np.rint(GRAY * (2.0**64 - 2**12)).astype(np.uint64)), GRAY_8, LOSSLESS),
    "big-endian BigTIFF": (tiff(RGB, photometric="rgb", bigtiff=True, byteorder=">"), RGB, 0),
    "big-endian BigTIFF, 16 bits, tiles": (
        tiff(deep(16), bigtiff=True, byteorder=">", tile=(32, 32)), GRAY_8, LOSSLESS,
    ),
    "big-endian BigTIFF, white is zero": (
        tiff(deep(16), bigtiff=True, byteorder=">", photometric="miniswhite"),
        255 - GRAY_8, LOSSLESS,
    ),
    "big-endian BigTIFF, palette": (
        tiff(GRAY_8, bigtiff=True, byteorder=">", photometric="palette",
             colormap=np.stack([np.arange(256) * 257] * 3).astype(np.uint16)), GRAY_8, 0,
    ),
    "big-endian BigTIFF, cmyk": (
        tiff(np.dstack([255 - RGB, np.zeros_like(GRAY_8)]), bigtiff=True, byteorder=">",
             photometric="separated"), RGB, 0,
    ),
    "big-endian BigTIFF, signed": (
        tiff((GRAY_8.astype(int) - 128).astype(np.int8), bigtiff=True, byteorder=">"), GRAY_8, 0,
    ),
    "Aperio YCbCr": (
        tiff(np.asarray(YCBCR), photometric="ycbcr", subsampling=(1, 1), compression=33003,
             compressionargs={"level": 0, "mct": False}), np.asarray(YCBCR.convert("RGB")), 0,
    ),
    **{
        f"{bits} bits packed": (tiff(deep(bits), bitspersample=bits), GRAY_8, LOSSLESS)
        for bits in (9, 10, 11, 13, 14, 15)
    },
    **{
        f"{kind} by {name}": (tiff(samples, compression=name, **options), expected, tolerance)
        for name, tolerance in {
            "jpeg2000": LOSSLESS, "aperio_jp2000_rgb": LOSSLESS, "jpegxl": LOSSLESS,
            "jpegxr": LOSSY, "lerc": LOSSLESS, "png": LOSSLESS,
        }.items()
        for kind, samples, options, expected in (
            ("rgb", RGB, {"photometric": "rgb"}, RGB),
            ("tiled rgb", RGB, {"photometric": "rgb", "tile": (32, 48)}, RGB),
            ("16 bit grey", deep(16), {}, GRAY_8),
        )
    },
    "rgb by webp": (tiff(RGB, photometric="rgb", compression="webp"), RGB, LOSSY),
}  # fmt: skip


def of(data: bytes, **spec: Any) -> npt.NDArray[np.uint8]:
    [image] = decode(data, DecodeSpec(**spec))
    assert (image.width_px, image.height_px) == image.image_HWC.shape[1::-1]
    return image.image_HWC


def assert_close(
    found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], tolerance: int
) -> None:
    if expected.ndim == 2:
        expected = np.repeat(expected[:, :, np.newaxis], 3, axis=2)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("name", FILES)
def test_samples_have_their_greys_and_colours(name: str) -> None:
    data, expected, tolerance = FILES[name]
    assert_close(of(data), expected, tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_page_is_turned(orientation: int) -> None:
    data = tiff(RGB, photometric="rgb", compression="jpegxl",
                extratags=[(274, 3, 1, orientation, True)])  # fmt: skip
    expected = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1),
        6: RGB[::-1].swapaxes(0, 1), 7: RGB[::-1, ::-1].swapaxes(0, 1),
        8: RGB[:, ::-1].swapaxes(0, 1),
    }[orientation]  # fmt: skip
    assert_close(of(data), expected, LOSSLESS)


def test_the_range_of_the_spec_holds_and_is_one_for_all_channels() -> None:
    camera = (RGB.astype(np.uint16) * 16 + 8).clip(0, 4095)
    data = tiff(camera, photometric="rgb", bigtiff=True, byteorder=">")
    assert_close(of(data), np.rint(camera / 257).astype(np.uint8), LOSSLESS)
    assert_close(of(data, gray_range="bits", gray_bits=12), RGB, LOSSLESS)
    dark = camera // 4
    dark[:, :, 2] //= 2
    scaled = np.rint((dark - dark.min()) * 255.0 / (dark.max() - dark.min())).astype(np.uint8)
    found = of(tiff(dark, photometric="rgb", bigtiff=True, byteorder=">"), gray_range="min_max")
    assert_close(found, scaled, LOSSLESS)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_far_beyond_one_are_no_threshold(dtype: type) -> None:
    assert_close(of(tiff((GRAY * 4000).astype(dtype))), GRAY_8, 2)
    color = tiff((RGB * 16.0).astype(np.float32), photometric="rgb")
    assert_close(of(color), RGB, LOSSLESS)


def test_transparency_lies_on_the_background() -> None:
    alpha = np.where(X < W // 2, 65535, 0).astype(np.uint16)[:, :, np.newaxis]
    for kind, color in (("unassalpha", RGB_16), ("assocalpha", RGB_16 * (alpha > 0))):
        data = tiff(np.concatenate([color, alpha], 2).astype(np.uint16), photometric="rgb",
                    extrasamples=[kind], bigtiff=True, byteorder=">")  # fmt: skip
        found = of(data, alpha_background=(9, 8, 7))
        assert_close(found[:, : W // 2], RGB[:, : W // 2], LOSSLESS)
        assert (found[:, W // 2 :] == (9, 8, 7)).all()


def test_pages_are_frames() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for index in range(4):
            writer.write(deep(10) // (index + 1), bitspersample=10, metadata=None)
    begun: list[int] = []
    from imgcls.image.decode import iter_images

    images = list(iter_images(out.getvalue(), DecodeSpec(frames="all"), None, begun.append))
    assert begun == [image.frame for image in images] == [0, 1, 2, 3]
    for index, image in enumerate(images):
        expected = np.rint(deep(10) // (index + 1) / 1023 * 255).astype(np.uint8)
        assert_close(image.image_HWC, expected, LOSSLESS)
    [middle] = decode(out.getvalue(), DecodeSpec(frames="middle"))
    assert middle.frame == 2
    with pytest.raises(ImageTooLargeError, match="4 frames"):
        decode(out.getvalue(), DecodeSpec(frames="all", max_frames=3))


def test_a_page_that_is_smaller_than_the_picture_is_not_the_picture() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        small = {"compression": "jpeg2000", "photometric": "rgb", "metadata": None}
        writer.write(RGB[::4, ::4], subfiletype=1, **small)
        writer.write(RGB, **small)
    assert_close(of(out.getvalue()), RGB, LOSSLESS)


def test_too_many_pixels_are_too_large_before_anything_is_decoded() -> None:
    with pytest.raises(ImageTooLargeError, match="80 x 64"):
        of(FILES["rgb by jpegxl"][0], max_pixels=5000)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_corrupt(name: str) -> None:
    data = FILES[name][0]
    # The directory comes first, the samples last, but in what tifffile writes to streams.
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends) < len(data) - 8:
        pytest.skip("the samples are not at the end")
    for cut in (1, 9, 100):
        with pytest.raises(CorruptImageError):
            decode(data[: max(ends) - cut], DecodeSpec())


def test_a_missing_tile_is_corrupt_and_not_blank() -> None:
    data, _, _ = FILES["tiled rgb by jpegxl"]
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        counts = file.pages[0].tags["TileByteCounts"]
    damaged = bytearray(data)
    size = counts.dtype_name == "LONG"
    damaged[counts.valueoffset : counts.valueoffset + (4 if size else 2)] = bytes(4 if size else 2)
    with pytest.raises(CorruptImageError, match="missing"):
        decode(bytes(damaged), DecodeSpec())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("float32 rgb", "3 x 32 bits float, photometric 2, compression none"),
        ("10 bits packed", "1 x 10 bits unsigned"),
        ("rgb by jpegxl", "compression JPEG XL (50002)"),
        ("16 bit grey by lerc", "1 x 16 bits unsigned, photometric 1, compression LERC (34887)"),
        ("big-endian BigTIFF", "big-endian BigTIFF"),
        ("float32 rgb, big-endian planes", "float in separate planes"),
    ],
)
def test_without_the_extra_samples_coding_and_package_are_named(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnsupportedImageError) as raised:
        decode(FILES[name][0], DecodeSpec())
    assert words in str(raised.value)
    assert "pip install 'imgcls[scientific]'" in str(raised.value)


@pytest.mark.parametrize("samples", [GRAY.astype(np.complex64), GRAY.astype(np.complex128)])
def test_what_has_no_way_to_colours_is_unsupported_and_named(samples: npt.NDArray[Any]) -> None:
    with pytest.raises(UnsupportedImageError, match="complex"):
        decode(tiff(samples), DecodeSpec())


@pytest.mark.parametrize(("number", "name"), [(34661, "JBIG"), (34713, "Nikon"), (198, "unknown")])
def test_a_compression_that_nothing_here_knows_is_named(number: int, name: str) -> None:
    data = bytearray(tiff(RGB, photometric="rgb"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        at = file.pages[0].tags["Compression"].valueoffset
    data[at : at + 2] = number.to_bytes(2, "little")
    with pytest.raises(UnsupportedImageError, match=rf"compression .*{name}.* \({number}\)"):
        decode(bytes(data), DecodeSpec())


def test_pixels_within_the_sandbox_are_the_same() -> None:
    names = list(FILES)
    preprocess = PreprocessSpec.for_image_px(32)
    with DecoderPool(DecodeSpec(), preprocess, 2) as pool:
        assert pool.unconfined() == ""
        results = {
            r.index: r for r in pool.decode_many((i, FILES[n][0]) for i, n in enumerate(names))
        }
    for index, name in enumerate(names):
        assert results[index].error is None, f"{name}: {results[index].error}"
        [expected] = decode_one(FILES[name][0], DecodeSpec(), preprocess)
        np.testing.assert_array_equal(results[index].crops[0].x_CHW, expected.x_CHW)


def test_damage_costs_one_row_each() -> None:
    rng = np.random.default_rng(3)
    damaged = []
    for data, _, _ in FILES.values():
        for _ in range(8):
            body = bytearray(data)
            for position in rng.integers(8, len(body), 3):
                body[position] ^= 1 << int(rng.integers(0, 8))
            damaged.append(bytes(body))
    with DecoderPool(DecodeSpec(), PreprocessSpec.for_image_px(32), 2) as pool:
        results = list(pool.decode_many(enumerate(damaged)))
    assert sorted(result.index for result in results) == list(range(len(damaged)))
    assert all(bool(r.crops) == (r.error is None) for r in results)
    assert all(r.error is None or isinstance(r.error, DecodeError) for r in results)


def test_tags_of_anything_are_read_without_an_error() -> None:
    rng = np.random.default_rng(4)
    for data, _, _ in FILES.values():
        for cut in (*range(0, 200, 7), len(data) // 2):
            TiffTags.of(data[:cut])
        for _ in range(20):
            body = bytearray(data)
            body[int(rng.integers(4, 200))] = int(rng.integers(0, 256))
            assert TiffTags.of(bytes(body)).words()


def test_colours_that_do_not_say_what_they_are_are_unsupported() -> None:
    data = tiff(RGB, byteorder="<", photometric="rgb")
    assert data.count(b"\x06\x01\x03\x00") == 1
    with pytest.raises(UnsupportedImageError):
        decode(data.replace(b"\x06\x01\x03\x00", b"\xff\xff\x03\x00"), DecodeSpec())
