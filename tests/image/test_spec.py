"""Specs: complete, strict, and every field in the digest."""

import dataclasses
import json
from typing import Any

import pytest

from imgcls.errors import BundleError
from imgcls.image.spec import DecodeSpec, PreprocessSpec, spec_digest
from imgcls.image.versions import DECODER_VERSIONS, versions_here

PREPROCESS = PreprocessSpec.for_image_px(224)
OTHER_VALUES: dict[str, Any] = {
    "color": "gray",
    "alpha_background": (0, 0, 0),
    "icc": "srgb",
    "gray_range": "bits",
    "gray_bits": 12,
    "gray_window": (0.0, 4095.0),
    "gray_ranges": (("", 0.0, 4095.0), ("CT", -1024.0, 3071.0)),
    "depth": 16,
    "frames": "all",
    "max_frames": 7,
    "max_pixels": 1000,
    "dct_scaling": False,
    "dicom_window": "lung",
    "dicom_window_index": 1,
}
# Each differs from PREPROCESS in one thing, with what that needs.
OTHER_PREPROCESS: list[dict[str, Any]] = [
    {"height_px": 200},
    {"width_px": 400},
    {"fit": "pad", "resize": "longest", "resize_px": 0},
    {"fit": "stretch", "resize": "exact", "resize_px": 0},
    {"fit": "tiles", "overlap_px": 32},
    {"resize": "exact", "resize_px": 0},
    {"resize_px": 230},
    {"filter": "bicubic"},
    {"antialias": False},
    {"arithmetic": "torch"},
    {"arithmetic": "pillow_exact"},
    {"crop_fraction": 0.9, "resize_px": 0},
    {"crop_place": "center_floor"},
    {"pad_color": (1, 2, 3)},
    {"input_range": (-1.0, 1.0)},
    {"mean": (0.5, 0.5, 0.5)},
    {"std": (0.5, 0.5, 0.5)},
    {"channels": 1, "mean": (0.5,), "std": (0.5,)},
]


def test_specs_survive_json() -> None:
    for spec in (DecodeSpec(), DecodeSpec(**OTHER_VALUES), PREPROCESS):
        values = json.loads(json.dumps(spec.to_dict()))
        assert type(spec).from_dict(values) == spec


def test_every_field_changes_the_digest() -> None:
    fields = {field.name for field in dataclasses.fields(DecodeSpec)} - {"decoder_version"}
    assert fields == set(OTHER_VALUES)
    digests = {spec_digest(DecodeSpec(), PREPROCESS)}
    for name, value in OTHER_VALUES.items():
        digests.add(spec_digest(dataclasses.replace(DecodeSpec(), **{name: value}), PREPROCESS))
    fields = {field.name for field in dataclasses.fields(PreprocessSpec)}
    assert {name for change in OTHER_PREPROCESS for name in change} == fields
    for change in OTHER_PREPROCESS:
        changed = dataclasses.replace(PREPROCESS, **change)
        digests.add(spec_digest(DecodeSpec(), changed))
    assert len(digests) == 1 + len(OTHER_VALUES) + len(OTHER_PREPROCESS)


@pytest.mark.parametrize("change", [{}, *OTHER_PREPROCESS])
def test_every_preprocess_spec_survives_json(change: dict[str, Any]) -> None:
    spec = dataclasses.replace(PREPROCESS, **change)
    assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


# As version 1 wrote them, one with every value other than usual.
VERSION_1 = [
    {
        "image_px": 224, "resize_px": 256, "interpolation": "bilinear", "antialias": True,
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
    {
        "image_px": 90, "resize_px": 117, "interpolation": "bilinear", "antialias": True,
        "mean": [0.1307], "std": [0.3081],
    },
]  # fmt: skip


@pytest.mark.parametrize("values", VERSION_1)
def test_version_1_is_read_and_written_back_byte_by_byte(values: dict[str, Any]) -> None:
    spec = PreprocessSpec.from_dict(values)
    assert json.dumps(spec.to_dict()) == json.dumps(values)
    side = values["image_px"]
    assert spec.shape_CHW == (len(values["mean"]), side, side)
    assert (spec.fit, spec.resize, spec.resize_px) == ("crop", "shortest", values["resize_px"])


def test_what_version_1_cannot_express_is_of_version_2() -> None:
    values = dataclasses.replace(PREPROCESS, width_px=300).to_dict()
    assert values["version"] == 2
    with pytest.raises(BundleError, match="of version 3; this imgcls reads 1 and 2"):
        PreprocessSpec.from_dict(values | {"version": 3})


@pytest.mark.parametrize(
    "change",
    [
        {"fit": "squash"},
        {"fit": "pad"},
        {"fit": "stretch", "resize": "shortest", "resize_px": 0},
        {"resize_px": -1},
        {"crop_fraction": 0.0},
        {"crop_fraction": 0.9},
        {"channels": 1},
        {"channels": 2, "mean": (0.5,), "std": (0.5,)},
        {"std": (0.0, 0.1, 0.1)},
        {"pad_color": (256,)},
        {"pad_color": (1, 2)},
        {"input_range": (1.0, 1.0)},
        {"overlap_px": 8},
        {"height_px": 0},
        {"filter": "spline"},
        {"crop_place": "left"},
    ],
)
def test_what_a_preprocess_spec_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="spec: "):
        dataclasses.replace(PREPROCESS, **change)


