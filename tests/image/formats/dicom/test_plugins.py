"""DICOM: every plugin that can, JPEG of 12 bits, names of transfer syntaxes, no header."""

import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.decode import decode
from imgcls.image.decoders.pool import DecoderPool, decode_one
from imgcls.image.formats.dicom.plugins import PLUGINS, plugins_here
from imgcls.image.formats.sniff import family_of
from imgcls.image.spec import DecodeSpec, PreprocessSpec

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels.decoders.base import get_decoder  # noqa: E402
from pydicom.uid import UID  # noqa: E402

H, W = 48, 64
Y, X = np.mgrid[:H, :W]
GRAY = X / (W - 1) * 0.7 + Y / (H - 1) * 0.3
GRAY_8 = np.rint(GRAY * 255).astype(np.uint8)
GRAY_12 = np.rint(GRAY * 4095).astype(np.uint16)
PREFIX = "1.2.840.10008.1.2"
IMPLICIT, EXPLICIT, BIG_ENDIAN = PREFIX, f"{PREFIX}.1", f"{PREFIX}.2"
JPEG_12, JPEG_LS = f"{PREFIX}.4.51", f"{PREFIX}.4.80"


def dataset(pixels: bytes, syntax: str, bits: int, **attributes: Any) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3.4"
    made.Rows, made.Columns, made.SamplesPerPixel = H, W, 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = 8 if bits <= 8 else 16
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, 0
    for name, value in attributes.items():
        setattr(made, name, value)
    made.PixelData = pixels
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"
    return made


