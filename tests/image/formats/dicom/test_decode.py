"""DICOM: pydicom's files against pydicom's own pixel tools, and made-up traps."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402 - after the check that it is there
from pydicom.pixels import (  # noqa: E402
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    get_decoder,
)
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage  # noqa: E402

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


def make(stored: np.ndarray[Any, Any], **attributes: Any) -> bytes:
    """Write a minimal object around stored values, uint or int, [H,W], [F,H,W] or [H,W,3]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID = "Somebody^Secret", "4711"
    is_color = stored.shape[-1] == 3 and stored.ndim == 3
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    frames = stored if stored.ndim == 3 and not is_color else stored[np.newaxis]
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.BitsAllocated = 8 * stored.itemsize
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes() + b"\x00" * (stored.nbytes % 2)
    for name, value in attributes.items():
        setattr(dataset, name, value)
    if "BitsStored" in attributes and "HighBit" not in attributes:
        dataset.HighBit = dataset.BitsStored - 1
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def gray(data: bytes, **fields: Any) -> list[int]:
    [found] = decode(data, DecodeSpec(color="gray", **fields))
    values: list[int] = found.image_HWC.ravel().tolist()
    return values


ROW = np.array([[0, 1024, 2048, 4095]], np.uint16)


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


@pytest.mark.parametrize(("center", "width"), [(0.25, 0.5), (0.5, 1), (0.05, 0.1)])
def test_a_window_over_fractions_is_no_threshold(center: float, width: float) -> None:
    stored = np.arange(256, dtype=np.uint16).reshape(1, 256) * 100
    slope = width / 25500
    data = make(stored, RescaleSlope=f"{slope:.10g}", WindowCenter=center, WindowWidth=width)
    found = np.array(gray(data)) - (center - width / 2) / width * -255
    np.testing.assert_allclose(found, np.arange(256), atol=1)
    threshold = make(ROW, WindowCenter=1024, WindowWidth=1)
    assert gray(threshold) == [0, 255, 255, 255], "of integers it is one, by the standard"


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 40), (-1000, 3000), (5, 6)])
def test_a_float_map_is_no_threshold(keyword: str, low: float, high: float) -> None:
    kind = np.float32 if keyword == "FloatPixelData" else np.float64
    values = np.linspace(low, high, 256, dtype=kind).reshape(1, 256)

    def float_map(**attributes: Any) -> bytes:
        dataset = pydicom.dcmread(io.BytesIO(make(np.zeros((1, 256), np.uint16), **attributes)))
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del dataset[name]
        setattr(dataset, keyword, values.tobytes())
        dataset.BitsAllocated = 8 * values.itemsize
        out = io.BytesIO()
        pydicom.dcmwrite(out, dataset, enforce_file_format=True)
        return out.getvalue()

    np.testing.assert_allclose(gray(float_map()), np.arange(256), atol=1)
    window = {"WindowCenter": (low + high) / 2, "WindowWidth": high - low}
    np.testing.assert_allclose(gray(float_map(**window)), np.arange(256), atol=1)


EMPTY_LUT = {"LUTDescriptor": None, "LUTData": None}


@pytest.mark.parametrize(
    "beside",
    [
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": -5},
        {"WindowCenter": "", "WindowWidth": ""},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"VOILUTSequence": [EMPTY_LUT]},
        {"VOILUTSequence": [EMPTY_LUT, {}], "ModalityLUTSequence": [{}]},
    ],
)
def test_what_shows_nothing_counts_as_not_there(beside: dict[str, Any]) -> None:
    beside = {
        name: [lut_item(**of) for of in value] if isinstance(value, list) else value
        for name, value in beside.items()
    }
    assert gray(make(ROW, BitsStored=12, **beside)) == gray(make(ROW, BitsStored=12))
    if "WindowWidth" not in beside:
        window = {"WindowCenter": 1024, "WindowWidth": 2048}
        found = gray(make(ROW, BitsStored=12, **beside, **window))
        assert found == gray(make(ROW, BitsStored=12, **window))
    second = {**beside, "WindowCenter": [0, 1024], "WindowWidth": [0, 2048]}
    expected = gray(make(ROW, BitsStored=12, WindowCenter=1024, WindowWidth=2048))
    assert gray(make(ROW, BitsStored=12, **second)) == expected


def lut_item(**values: Any) -> Any:
    dataset = Dataset()
    for name, value in values.items():
        dataset.add_new(name, "US" if name == "LUTDescriptor" else "OW", value)
    return dataset


NATIVE_ORDERS = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"]


