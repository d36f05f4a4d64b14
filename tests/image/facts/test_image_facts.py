"""What is measured of an image tells its looks, its depth, and what its greys lost."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from imgcls.image.crops import Crop, decode_one, facts_of
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.facts.image_facts import ImageFacts
from imgcls.image.facts.thumbnail import encode_thumbnail, needs_picture
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from tests.kit.greys import DEEP, SIDE_PX, ct_without_window, dicom, scene

CUT = PreprocessSpec.for_image_px(128)
PADDED = PreprocessSpec(128, 128, fit="pad", resize="longest", pad_color=(255,))
STRETCHED = PreprocessSpec(128, 128, fit="stretch", resize="exact")
GRAY = DecodeSpec(color="gray")


def gray_spec(spec: PreprocessSpec) -> PreprocessSpec:
    return dataclasses.replace(spec, mean=(0.5,), std=(0.2,), channels=1)


def encode(image: Image.Image, name: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, name, quality=95)
    return out.getvalue()


def told(data: bytes, spec: PreprocessSpec = PADDED, **decode: object) -> ImageFacts:
    crop = decode_one(data, DecodeSpec(**decode), spec, "facts")[0]  # type: ignore[arg-type]
    [found] = facts_of([crop], spec)
    return found


def blotches(size: tuple[int, int] = (300, 200), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 160, (20, 30, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.NEAREST)


def test_brightness_contrast_and_levels_are_those_of_the_whole_picture() -> None:
    image = blotches()
    green = np.asarray(image)[:, :, 1].astype(float)
    for spec in (PADDED, STRETCHED):
        found = told(encode(image), spec)
        assert found.looks.brightness == pytest.approx(green.mean(), abs=3)
        assert found.looks.contrast == pytest.approx(green.std(), rel=0.15)
        assert 80 < found.looks.levels <= 256
        assert (found.source.bits, found.source.levels, found.source.modality) == (8, None, "")
    flat = told(encode(Image.new("RGB", (300, 200), (7, 90, 200))))
    assert (
        flat.looks.brightness,
        flat.looks.contrast,
        flat.looks.levels,
        flat.looks.sharpness,
    ) == (90, 0, 1, 0)


def test_padding_is_not_measured() -> None:
    strip = blotches((400, 40))
    shades = [
        told(encode(strip), dataclasses.replace(PADDED, pad_color=(shade,))) for shade in (0, 255)
    ]
    assert shades[0] == shades[1]


def test_a_blurred_picture_is_less_sharp_and_a_dark_one_darker() -> None:
    image = blotches()
    plain = told(encode(image))
    blurred = told(encode(image.filter(ImageFilter.GaussianBlur(4))))
    dark = told(encode(image.point(lambda value: value - 45)))
    assert blurred.looks.sharpness < plain.looks.sharpness / 4
    assert dark.looks.brightness == pytest.approx(plain.looks.brightness - 45, abs=0.5)


@pytest.mark.parametrize(("name", "bits"), list(zip(DEEP, (16, 16, 16, 32), strict=True)))
def test_deep_greys_tell_how_many_values_they_had_and_how_many_are_left(
    name: str, bits: int
) -> None:
    found = told(DEEP[name][1](3), gray_spec(PADDED), color="gray")
    assert found.source.bits == bits
    assert found.source.levels is not None
    assert found.source.levels > 300
    assert found.looks.levels < 32, "by what the file declares hardly any is left"
    assert found.source.gray_rule == "declared"
    assert found.source.modality == ("CT" if "CT" in name else "")


def test_a_window_of_the_file_and_its_padding_are_seen() -> None:
    values = scene(1, -200, 300)
    values[:8] = -2000
    data = dicom(values, "CT", WindowCenter=50, WindowWidth=500, PixelPaddingValue=-976)
    plain = dicom(scene(1, -200, 300), "CT", WindowCenter=50, WindowWidth=500)
    found, other = (told(d, gray_spec(PADDED), color="gray") for d in (data, plain))
    assert found.source.gray_rule == other.source.gray_rule == "file"
    assert found.looks.levels > 150
    assert found.source.levels is not None
    assert found.source.levels <= (other.source.levels or 0), "padding is one value more"


def test_a_hostile_modality_is_left_out() -> None:
    for text in ("<B>", "ct", "CT; DROP"):
        with pytest.warns(UserWarning, match="Invalid value for VR"):
            data = dicom(scene(1, 0, 9), text)
        assert told(data, gray_spec(PADDED), color="gray").source.modality == ""


def test_bits_of_deep_colours_are_those_of_the_file() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
    import imagecodecs

    assert told(imagecodecs.png_encode(values)).source.bits == 16


@pytest.mark.parametrize("spec", [CUT, PADDED])
def test_decoder_processes_give_the_same_facts_and_pictures(spec: PreprocessSpec) -> None:
    files = [encode(blotches((310, 170), seed), "JPEG") for seed in range(6)]
    files.append(ct_without_window(0))
    here = [decode_one(data, DecodeSpec(), spec, "facts")[0] for data in files]
    with DecoderPool(DecodeSpec(), spec, 2, look="facts") as pool:
        there = {found.index: found.crops[0] for found in pool.decode_many(enumerate(files))}
    for index, crop in enumerate(here):
        other = there[index]
        np.testing.assert_array_equal(crop.x_CHW, other.x_CHW)
        assert facts_of([crop], spec) == facts_of([other], spec)
        assert crop.looks == other.looks
        assert crop.seen == other.seen
        assert crop.source == other.source
        if spec is CUT:
            np.testing.assert_array_equal(crop.picture_HWC, other.picture_HWC)
        else:
            assert crop.picture_HWC is None


def test_facts_of_many_are_those_of_each() -> None:
    sizes = [(300, 200), (200, 300), (400, 20), (50, 60), (300, 200), (700, 3), (1, 1)]
    files = [encode(blotches(size, seed)) for seed, size in enumerate(sizes)]
    for spec in (CUT, PADDED, STRETCHED):
        crops = [decode_one(data, DecodeSpec(), spec, "facts")[0] for data in files]
        together = facts_of(crops, spec)
        assert together == [facts_of([crop], spec)[0] for crop in crops]
        assert len({facts.looks for facts in together}) == len(sizes)


def test_a_look_changes_no_pixel_and_none_costs_nothing() -> None:
    data = encode(blotches())
    plain, looked = (decode_one(data, DecodeSpec(), CUT, look)[0] for look in ("none", "facts"))
    np.testing.assert_array_equal(plain.x_CHW, looked.x_CHW)
    assert plain.seen is None
    assert plain.picture_HWC is None


def test_crops_survive_json() -> None:
    for look in ("none", "facts", "ranges"):
        crop = decode_one(ct_without_window(0), GRAY, gray_spec(CUT), look)[0]  # type: ignore[arg-type]
        source = json.loads(json.dumps(crop.source))
        again = Crop.from_source(crop.x_CHW, source, crop.picture_HWC)
        assert (again.seen, again.looks) == (crop.seen, crop.looks)
        assert again.source == crop.source


def half_red(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, (250, 10, 10))
    image.paste((10, 10, 250), (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("spec", [CUT, PADDED, STRETCHED])
@pytest.mark.parametrize("size", [(900, 300), (120, 400), (50, 30), (2000, 1500), (700, 3)])
def test_a_thumbnail_shows_the_whole_picture_in_its_shape(
    spec: PreprocessSpec, size: tuple[int, int]
) -> None:
    crop = decode_one(encode(half_red(size)), DecodeSpec(), spec, "facts")[0]
    assert (crop.picture_HWC is not None) == needs_picture(DecodeSpec(), spec)
    data = encode_thumbnail(crop.x_CHW, crop.picture_HWC, size, spec)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        shrink = min(1, 160 / max(size))
        assert image.size == tuple(max(1, round(side * shrink)) for side in size)
        pixels = np.asarray(image.convert("RGB")).astype(int)
    width = pixels.shape[1]
    assert pixels[:, : width // 3, 0].mean() > 200 > 60 > pixels[:, : width // 3, 2].mean()
    assert pixels[:, -(width // 3) :, 2].mean() > 200


def test_a_thumbnail_holds_no_metadata_and_greys_stay_grey() -> None:
    crop = decode_one(ct_without_window(0), DecodeSpec(), PADDED, "facts")[0]
    data = encode_thumbnail(crop.x_CHW, None, (SIDE_PX, SIDE_PX), PADDED)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_tiles_share_the_facts_and_the_picture_of_their_frame() -> None:
    tiles = PreprocessSpec(64, 64, fit="tiles", resize="exact", overlap_px=8)
    data = encode(half_red((400, 150)))
    with DecoderPool(DecodeSpec(), tiles, 1, look="facts") as pool:
        [found] = pool.decode_many([(0, data)])
    first, *others = found.crops
    assert len(others) > 10
    assert first.looks is not None
    assert first.looks.brightness == 10, "of green"
    assert first.picture_HWC is not None
    assert all(crop.looks is None and crop.picture_HWC is None for crop in others)
    with Image.open(
        io.BytesIO(encode_thumbnail(first.x_CHW, first.picture_HWC, (400, 150), tiles))
    ) as image:
        assert image.size == (160, 60)


def test_each_frame_has_its_facts_and_picture() -> None:
    frames = [Image.new("L", (60, 40), shade) for shade in (10, 120, 240)]
    out = io.BytesIO()
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    with DecoderPool(DecodeSpec(frames="all"), CUT, 1, look="facts") as pool:
        [found] = pool.decode_many([(0, out.getvalue())])
    assert [facts.looks.brightness for facts in facts_of(found.crops, CUT)] == [10, 120, 240]
    assert [
        int(crop.picture_HWC.mean()) for crop in found.crops if crop.picture_HWC is not None
    ] == [10, 120, 240]


@pytest.mark.parametrize(
    ("size", "spec", "most_wrong"),
    [
        # One pixel in twelve of each side, of noise with a deviation of 70: means of 64.
        ((1600, 400), dataclasses.replace(CUT, fit="tiles", resize_px=0, overlap_px=8), 12.0),
        ((2000, 1500), CUT, 22.0),  # 16 of 256
        ((500, 375), CUT, 55.0),  # 2 of 16, for its price; one alone is wrong by 70
    ],
)
def test_a_small_picture_is_a_mean_and_no_single_pixels(
    size: tuple[int, int], spec: PreprocessSpec, most_wrong: float
) -> None:
    noise_HW = np.random.default_rng(3).integers(0, 250, size[::-1], dtype=np.uint8)
    data = encode(Image.fromarray(noise_HW))
    crop = decode_one(data, GRAY, gray_spec(spec), "facts")[0]
    assert crop.picture_HWC is not None
    step = round(max(size) / 128)
    rows, columns = (side // step for side in noise_HW.shape)
    mean_HW = noise_HW[: rows * step, : columns * step].reshape(rows, step, columns, step)
    wrong_HW = crop.picture_HWC[:rows, :columns, 0] - mean_HW.mean(axis=(1, 3))
    assert np.sqrt((wrong_HW**2).mean()) < most_wrong
    if crop.looks is not None:  # those of its pixels: a mean has another contrast
        assert crop.looks.contrast == pytest.approx(72, rel=0.1)
