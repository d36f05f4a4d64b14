"""JPEG through simplejpeg: Pillow's pixels for whole files, and no silence about damaged ones."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import CorruptImageError
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec


def jpeg(mode: str, size: tuple[int, int], **options: Any) -> bytes:
    rng = np.random.default_rng(size[0])
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    coarse = rng.integers(0, 256, (12, 12, channels), dtype=np.uint8)
    planes = [Image.fromarray(coarse[:, :, c]).resize(size) for c in range(channels)]
    out = io.BytesIO()
    Image.merge(mode, planes).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", [(600, 431), (37, 301)])
@pytest.mark.parametrize("min_short_px", [None, 16, 9])
def test_whole_files_give_pillows_pixels(
    mode: str,
    subsampling: int,
    progressive: bool,
    color: Any,
    size: tuple[int, int],
    min_short_px: int | None,
) -> None:
    data = jpeg(mode, size, subsampling=subsampling, progressive=progressive)
    [found] = decode(data, DecodeSpec(color=color), min_short_px=min_short_px)
    expected = Image.open(io.BytesIO(data))
    if min_short_px:
        divisor = max(n for n in (1, 2, 4, 8) if min(size) >= n * min_short_px)
        expected.draft(None, (size[0] // divisor, size[1] // divisor))
    expected = expected.convert("RGB" if color == "rgb" else "L")
    np.testing.assert_array_equal(found.image_HWC.squeeze(), np.asarray(expected))


def test_damage_that_pillow_does_not_notice_is_corrupt() -> None:
    data = jpeg("RGB", (600, 431), quality=90)
    start = data.index(b"\xff\xda") + 20
    rng = np.random.default_rng(3)
    num_noticed = num_noticed_by_pillow = 0
    for _ in range(100):
        damaged = bytearray(data)
        damaged[int(rng.integers(start, len(data) - 2))] ^= 1 << int(rng.integers(0, 8))
        try:
            Image.open(io.BytesIO(damaged)).load()
        except OSError:
            num_noticed_by_pillow += 1
        try:
            decode(bytes(damaged), DecodeSpec())
        except CorruptImageError:
            num_noticed += 1
    assert num_noticed > num_noticed_by_pillow


def test_harmless_warnings_do_not_cost_an_image() -> None:
    data = jpeg("RGB", (64, 64))
    huffman = data.index(b"\xff\xc4")
    padded = data[:huffman] + bytes(5) + data[huffman:]  # extraneous bytes before a marker
    [found] = decode(padded, DecodeSpec())
    [expected] = decode(data, DecodeSpec())
    np.testing.assert_array_equal(found.image_HWC, expected.image_HWC)
