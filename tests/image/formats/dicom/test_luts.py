"""Windows and tables of odd objects, palettes, bits and damage."""

import io
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from imgcls.errors import (
    DecodeError,
)
from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec
from tests.image.formats.dicom.objects import ROW, gray, make, pydicom


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