# Of a bundle that commit 27535e0 trained: bundle.json as it wrote it, and the digest in its rows.
DECODE_27535E0 = {
    "color": "rgb", "alpha_background": [255, 255, 255], "icc": "ignore", "gray_range": "declared",
    "gray_bits": 16, "gray_window": [0.0, 65535.0], "frames": "first", "max_frames": 1024,
    "max_pixels": 50000000, "dct_scaling": True, "dicom_window": "file", "dicom_window_index": 0,
    "decoder_version": 1,
}  # fmt: skip
DIGEST_27535E0 = "56322f9dd48e89fbd96b0b6b2e172bf6d12f163b320ad0124d83f4e20c220a8c"


def test_a_bundle_of_an_earlier_version_loads_with_its_digest_and_names_what_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for moved in ({}, {"tiff": 2}, {"tiff": 3, "png": 2}):
        for family in DECODER_VERSIONS:
            monkeypatch.setitem(DECODER_VERSIONS, family, moved.get(family, 1))
        earlier = DecodeSpec.from_dict(DECODE_27535E0)
        assert earlier.to_dict() == DECODE_27535E0
        assert spec_digest(earlier, PREPROCESS) == DIGEST_27535E0
        assert earlier.moved_formats() == sorted(moved)


def test_the_versions_of_the_code_are_in_the_digest_of_what_is_trained_with_it() -> None:
    plain = DecodeSpec(decoder_version=())
    assert plain.to_dict()["decoder_version"] == 1
    assert spec_digest(plain, PREPROCESS) == DIGEST_27535E0
    later = {**plain.to_dict(), "decoder_version": {"tiff": 99}}
    here = DECODER_VERSIONS["tiff"]
    with pytest.raises(BundleError, match=f"decoder_version 99 of tiff, .* by version {here}"):
        DecodeSpec.from_dict(later)
    with pytest.raises(BundleError, match="decoder_version 2 of jpegxs"):
        DecodeSpec.from_dict({**later, "decoder_version": {"jpegxs": 2}})


def test_a_bundle_keeps_the_versions_it_was_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in DECODER_VERSIONS:
        monkeypatch.setitem(DECODER_VERSIONS, family, 2 if family == "tiff" else 1)
    trained = DecodeSpec.from_dict({**DECODE_27535E0, "decoder_version": {"tiff": 2}})
    assert trained == DecodeSpec(decoder_version=versions_here())
    assert DecodeSpec.from_dict(json.loads(json.dumps(trained.to_dict()))) == trained
    assert trained.moved_formats() == []
    assert spec_digest(trained, PREPROCESS) != DIGEST_27535E0
    monkeypatch.setitem(DECODER_VERSIONS, "png", 2)
    assert trained.moved_formats() == ["png"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sharpen": 1}, "unknown fields sharpen"),
        ({"color": "bgr"}, "color='bgr'"),
        ({"frames": 1}, "frames=1"),
        ({"decoder_version": 0}, "decoder_version=0"),
        ({"decoder_version": True}, "decoder_version=True"),
        ({"decoder_version": {"tiff": 1}}, "decoder_version="),
        ({"decoder_version": {}}, "decoder_version="),
        ({"max_pixels": "many"}, "max_pixels='many'"),
        ({"max_pixels": True}, "max_pixels=True"),
        ({"gray_bits": 0}, "gray_bits=0"),
        ({"gray_window": [5.0, 5.0]}, "gray_window"),
        ({"alpha_background": [0, 0]}, "alpha_background"),
        ({"alpha_background": [0, 0, 256]}, "alpha_background"),
        ({"color": "gray", "dicom_window": "lung_soft_bone"}, "dicom_window"),
    ],
)
def test_what_a_spec_cannot_be_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        DecodeSpec.from_dict({**DecodeSpec().to_dict(), **change})


def test_a_spec_that_lacks_a_field_is_refused() -> None:
    values = PREPROCESS.to_dict()
    del values["mean"]
    with pytest.raises(BundleError, match="missing fields mean"):
        PreprocessSpec.from_dict(values)


@pytest.mark.parametrize(("image_px", "resize_px"), [(224, 256), (32, 32), (96, 110), (95, 95)])
def test_the_usual_resize(image_px: int, resize_px: int) -> None:
    assert PreprocessSpec.for_image_px(image_px).resize_px == resize_px
