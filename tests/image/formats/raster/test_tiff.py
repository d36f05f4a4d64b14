"""TIFF of every order, depth, kind and layout, against the values that were written."""

import contextlib
import io
import itertools
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec
from tests.image.encoders import tiff

HEIGHT, WIDTH = 33, 47
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
GRAY = (X / (WIDTH - 1) * 0.7 + Y / (HEIGHT - 1) * 0.3)[:, :, np.newaxis]
COLOR = np.stack([X / (WIDTH - 1), Y / (HEIGHT - 1), (X + Y) % 32 / 31], axis=2)


def samples(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Values 0..1 as the full range of a type."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return values.astype(kind)
    limits = np.iinfo(kind)
    return np.rint(values * (float(limits.max) - limits.min) + limits.min).astype(kind)


def pixels(data: bytes, **fields: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    [decoded] = decode(data, DecodeSpec(**fields))
    return decoded.image_HWC


LAYOUTS = list(itertools.product("<>", (False, True), (False, True), (0, 8)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_greys(layout: tuple[Any, ...], dtype: str, photometric: int) -> None:
    order, is_separate, is_deflated, rows = layout
    data = tiff(
        samples(GRAY, dtype), order=order, photometric=photometric, is_separate=is_separate,
        is_deflated=is_deflated, rows_per_strip=rows,
    )  # fmt: skip
    if photometric == 0 and (dtype[0] == "i" or (dtype, order) == ("u2", ">")):
        with contextlib.suppress(UnsupportedImageError):  # Pillow alone does not know these
            assert np.abs(pixels(data, color="gray") - (255 - GRAY * 255)).max() <= 1
        return
    found = pixels(data, color="gray").astype(int)
    expected = np.rint(GRAY * 255)
    assert np.abs(found - (expected if photometric else 255 - expected)).max() <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("extra", [(), (0,), (1,), (2,)])
def test_colours(layout: tuple[Any, ...], dtype: str, extra: tuple[int, ...]) -> None:
    order, is_separate, is_deflated, rows = layout
    stored = [COLOR * GRAY if extra == (1,) else COLOR, *([GRAY] if extra else [])]
    data = tiff(
        samples(np.concatenate(stored, axis=2), dtype), order=order, photometric=2,
        is_separate=is_separate, is_deflated=is_deflated, rows_per_strip=rows, extra_samples=extra,
    )  # fmt: skip
    shown = COLOR * GRAY + 1 - GRAY if extra in ((1,), (2,)) else COLOR
    # Without alpha the high byte is kept; with it, 8 bits are composited.
    tolerance = 3 if extra in ((1,), (2,)) else 1
    assert np.abs(pixels(data).astype(int) - shown * 255).max() <= tolerance


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("alpha", [0, 1, 2])
def test_grey_with_alpha(order: str, alpha: int) -> None:
    stored = GRAY * GRAY[::-1] if alpha == 1 else GRAY
    values = samples(np.concatenate([stored, GRAY[::-1]], axis=2), "u1")
    data = tiff(values, order=order, extra_samples=(alpha,))
    shown = GRAY if alpha == 0 else GRAY * GRAY[::-1] + 1 - GRAY[::-1]
    assert np.abs(pixels(data, color="gray").astype(int) - shown * 255).max() <= 3


@pytest.mark.parametrize("is_deflated", [False, True])
def test_planes_that_pillow_cannot_read_are_read_by_tifffile_or_named(
    is_deflated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = samples(np.concatenate([GRAY, GRAY], axis=2), "u1")
    data = tiff(values, is_separate=True, is_deflated=is_deflated, extra_samples=(2,))
    gray = values[:, :, 0].astype(float)
    on_white = np.rint(gray * gray / 255 + 255 - gray)
    assert np.abs(pixels(data, color="gray")[:, :, 0] - on_white).max() <= 1
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnsupportedImageError, match="2 x 8 bits unsigned in separate planes"):
        decode(data, DecodeSpec())


RAW = "camera raw"
PREVIEW = [(254, 4, (1,)), (330, 4, (8,))]
DNG = [(50706, 1, (1, 4, 0, 0))]


@pytest.mark.parametrize(
    ("photometric", "tags"), [(2, PREVIEW), (2, DNG), (2, DNG + PREVIEW), (32803, []), (34892, [])]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_preview_of_a_camera_raw_is_not_the_picture(
    photometric: int, tags: list[Any], order: str
) -> None:
    data = tiff(samples(COLOR, "u1"), photometric=photometric, order=order, tags=tags)
    with pytest.raises(UnsupportedImageError, match=RAW):
        decode(data, DecodeSpec())


def test_a_cr2_is_a_camera_raw() -> None:
    body = tiff(samples(COLOR, "u1"), photometric=2)
    with pytest.raises(UnsupportedImageError, match=RAW):
        decode(body[:4] + b"\x10\x00\x00\x00CR\x02\x00" + pages_at_16(), DecodeSpec())
    assert pixels(body[:8] + b"CR" + body[10:]).shape == (HEIGHT, WIDTH, 3)


def pages_at_16() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "TIFF")
    [at] = np.frombuffer(out.getvalue(), "<u4", 1, 4)
    return bytes(4) + out.getvalue()[int(at) :]


def test_pyramids_keep_their_first_page() -> None:
    data = tiff(samples(COLOR, "u1"), photometric=2, tags=[(330, 4, (8,))])
    np.testing.assert_array_equal(pixels(data), samples(COLOR, "u1"))


@pytest.mark.parametrize("is_old", [False, True])
def test_the_picture_is_the_first_page_that_is_no_thumbnail(is_old: bool) -> None:
    out = io.BytesIO()
    kinds = [TiffImagePlugin.ImageFileDirectory_v2() for _ in range(3)]
    for kind, (new, old) in zip(kinds, ((1, 2), (0, 1), (0, 1)), strict=True):
        kind[255 if is_old else 254] = old if is_old else new
    sizes, greys = ((8, 6), (48, 36), (48, 36)), (10, 20, 30)
    pages = [Image.new("L", size, gray) for size, gray in zip(sizes, greys, strict=True)]
    for page, kind in zip(pages, kinds, strict=True):
        page.encoderinfo = {"tiffinfo": kind}
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:], tiffinfo=kinds[0])
    found = pixels(out.getvalue(), color="gray")
    assert (found.shape[:2], int(found[0, 0, 0])) == ((36, 48), 20)
    every = decode(out.getvalue(), DecodeSpec(color="gray", frames="all"))
    assert [int(image.image_HWC[0, 0, 0]) for image in every] == [10, 20, 30]


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_a_fax_with_a_bad_code_word_is_corrupt(compression: str) -> None:
    rng = np.random.default_rng(2)
    out = io.BytesIO()
    bits = np.kron(rng.integers(0, 2, (40, 60)), np.ones((4, 5))).astype(bool)
    Image.fromarray(bits).save(out, "TIFF", compression=compression)
    whole = out.getvalue()
    assert pixels(whole).shape == (160, 300, 3)
    num_noticed = num_noticed_by_pillow = 0
    for at in range(60, len(whole) // 2, 41):
        damaged = whole[:at] + bytes(32) + whole[at + 32 :]
        try:
            Image.open(io.BytesIO(damaged)).load()
        except OSError:
            num_noticed_by_pillow += 1
        try:
            pixels(damaged)
        except CorruptImageError:
            num_noticed += 1
    assert num_noticed > num_noticed_by_pillow
    assert pixels(whole).shape == (160, 300, 3), "an earlier failure is none of this file"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize(
    ("tags", "is_turned"),
    [
        ({}, False),
        ({274: 1}, False),
        ({274: 6}, True),
        ({700: b'<rdf tiff:Orientation="6"/>'}, True),
        ({274: 1, 700: b'<rdf tiff:Orientation="6"/>'}, False),
    ],
)
def test_a_picture_is_turned_by_its_tag_else_by_its_xmp(
    compression: str, tags: dict[int, Any], is_turned: bool
) -> None:
    stored = np.rint(COLOR * 255).astype(np.uint8)
    kind = TiffImagePlugin.ImageFileDirectory_v2()
    kind.tagtype[700] = 1
    for tag, value in tags.items():
        kind[tag] = value
    out = io.BytesIO()
    Image.fromarray(stored).save(out, "TIFF", compression=compression, tiffinfo=kind)
    [found] = decode(out.getvalue(), DecodeSpec())
    expected = np.rot90(stored, -1) if is_turned else stored
    assert (found.height_px, found.width_px) == expected.shape[:2]
    assert np.array_equal(found.image_HWC, expected)
