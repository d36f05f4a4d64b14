"""Tiles cover every pixel, in pixels of the picture as displayed; many crops come of one decode."""

import io
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import ImageTooLargeError
from imgcls.image.crops import decode_one
from imgcls.image.decoders import pool as pool_module
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.fit.tiles import cut_tiles, most_crops, tile_places
from imgcls.image.spec import DecodeSpec, PreprocessSpec

GRAY = DecodeSpec(color="gray")


def tiles(side_px: int = 64, overlap_px: int = 16, *, channels: int = 1) -> PreprocessSpec:
    values = (0.5,) * channels
    return PreprocessSpec(
        side_px,
        side_px,
        fit="tiles",
        overlap_px=overlap_px,
        channels=channels,
        mean=values,
        std=values,
    )


def png(image_HW: np.ndarray, orientation: int | None = None) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(image_HW).save(out, "PNG", exif=exif)
    return out.getvalue()


def noise(height_px: int, width_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height_px, width_px), dtype=np.uint8)


SIZES = [(1600, 400), (400, 1600), (64, 64), (65, 64), (1, 1), (63, 200), (113, 112), (1000, 64)]


@pytest.mark.parametrize(("width_px", "height_px"), SIZES)
@pytest.mark.parametrize("overlap_px", [0, 16, 63])
def test_every_pixel_and_every_object_of_the_overlap_lies_in_a_tile(
    width_px: int, height_px: int, overlap_px: int
) -> None:
    places = tile_places(width_px, height_px, tiles(64, overlap_px))
    covered = np.zeros((height_px, width_px), bool)
    for x, y, w, h in places:
        assert (w, h) == (min(64, width_px), min(64, height_px))
        assert x >= 0 <= y
        assert x + w <= width_px
        assert y + h <= height_px
        covered[y : y + h, x : x + w] = True
    assert covered.all()
    for axis, whole_px in ((0, width_px), (1, height_px)):
        starts = sorted({place[axis] for place in places})
        assert all(64 - (b - a) >= overlap_px for a, b in pairwise(starts))
        fewest = 1 if whole_px <= 64 else -(-(whole_px - overlap_px) // (64 - overlap_px))
        assert len(starts) == fewest


def test_tiles_put_together_are_the_picture() -> None:
    image_HW = noise(150, 333)
    again_HW = np.zeros_like(image_HW)
    crops = decode_one(png(image_HW), GRAY, tiles())
    for crop in crops:
        assert crop.place is not None
        x, y, w, h = crop.place
        again_HW[y : y + h, x : x + w] = crop.x_CHW[0, :h, :w]
        assert (crop.width_px, crop.height_px, crop.sample, crop.frame) == (333, 150, 0, None)
    assert np.array_equal(again_HW, image_HW)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_places_are_of_the_picture_as_displayed(orientation: int) -> None:
    stored_HW = np.zeros((90, 200), np.uint8)
    stored_HW[10:14, 150:160] = 255
    data = png(stored_HW, orientation)
    [whole] = decode_one(data, GRAY, tiles(200, 0))
    shown_HW = whole.x_CHW[0, : whole.height_px, : whole.width_px]
    at_y, at_x = np.argwhere(shown_HW == 255).min(axis=0)
    found = [crop for crop in decode_one(data, GRAY, tiles(64, 16)) if crop.x_CHW.max() == 255]
    assert found
    for crop in found:
        assert crop.place is not None
        y, x = np.argwhere(crop.x_CHW[0] == 255).min(axis=0)
        assert (crop.place[0] + x, crop.place[1] + y) >= (at_x, at_y)
    best = max(found, key=lambda crop: int((crop.x_CHW == 255).sum()))
    assert best.place is not None
    y, x = np.argwhere(best.x_CHW[0] == 255).min(axis=0)
    assert (best.place[0] + x, best.place[1] + y) == (at_x, at_y)


def test_a_picture_smaller_than_a_tile_is_padded_and_its_place_is_all_of_it() -> None:
    [crop] = decode_one(png(np.full((30, 50), 9, np.uint8)), GRAY, tiles())
    assert crop.place == (0, 0, 50, 30)
    assert crop.x_CHW[0, :30, :50].min() == 9
    assert crop.x_CHW.sum() == 9 * 30 * 50  # the rest is pad_color, black


def test_a_jpeg_is_cut_in_its_full_size() -> None:
    out = io.BytesIO()
    Image.fromarray(noise(512, 1024)).save(out, "JPEG")
    crops = decode_one(out.getvalue(), GRAY, tiles(32, 0))
    assert len(crops) == 16 * 32


def test_decoder_processes_give_the_same_tiles_as_this_one() -> None:
    images = [noise(100 + 40 * n, 300 - 20 * n) for n in range(5)]
    spec = tiles()
    with DecoderPool(GRAY, spec, 2) as pool:
        found = {d.index: d.crops for d in pool.decode_many(enumerate(map(png, images)))}
    for index, image_HW in enumerate(images):
        expected = decode_one(png(image_HW), GRAY, spec)
        assert [c.source for c in found[index]] == [c.source for c in expected]
        for ours, theirs in zip(found[index], expected, strict=True):
            assert np.array_equal(ours.x_CHW, theirs.x_CHW)


def test_more_tiles_than_one_file_may_have_is_too_large_by_name() -> None:
    with pytest.raises(ImageTooLargeError, match="1024 tiles of 8 x 8, more than the 1000"):
        list(cut_tiles(np.zeros((256, 256, 1), np.uint8), tiles(8, 0), 1000))
    assert most_crops(DecodeSpec(frames="all"), PreprocessSpec.for_image_px(32)) == 1024


def test_tiles_that_nobody_takes_yet_hold_decoding_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_MAX_DONE_BYTES", 200_000)
    data = png(np.zeros((128, 512), np.uint8))
    num_read = 0

    def items() -> Iterator[tuple[int, bytes]]:
        nonlocal num_read
        for index in range(60):
            num_read += 1
            yield index, data

    with DecoderPool(GRAY, tiles(64, 0), 1) as pool:
        stream = pool.decode_many(items())
        next(stream)
        held_up_at = num_read
        time.sleep(1.0)
        assert num_read <= held_up_at + 20
        assert len(list(stream)) == 59
