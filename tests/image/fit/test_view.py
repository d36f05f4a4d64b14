"""A view shows what the input shows there, with the detail of the picture."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.image.crops import decode_frames
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.view import WHOLE, Part, View, resize_view
from imgcls.image.preprocess import preprocess
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from tests.image.decoding import encode

FITS: dict[str, dict[str, Any]] = {
    "pad": {"fit": "pad", "resize": "longest", "pad_color": (10, 20, 30)},
    "stretch": {"fit": "stretch", "resize": "exact"},
    "crop": {"fit": "crop"},
    "cut first": {"fit": "crop", "resize": "exact", "arithmetic": "torch"},
}


def smooth(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    y, x = np.mgrid[0:height, 0:width]
    waves = [120 + 100 * np.sin(x / 25 + channel) * np.cos(y / 35) for channel in range(3)]
    return np.stack(waves, axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(320, 200), (150, 260)])
def test_the_whole_view_is_the_input(fit: str, size: tuple[int, int]) -> None:
    spec = PreprocessSpec(48, 64, **FITS[fit])
    image_HWC = smooth(*size)
    seen, expected = resize_view(image_HWC, spec, WHOLE), preprocess(image_HWC, spec)
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
@pytest.mark.parametrize("view", [(0.25, 0.25, 0.75, 0.75), (-0.1, 0.3, 0.7, 0.8)])
def test_a_part_lies_where_it_lies_in_the_input(fit: str, view: View) -> None:
    """By way of an input of four times the size, which has all that the view can show."""
    image_HWC, shape = smooth(800, 480), (48, 64)  # whose cut begins at a whole pixel
    spec, fine = (PreprocessSpec(n * shape[0], n * shape[1], **FITS[fit]) for n in (1, 4))
    seen = resize_view(image_HWC, spec, view).astype(int)
    large_CYX = preprocess(image_HWC, fine)
    x = (view[0] + (np.arange(shape[1]) + 0.5) / shape[1] * (view[2] - view[0])) * 4 * shape[1]
    y = (view[1] + (np.arange(shape[0]) + 0.5) / shape[0] * (view[3] - view[1])) * 4 * shape[0]
    inside = np.ix_(y.astype(int).clip(0), x.astype(int).clip(0))
    difference = np.abs(seen - large_CYX[:, inside[0], inside[1]])
    # Left of the input a cut knows more than the input; padding may begin a pixel to either side.
    assert np.percentile(difference[:, :, x >= 0], 95 if fit == "pad" else 100) <= 8


def test_a_view_shows_what_the_input_is_too_coarse_for() -> None:
    image_HWC = np.zeros((400, 400, 3), np.uint8)
    image_HWC[:, ::8], image_HWC[:, 1::8], image_HWC[:, 2::8], image_HWC[:, 3::8] = (255,) * 4
    spec = PreprocessSpec(50, 50, fit="stretch", resize="exact")
    assert preprocess(image_HWC, spec).std() < 20
    assert resize_view(image_HWC, spec, (0.4, 0.4, 0.6, 0.6)).std() > 90


def test_beyond_the_picture_lies_padding_or_the_edge() -> None:
    image_HWC = np.full((50, 100, 3), 200, np.uint8)
    image_HWC[:, 0] = 100
    for fit, expected in (("pad", [10, 20, 30]), ("stretch", [100, 100, 100])):
        spec = PreprocessSpec(50, 50, **FITS[fit])
        seen = resize_view(image_HWC, spec, (-0.5, 0.0, 0.0, 0.5))
        assert seen[:, 20, 10].tolist() == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decoder_processes_give_each_image_its_view(kind: str) -> None:
    """Also of a JPEG: it is decoded as finely as its view needs."""
    spec = PreprocessSpec(40, 40, fit="stretch", resize="exact")
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, np.arange(640) // 4 % 2 == 0] = 255
    data = encode(Image.fromarray(stripes), kind)
    views: dict[int, View] = {0: WHOLE, 1: (0.4, 0.4, 0.5, 0.5), 2: (0.5, 0.45, 0.6, 0.55)}
    with DecoderPool(DecodeSpec(), spec, 2) as pool:
        found = {
            d.index: d.crops
            for d in pool.decode_many(((n, data) for n in views), lambda n: Part(views[n]))
        }
    for number, view in views.items():
        [alone] = decode_frames(data, DecodeSpec(), spec, part=Part(view))
        [sent] = found[number]
        np.testing.assert_array_equal(sent.x_CHW, alone.x_CHW)
        assert bool(sent.x_CHW.std() > 100) is (number > 0)