def rewrite(data: bytes, uid: str, **attributes: Any) -> bytes:
    """Write an object again in another byte order: pydicom swaps pixels, here tables are, too."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    for name, value in attributes.items():
        if name.endswith("Descriptor"):
            dataset.add_new(name, "US", value)
        else:
            setattr(dataset, name, value)
    dataset.file_meta.TransferSyntaxUID = UID(uid)
    out = io.BytesIO()
    is_little = UID(uid).is_little_endian
    if not is_little and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    pydicom.dcmwrite(out, dataset, implicit_vr=False, little_endian=is_little,
                     enforce_file_format=True)  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize("uid", NATIVE_ORDERS)
@pytest.mark.parametrize(("bits", "dtype"), [(16, "u2"), (8, "u1"), (16, "u1")])
@pytest.mark.parametrize("count", [256, 1000])
def test_palettes_of_every_order_and_depth(uid: str, bits: int, dtype: str, count: int) -> None:
    top = 255 if dtype == "u1" else 65535
    red = np.linspace(0, top, count).astype(int)
    tables = {"Red": red, "Green": red[::-1], "Blue": np.full(count, top)}
    order = "<" if UID(uid).is_little_endian else ">"
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, entries in tables.items():
        if bits == 8:
            packed = entries.astype("u1").view("<u2").astype(f"{order}u2").tobytes()
        else:
            packed = entries.astype(f"{order}u2").tobytes()
        attributes[f"{color}PaletteColorLookupTableDescriptor"] = [count, 0, bits]
        attributes[f"{color}PaletteColorLookupTableData"] = packed
    index = np.arange(count + 5, dtype=np.uint16).reshape(1, -1)  # the last ones lie beyond it
    data = rewrite(make(index, PhotometricInterpretation="MONOCHROME2"), uid, **attributes)
    [found] = decode(data, DecodeSpec())
    expected = np.stack(list(tables.values()), -1)[np.minimum(index[0], count - 1)] / top * 255
    np.testing.assert_allclose(found.image_HWC[0], expected, atol=1)


@pytest.mark.parametrize("uid", NATIVE_ORDERS)
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lookup_tables_of_every_order_and_depth(uid: str, sequence: str, bits: int) -> None:
    entries = np.linspace(0, 2**bits - 1, 4000).astype(np.uint16)
    order = "<" if UID(uid).is_little_endian else ">"
    table = lut_item(LUTDescriptor=[4000, 50, bits])
    table.add_new("LUTData", "OW", entries.astype(f"{order}u2").tobytes())
    stored = np.array([[0, 50, 300, 2050, 4049, 4095]], np.uint16)
    found = gray(rewrite(make(stored), uid, **{sequence: [table]}))
    expected = entries[np.clip(stored[0].astype(int) - 50, 0, 3999)] / (2**bits - 1) * 255
    np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize("high_bit", [11, 12, 15])
@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("coding", ["native", "big", "rle", "jpeg2000", "jpeg_ls", "narrow"])
def test_the_bits_of_a_sample_are_those_that_the_object_says(
    high_bit: int, is_signed: bool, coding: str
) -> None:
    values = np.arange(4096).reshape(64, 64) - (2048 if is_signed else 0)
    rubbish = np.random.default_rng(0).integers(0, 65536, values.shape)
    shift = high_bit - 11
    mask = 0xFFF << shift
    stored = ((values << shift) & mask | rubbish & ~mask & 0xFFFF).astype(np.uint16)
    if coding == "narrow":  # a codec that keeps these 12 bits alone
        stored = (values & 0xFFF).astype(np.uint16)
    whole = {"BitsStored": 12, "HighBit": high_bit, "PixelRepresentation": int(is_signed)}
    dataset = pydicom.dcmread(io.BytesIO(make(stored)))
    if coding in ("rle", "jpeg2000", "narrow"):
        uid = "1.2.840.10008.1.2.5" if coding == "rle" else "1.2.840.10008.1.2.4.90"
        if coding == "narrow":
            dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.compress(UID(uid), generate_instance_uid=False)
    elif coding == "jpeg_ls":
        import imagecodecs
        from pydicom.encaps import encapsulate

        dataset.PixelData = encapsulate([imagecodecs.jpegls_encode(stored)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.80")
    for name, value in whole.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    data = out.getvalue()
    if coding == "big":
        data = rewrite(data, "1.2.840.10008.1.2.2")
    np.testing.assert_array_equal(gray(data), np.rint(np.arange(4096) / 4095 * 255))


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_colours_take_the_range_of_the_spec(bits: int) -> None:
    stored = np.zeros((1, 4, 3), np.uint16)
    stored[0, :, 0], stored[0, :, 2] = (0, 100, 512, 1023), 200
    data = make(stored, BitsStored=bits)
    [found] = decode(data, DecodeSpec())
    np.testing.assert_allclose(found.image_HWC, stored / (2**bits - 1) * 255, atol=0.51)
    [found] = decode(data, DecodeSpec(gray_range="bits", gray_bits=10))
    np.testing.assert_allclose(found.image_HWC, stored / 1023 * 255, atol=0.51)
    [found] = decode(data, DecodeSpec(gray_range="min_max"))
    np.testing.assert_allclose(found.image_HWC, stored / 1023 * 255, atol=0.51)


@pytest.mark.parametrize("is_color", [False, True])
def test_damage_in_a_baseline_jpeg_is_noticed_as_in_a_jpeg(is_color: bool) -> None:
    from PIL import Image
    from pydicom.encaps import encapsulate

    rng = np.random.default_rng(4)
    shape = (90, 120, 3) if is_color else (90, 120)
    picture = np.clip(rng.normal(128, 30, shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=90)
    plain = out.getvalue()
    photometric = "YBR_FULL_422" if is_color else "MONOCHROME2"
    dataset = pydicom.dcmread(io.BytesIO(make(picture, PhotometricInterpretation=photometric)))
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.50")
    num_noticed = 0
    for number in range(40):
        damaged = bytearray(plain)
        if number:
            damaged[int(rng.integers(len(plain) // 2, len(plain) - 2))] ^= 1 << number % 8
        dataset.PixelData = encapsulate([bytes(damaged)])
        dataset["PixelData"].is_undefined_length = True
        out = io.BytesIO()
        pydicom.dcmwrite(out, dataset, enforce_file_format=True)
        statuses = []
        for data in (bytes(damaged), out.getvalue()):
            try:
                decode(data, DecodeSpec())
                statuses.append("ok")
            except DecodeError as error:
                statuses.append(error.status)
        assert statuses[0] == statuses[1]
        assert number or statuses == ["ok", "ok"]
        num_noticed += statuses[1] != "ok"
    assert num_noticed > 3
