"""DICOM: pydicom's files against pydicom's own pixel tools, and made-up traps."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    get_decoder,
)
from pydicom.uid import UID

from imgcls.errors import (
    CorruptImageError,
    DecodeError,
    ImageTooLargeError,
    NotAnImageError,
    UnsupportedImageError,
)
from imgcls.image.decode import decode
from imgcls.image.formats.dicom.plugins import NATIVE, PLUGINS, plugins_here
from imgcls.image.spec import DecodeSpec
from tests.image.formats.dicom.objects import ROW, gray, make, pydicom

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


SHIPPED = sorted(
    path
    for path in (Path(pydicom.__file__).parent / "data").rglob("*")
    if path.is_file() and path.read_bytes()[128:132] == b"DICM"
)


def reference(dataset: Any, index: int, plugin: str) -> np.ndarray[Any, Any]:
    """Stored values, modality, window, polarity: float [H,W,C] 0..255, by pydicom alone."""
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    stored, says = decoder.as_array(dataset, index=index, decoding_plugin=plugin)
    photometric = says["photometric_interpretation"]
    if photometric == "PALETTE COLOR":
        colors = apply_color_lut(stored, dataset)
        return colors / np.iinfo(colors.dtype).max * 255.0
    if stored.ndim == 3:
        return stored / (2.0 ** says["bits_stored"] - 1) * 255.0
    real = apply_modality_lut(stored, dataset).astype(np.float64)
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = low * slope + intercept, high * slope + intercept
    shown = apply_voi_lut(real, dataset, index=0, prefer_lut=True)
    if dataset.get("VOILUTSequence"):
        low, high = 0, 2.0 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    gray = (shown - low) / (high - low) * 255.0
    if photometric == "MONOCHROME1":
        gray = 255.0 - gray
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        limit = dataset.get("PixelPaddingRangeLimit", padding)
        gray[(stored >= min(padding, limit)) & (stored <= max(padding, limit))] = 0
    return gray[:, :, np.newaxis]


def test_shipped_files_match_pydicoms_own_pixel_tools() -> None:
    compared: dict[str, list[str]] = {}
    for path in SHIPPED:
        try:
            found = decode(path.read_bytes(), DecodeSpec(frames="all"))
        except DecodeError:
            continue
        dataset = pydicom.dcmread(path)
        syntax = dataset.file_meta.TransferSyntaxUID
        plugins = PLUGINS.get(syntax, ("",))
        available = get_decoder(syntax).available_plugins
        plugin = next((p for p in plugins if p in available), "")
        assert len(found) == int(dataset.get("NumberOfFrames") or 1)
        for index, image in enumerate(found):
            expected = np.clip(np.rint(reference(dataset, index, plugin)), 0, 255)
            difference = np.abs(image.image_HWC.astype(float) - expected)
            # pydicom scales to a window's output range first: a half may round the other way
            assert difference.max() <= 1, f"{path.name} frame {index}"
            assert (difference > 0).mean() < 0.02, f"{path.name} frame {index}"
        compared.setdefault(str(dataset.PhotometricInterpretation), []).append(path.name)
        compared.setdefault(syntax.name, []).append(path.name)
    assert {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_RCT"} <= set(
        compared
    )
    for uid in (*NATIVE, "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80",
                "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90",
                "1.2.840.10008.1.2.4.91"):  # fmt: skip
        assert UID(uid).name in compared, f"no shipped file of {UID(uid).name} decodes"
    assert len({name for names in compared.values() for name in names}) >= 70


def test_objects_of_kinds_without_pixels_are_not_images() -> None:
    names = ("DICOMDIR", "reportsi.dcm", "test-SR.dcm", "rtplan.dcm", "waveform_ecg.dcm")
    paths = [path for path in SHIPPED if path.name in names]
    assert {path.name for path in paths} == set(names)
    for path in paths:
        with pytest.raises(NotAnImageError, match="holds no image"):
            decode(path.read_bytes(), DecodeSpec())


def test_without_a_window_bits_stored_is_the_range() -> None:
    assert gray(make(ROW, BitsStored=12)) == [0, 64, 128, 255]
    assert gray(make(ROW)) == [0, 4, 8, 16]
    assert gray(make(ROW), gray_range="bits", gray_bits=12) == [0, 64, 128, 255]


def test_signed_pixels_and_rescale() -> None:
    signed = np.array([[-2048, 0, 2047]], np.int16)
    assert gray(make(signed, BitsStored=12)) == [0, 128, 255]
    rescaled = make(
        ROW,
        BitsStored=12,
        RescaleSlope=1,
        RescaleIntercept=-1024,
        WindowCenter=0.5,
        WindowWidth=2049,
    )
    assert gray(rescaled) == [0, 128, 255, 255]


def test_monochrome1_is_inverted_exactly_once() -> None:
    plain = gray(make(ROW, BitsStored=12))
    inverted = [255 - value for value in plain]
    for attributes in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        assert gray(make(ROW, BitsStored=12, **attributes)) == inverted
    assert gray(make(ROW, BitsStored=12, PresentationLUTShape="IDENTITY")) == plain


def test_padding_is_black_whatever_the_polarity() -> None:
    padded = make(
        ROW, BitsStored=12, PixelPaddingValue=4095, PhotometricInterpretation="MONOCHROME1"
    )
    assert gray(padded) == [255, 191, 127, 0]
    span = make(ROW, BitsStored=12, PixelPaddingValue=1000, PixelPaddingRangeLimit=3000)
    assert gray(span) == [0, 0, 0, 255]


def test_the_spec_chooses_the_window() -> None:
    data = make(
        ROW, BitsStored=12, WindowCenter=[1024.5, 3000], WindowWidth=[2049, 2], Modality="MR"
    )
    assert gray(data) == [0, 128, 255, 255]
    assert gray(data, dicom_window_index=1) == [0, 0, 0, 255]
    assert gray(data, dicom_window_index=9) == [0, 0, 0, 255]
    assert gray(data, dicom_window="none") == [0, 64, 128, 255]
    assert gray(data, dicom_window="lung") == [0, 128, 255, 255], "CT windows are for CT only"


def test_window_functions() -> None:
    x = np.array([[0, 500, 1000]], np.uint16)
    exact = make(x, WindowCenter=500, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    assert gray(exact) == [0, 128, 255]
    sigmoid = make(x, WindowCenter=500, WindowWidth=1000, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (x.astype(float) - 500) / 1000))
    assert gray(sigmoid) == np.rint(expected).astype(int).ravel().tolist()
    linear = gray(make(x, WindowCenter=500, WindowWidth=1000))
    unknown = make(x, WindowCenter=500, WindowWidth=1000, VOILUTFunction="LINEAR_EXAKT")
    assert gray(unknown) == linear


def test_ct_windows_in_hounsfield_units() -> None:
    hounsfield = np.array([[-1350, -600, 40, 400, 1300]], np.int16)
    data = make(hounsfield, Modality="CT", WindowCenter=0, WindowWidth=2)
    assert gray(data, dicom_window="lung") == [0, 128, 236, 255, 255]
    [three] = decode(data, DecodeSpec(dicom_window="lung_soft_bone"))
    assert three.image_HWC.shape == (1, 5, 3)
    assert three.image_HWC[0, :, 0].tolist() == gray(data, dicom_window="lung")
    assert three.image_HWC[0, :, 1].tolist() == gray(data, dicom_window="soft_tissue")
    assert three.image_HWC[0, :, 2].tolist() == gray(data, dicom_window="bone")


def test_enhanced_multi_frame_takes_rescale_and_window_from_its_groups() -> None:
    stored = np.stack([ROW] * 3)

    def item(**values: Any) -> Any:
        dataset = Dataset()
        for name, value in values.items():
            setattr(dataset, name, value)
        return dataset

    per_frame = [
        item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=2)])
        for center in (1000, 3000, 9000)
    ]
    rescale = item(RescaleSlope=2, RescaleIntercept=0, RescaleType="US")
    data = make(
        stored,
        BitsStored=12,
        SharedFunctionalGroupsSequence=[item(PixelValueTransformationSequence=[rescale])],
        PerFrameFunctionalGroupsSequence=per_frame,
    )
    found = decode(data, DecodeSpec(color="gray", frames="all"))
    assert [image.frame for image in found] == [0, 1, 2]
    assert [image.image_HWC.ravel().tolist() for image in found] == [
        [0, 255, 255, 255],
        [0, 0, 255, 255],
        [0, 0, 0, 0],
    ]
    [middle] = decode(data, DecodeSpec(color="gray", frames="middle"))
    assert (middle.frame, middle.image_HWC.ravel().tolist()) == (1, [0, 0, 255, 255])


def test_a_transfer_syntax_without_decoder_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make(ROW)
    unknown = data.replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.9\x00")
    with pytest.raises(UnsupportedImageError, match="is not read"):
        decode(unknown, DecodeSpec())
    uid = "1.2.840.10008.1.2.4.70"
    monkeypatch.setitem(PLUGINS, uid, ("gdcm",))
    decoder = get_decoder(UID(uid))
    monkeypatch.setattr(decoder, "_available", {})
    [lossless] = [path for path in SHIPPED if path.name == "SC_rgb_jpeg_gdcm.dcm"]
    with pytest.raises(UnsupportedImageError, match="pip install python-gdcm"):
        decode(lossless.read_bytes(), DecodeSpec())
    assert any("missing" in how for how in plugins_here().values())


def test_size_is_checked_before_pixels() -> None:
    data = make(ROW, Rows=60000, Columns=60000)
    with pytest.raises(ImageTooLargeError, match="60000 x 60000"):
        decode(data, DecodeSpec())
    with pytest.raises(ImageTooLargeError, match="4096 frames"):
        decode(make(ROW, NumberOfFrames=4096), DecodeSpec(frames="all"))


def test_no_reason_repeats_what_identifies_a_patient() -> None:
    whole = make(ROW, BitsStored=12)
    rng = np.random.default_rng(0)
    reasons = []
    for _ in range(300):
        damaged = bytearray(whole)
        for position in rng.integers(132, len(whole), 3):
            damaged[position] ^= 1 << int(rng.integers(0, 8))
        try:
            decode(bytes(damaged[: int(rng.integers(132, len(whole) + 1))]), DecodeSpec())
        except DecodeError as error:
            reasons.append(str(error))
    assert len(reasons) > 100
    assert not any("Secret" in reason or "4711" in reason for reason in reasons)


def test_truncated_pixels_are_corrupt() -> None:
    whole = make(np.zeros((40, 40), np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cut in (10, 800, 1600, 3199):
            with pytest.raises(CorruptImageError):
                decode(whole[:-cut], DecodeSpec())


def item(**values: Any) -> Any:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset
