"""HEIC as phones write it: colours, turning, the primary picture, alpha, deep greys."""

import sys

import numpy as np
import numpy.typing as npt
import pytest

from imgcls.config.operations import DoctorConfig
from imgcls.errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from imgcls.image.decode import decode
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.operations.doctor import doctor
from tests.image.formats import heic_files

Y, X = np.mgrid[:32, :48]
RGB = np.stack([X * 5, Y * 8, (X + Y) * 3], -1).astype(np.uint8)
LOSSY = 6  # the files are of quality 95


def assert_close(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= LOSSY


def test_a_picture_has_its_colours() -> None:
    [image] = decode(heic_files.RGB, DecodeSpec())
    assert_close(image.image_HWC, RGB)
    assert (image.width_px, image.height_px, image.frame) == (48, 32, None)


def test_a_turned_picture_is_turned_once() -> None:
    [image] = decode(heic_files.TURNED, DecodeSpec())
    assert_close(image.image_HWC, RGB[::-1].swapaxes(0, 1))
    assert (image.width_px, image.height_px) == (32, 48)


def test_of_several_pictures_the_first_asked_for_is_the_primary_one() -> None:
    [first] = decode(heic_files.TWO, DecodeSpec())
    assert_close(first.image_HWC, 255 - RGB)
    every = decode(heic_files.TWO, DecodeSpec(frames="all"))
    assert [image.frame for image in every] == [0, 1]
    assert_close(every[0].image_HWC, RGB)
    assert_close(every[1].image_HWC, 255 - RGB)


def test_transparent_pixels_lie_on_the_background() -> None:
    [image] = decode(heic_files.ALPHA, DecodeSpec(alpha_background=(9, 8, 7)))
    assert_close(image.image_HWC[:, :22], RGB[:, :22])
    assert_close(image.image_HWC[:, 26:], np.full((32, 22, 3), (9, 8, 7), np.uint8))


@pytest.mark.parametrize("data", [heic_files.GRAY, heic_files.GRAY10], ids=["8", "10"])
def test_greys_of_8_and_10_bits(data: bytes) -> None:
    [image] = decode(data, DecodeSpec(color="gray"))
    expected = X * 5 if data is heic_files.GRAY else np.rint(X * 1365 / 257)
    assert_close(image.image_HWC[:, :, 0], expected.astype(np.uint8))


def test_damage_and_size_are_told() -> None:
    for cut in (40, 300, len(heic_files.RGB) - 60):
        with pytest.raises(CorruptImageError):
            decode(heic_files.RGB[:cut], DecodeSpec())
    with pytest.raises(ImageTooLargeError, match="48 x 32"):
        decode(heic_files.RGB, DecodeSpec(max_pixels=1000))


def test_a_coding_that_the_library_lacks_is_unsupported() -> None:
    other = heic_files.RGB.replace(b"hvc1", b"vvc1")
    with pytest.raises(UnsupportedImageError, match="HEIF"):
        decode(other, DecodeSpec())


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif.as_plugin", None)
    with pytest.raises(UnsupportedImageError, match=r"pip install 'imgcls\[heif\]'"):
        decode(heic_files.RGB, DecodeSpec())
    assert "imgcls[heif]" in doctor(DoctorConfig())["formats"]["HEIF"]


def test_doctor_has_decoded_one() -> None:
    assert doctor(DoctorConfig())["formats"]["HEIF"].startswith("ok (pi-heif ")


def test_pixels_within_the_sandbox_are_the_same() -> None:
    files = [heic_files.RGB, heic_files.TURNED, heic_files.TWO, heic_files.ALPHA, heic_files.GRAY10]
    spec, preprocess = DecodeSpec(frames="all"), PreprocessSpec.for_image_px(24)
    with DecoderPool(spec, preprocess, 1) as pool:
        assert pool.unconfined() == ""
        results = {r.index: r for r in pool.decode_many(enumerate(files))}
    for index, data in enumerate(files):
        expected = decode_one(data, spec, preprocess)
        assert results[index].error is None
        for crop, other in zip(results[index].crops, expected, strict=True):
            np.testing.assert_array_equal(crop.x_CHW, other.x_CHW)