def compressed(encoded: bytes, syntax: str, bits: int, **attributes: Any) -> bytes:
    # pydicom writes no syntax that it does not know: another one of the same length stands in.
    padded = syntax.encode() + b"\0" * (len(syntax) % 2)
    stand_in = f"{PREFIX}.4.100" if len(padded) == 24 else JPEG_12
    made = dataset(encapsulate([encoded]), stand_in, bits, **attributes)
    made["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    written = stand_in.encode() + b"\0" * (len(stand_in) % 2)
    assert out.getvalue().count(written) == 1
    return out.getvalue().replace(written, padded)


def native(syntax: str) -> bytes:
    order = ">" if syntax == BIG_ENDIAN else "<"
    out = io.BytesIO()
    dataset(GRAY_12.astype(f"{order}u2").tobytes(), syntax, 12).save_as(
        out, enforce_file_format=True
    )
    return out.getvalue()


def gray(data: bytes) -> npt.NDArray[np.uint8]:
    [image] = decode(data, DecodeSpec(color="gray"))
    return image.image_HWC[:, :, 0]


def assert_gray(data: bytes, tolerance: int = 1) -> None:
    assert np.abs(gray(data).astype(int) - GRAY_8.astype(int)).max() <= tolerance


# ---- plugins -------------------------------------------------------------------------------------


def jpeg_12() -> bytes:
    encoded: bytes = imagecodecs.jpeg_encode(GRAY_12, bitspersample=12, level=98)
    return encoded


@pytest.mark.parametrize("process", ["51", "53", "55"])
def test_jpeg_of_12_bits_is_read(process: str) -> None:
    assert_gray(compressed(jpeg_12(), f"{PREFIX}.4.{process}", 12))


def test_jpeg_of_12_bits_that_lost_samples_is_corrupt() -> None:
    whole = jpeg_12()
    for damaged in (whole[: len(whole) // 2], whole[: len(whole) // 2] + b"\xff\xd9", whole[:-2]):
        with pytest.raises(CorruptImageError):
            decode(compressed(damaged, JPEG_12, 12), DecodeSpec())
    assert_gray(compressed(whole + b"\0\0", JPEG_12, 12))


@pytest.mark.parametrize("bits", [6, 7])
def test_the_next_plugin_is_tried_where_the_first_cannot(bits: int) -> None:
    """GDCM refuses JPEG-LS of 6 and 7 bits."""
    samples = np.rint(GRAY * (2**bits - 1)).astype(np.uint8)
    data = compressed(imagecodecs.jpegls_encode(samples), JPEG_LS, bits)
    expected = np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)
    np.testing.assert_array_equal(gray(data), expected)


def test_the_next_plugin_is_not_tried_where_the_first_finds_damage() -> None:
    encoded = imagecodecs.jpegls_encode(GRAY_8)
    with pytest.raises(CorruptImageError):
        decode(compressed(encoded[: len(encoded) // 2], JPEG_LS, 8), DecodeSpec())


@pytest.mark.parametrize("process", ["57", "70", "80", "81"])
def test_without_gdcm_lossless_greys_are_read_by_imagecodecs(
    process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    syntax = f"{PREFIX}.4.{process}"
    if process in ("57", "70"):
        encoded = imagecodecs.jpeg_encode(GRAY_12, lossless=True, predictor=1, bitspersample=12)
    else:
        encoded = imagecodecs.jpegls_encode(GRAY_12)
    data = compressed(encoded, syntax, 12)
    with_gdcm = gray(data)
    decoder = get_decoder(UID(syntax))
    without = {k: v for k, v in decoder._available.items() if k != "gdcm"}
    assert len(without) < len(decoder._available)
    monkeypatch.setattr(decoder, "_available", without)
    np.testing.assert_array_equal(gray(data), with_gdcm)
    assert_gray(data)


def test_a_frame_that_no_plugin_here_can_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = get_decoder(UID(JPEG_LS))
    only_gdcm = {k: v for k, v in decoder._available.items() if k == "gdcm"}
    monkeypatch.setattr(decoder, "_available", only_gdcm)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    data = compressed(imagecodecs.jpegls_encode(GRAY_8 >> 1), JPEG_LS, 7)
    with pytest.raises(UnsupportedImageError, match=r"pip install 'imgcls\[scientific\]'"):
        decode(data, DecodeSpec())


def test_without_imagecodecs_12_bits_name_it_and_no_gpl_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(get_decoder(UID(JPEG_12)), "_available", {})
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UnsupportedImageError, match=r"pip install 'imgcls\[scientific\]'") as told:
        decode(compressed(jpeg_12(), JPEG_12, 12), DecodeSpec())
    assert "libjpeg" not in str(told.value)
    assert "scientific" in plugins_here()[UID(JPEG_12).name]


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        (f"{PREFIX}.4.110", "JPEG XL Lossless"),
        (f"{PREFIX}.4.111", "JPEG XL JPEG Recompression"),
        (f"{PREFIX}.4.112", "JPEG XL"),
        (f"{PREFIX}.8.1", "Deflated Image Frame"),
        (f"{PREFIX}.4.102", "MPEG-4"),
    ],
)
def test_transfer_syntaxes_that_are_not_read_are_named(uid: str, name: str) -> None:
    with pytest.raises(UnsupportedImageError, match=name):
        decode(compressed(b"\xff\x0a" + bytes(40), uid, 8), DecodeSpec())


def test_rle_of_single_bits_is_whole_and_not_read() -> None:
    rle = f"{PREFIX}.5"
    made = dataset(encapsulate([bytes(64) + bytes(H * W // 8)]), rle, 1, BitsAllocated=1)
    made["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    with pytest.raises(UnsupportedImageError, match="RLE Lossless of 1 x 1 bits"):
        decode(out.getvalue(), DecodeSpec())


def test_every_plugin_named_is_known_to_pydicom() -> None:
    plugins_here()
    for uid, plugins in PLUGINS.items():
        decoder = get_decoder(UID(uid))
        for plugin in plugins:
            assert plugin in (*decoder.available_plugins, *decoder._unavailable), (uid, plugin)


# ---- without preamble, without header ------------------------------------------------------------


def bare(syntax: str) -> bytes:
    whole = native(syntax)
    start = whole.index(b"\x00\x08\x00\x16" if syntax == BIG_ENDIAN else b"\x08\x00\x16\x00")
    return whole[start:]


def with_group_length(data: bytes) -> bytes:
    """As ACR-NEMA's successors began: (0008,0000), the length of the group, implicit."""
    return b"\x08\x00\x00\x00\x04\x00\x00\x00\x2c\x00\x00\x00" + data


WITHOUT = {
    **{f"preamble, {s}": native(s)[132:] for s in (IMPLICIT, EXPLICIT, BIG_ENDIAN)},
    **{f"128 bytes, {s}": native(s)[128:] for s in (IMPLICIT, EXPLICIT, BIG_ENDIAN)},
    **{f"header, {s}": bare(s) for s in (IMPLICIT, EXPLICIT, BIG_ENDIAN)},
    "header, with group length": with_group_length(bare(IMPLICIT)),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_a_file_without_it_is_read(what: str) -> None:
    assert family_of(WITHOUT[what]) == "dicom"
    assert_gray(WITHOUT[what])


def test_compressed_pixels_without_a_header_are_named() -> None:
    whole = compressed(jpeg_12(), JPEG_12, 12)
    with pytest.raises(UnsupportedImageError, match="without its meta header"):
        decode(whole[whole.index(b"\x08\x00\x16\x00") :], DecodeSpec())
    assert_gray(whole[132:])


def test_other_files_are_not_taken_for_dicom() -> None:
    rng = np.random.default_rng(2)
    for start in (b"\x08\x00", b"\x00\x08", b"\x08\x00\x05\x00", b"\x02\x00\x00\x00"):
        for _ in range(200):
            assert family_of(start + rng.bytes(300)) != "dicom"
    for cut in range(40):
        family_of(WITHOUT[f"header, {EXPLICIT}"][:cut])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_to_them_costs_one_row_each_and_pixels_are_those_without_a_sandbox() -> None:
    rng = np.random.default_rng(9)
    files = [*WITHOUT.values(), compressed(jpeg_12(), JPEG_12, 12)]
    num_whole = len(files)
    for data in files[:num_whole]:
        for _ in range(10):
            damaged = bytearray(data)
            for position in rng.integers(4, len(data), 4):
                damaged[position] ^= 1 << int(rng.integers(0, 8))
            files.append(bytes(damaged[: int(rng.integers(20, len(data)))]))
    preprocess = PreprocessSpec.for_image_px(32)
    with DecoderPool(DecodeSpec(), preprocess, 2) as pool:
        pids = pool.pids()
        results = {r.index: r for r in pool.decode_many(enumerate(files))}
        assert pool.pids() == pids
    assert len(results) == len(files)
    for index in range(num_whole):
        [expected] = decode_one(files[index], DecodeSpec(), preprocess)
        np.testing.assert_array_equal(results[index].crops[0].x_CHW, expected.x_CHW)
