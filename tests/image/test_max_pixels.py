"""A picture that is too large names the flag that lets it in, whatever its format."""

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import CorruptImageError, ImageTooLargeError
from imgcls.image.decode import decode
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.facts.source import looking
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from tests.image.decoding import encode


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP"])
def test_too_large_names_the_flag_and_the_flag_lets_it_in(kind: str) -> None:
    data = encode(Image.new("RGB", (60, 50)), kind)
    with pytest.raises(
        ImageTooLargeError, match=r"60 x 50 pixels, .* allows 2999; .* --max-pixels"
    ):
        decode(data, DecodeSpec(max_pixels=2999))
    [image] = decode(data, DecodeSpec(max_pixels=3000))
    assert image.image_HWC.shape == (50, 60, 3)


AT_ONCE, IN_BANDS = DecodeSpec(), DecodeSpec(max_pixels=40_000)
NOISE = np.random.default_rng(0).integers(0, 256, (300, 320, 3), dtype=np.uint8)


def tiff(pixels: np.ndarray, **how: object) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **how)
    return out.getvalue()


TIFFS: dict[str, Callable[[], bytes]] = {
    "rgb, LZW": lambda: tiff(NOISE, photometric="rgb", compression="lzw", rowsperstrip=7),
    "rgb, tiles": lambda: tiff(NOISE, photometric="rgb", compression="deflate", tile=(32, 48)),
    "rgb, one strip": lambda: tiff(NOISE, photometric="rgb", rowsperstrip=300),
    "YCbCr, JPEG": lambda: tiff(
        NOISE, photometric="ycbcr", compression="jpeg", rowsperstrip=16, subsampling=(2, 2)
    ),
    "16 bit, big endian": lambda: tiff(NOISE[:, :, 0] * np.uint16(200), byteorder=">"),
    "BigTIFF, predictor": lambda: tiff(
        NOISE[:, :, 0], bigtiff=True, rowsperstrip=16, compression="lzw", predictor=True
    ),
    "turned": lambda: tiff(NOISE[:, :, 0], rowsperstrip=16, extratags=[(274, "H", 1, 6, True)]),
    "fax": lambda: encode(
        Image.fromarray(NOISE[:, :, 0]).convert("1"), "TIFF", compression="group4", strip_size=400
    ),
    "palette": lambda: encode(
        Image.fromarray(NOISE).quantize(20), "TIFF", compression="tiff_lzw", strip_size=4000
    ),
}


@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_tiff_beyond_it_is_read_in_bands_to_the_same_pixels(
    kind: str, color: Literal["rgb", "gray"]
) -> None:
    data = TIFFS[kind]()
    [whole], [banded] = (decode(data, replace(s, color=color)) for s in (AT_ONCE, IN_BANDS))
    assert (banded.width_px, banded.height_px) == (whole.width_px, whole.height_px)
    np.testing.assert_array_equal(banded.image_HWC, whole.image_HWC)


def test_a_range_is_measured_over_all_bands() -> None:
    ramp = np.repeat(np.arange(300, dtype=np.uint16)[:, None] * 100, 320, axis=1)
    data = encode(Image.fromarray(ramp), "TIFF")
    told = []
    for spec in (AT_ONCE, IN_BANDS):
        with looking("ranges") as seen:
            decode(data, replace(spec, color="gray"))
        assert seen.extremes is not None
        told.append(seen.extremes)
    assert told[1] == pytest.approx(told[0], abs=100)
    assert told[1][1] - told[1][0] > 29_000


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        pytest.param(
            encode(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw", strip_size=1 << 30),
            IN_BANDS,
            id="one compressed strip",
        ),
        pytest.param(
            encode(Image.fromarray(NOISE), "TIFF"), replace(IN_BANDS, max_pixels=3000), id="result"
        ),
        pytest.param(
            encode(Image.fromarray(NOISE), "TIFF"),
            replace(IN_BANDS, gray_range="min_max"),
            id="a range of its own",
        ),
    ],
)
def test_a_tiff_that_cannot_be_cut_is_too_large_as_ever(data: bytes, spec: DecodeSpec) -> None:
    message = rf"320 x 300 pixels, .* allows {spec.max_pixels}; .* --max-pixels"
    with pytest.raises(ImageTooLargeError, match=message):
        decode(data, spec)


def test_a_band_that_is_cut_off_is_damage() -> None:
    data = encode(Image.fromarray(NOISE), "TIFF")
    with pytest.raises(CorruptImageError):
        decode(data[: len(data) - 2000], IN_BANDS)


def test_pieces_that_do_not_make_up_the_picture_are_damage() -> None:
    """A header that says twice as many rows: the lower half would be what memory held before."""
    gray = Image.fromarray(NOISE[:, :, 0])
    data = bytearray(encode(gray, "TIFF", compression="tiff_lzw", strip_size=3200))
    at = bytes(data).index(struct.pack("<HHI", 257, 3, 1))
    struct.pack_into("<H", data, at + 8, 600)
    with pytest.raises(CorruptImageError, match="30 strips or tiles do not make 600 rows"):
        decode(bytes(data), replace(IN_BANDS, color="gray"))


def test_bands_take_the_memory_that_max_pixels_stands_for() -> None:
    """A grey TIFF of 7 times the pixels, by a decoder process that may take 32 bytes for each."""
    side = 6_000
    image_HW = np.broadcast_to(np.arange(side, dtype=np.uint8), (side, side))
    data = encode(Image.fromarray(image_HW), "TIFF", compression="tiff_lzw")
    spec = DecodeSpec(color="gray", max_pixels=side * side // 7)
    tiles = PreprocessSpec(
        1000, 1000, fit="tiles", resize="exact", channels=1, mean=(0.5,), std=(0.5,)
    )
    with DecoderPool(spec, tiles, 1) as pool:
        [found] = pool.decode_many([(0, data)])
    assert found.error is None
    assert len(found.crops) == 36
    last = found.crops[-1]
    np.testing.assert_array_equal(last.x_CHW[0], image_HW[-1000:, -1000:])
