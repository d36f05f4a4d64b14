"""Specs: complete, strict, and every field in the digest."""

import dataclasses
import json
from typing import Any

import pytest

from imgcls.errors import BundleError
from imgcls.image.spec import DECODER_VERSION, DecodeSpec, PreprocessSpec, spec_digest

PREPROCESS = PreprocessSpec.for_image_px(224)
OTHER_VALUES: dict[str, Any] = {
    "color": "gray",
    "alpha_background": (0, 0, 0),
    "icc": "srgb",
    "gray_range": "bits",
    "gray_bits": 12,
    "gray_window": (0.0, 4095.0),
    "frames": "all",
    "max_frames": 7,
    "max_pixels": 1000,
    "dct_scaling": False,
    "dicom_window": "lung",
    "dicom_window_index": 1,
}


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
    others = {"image_px": 200, "resize_px": 230, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    for name, value in others.items():
        changed = dataclasses.replace(PREPROCESS, **{name: value})
        digests.add(spec_digest(DecodeSpec(), changed))
    assert len(digests) == 1 + len(OTHER_VALUES) + len(others)


def test_the_version_of_the_code_is_in_the_digest_and_another_one_is_refused() -> None:
    assert DecodeSpec().to_dict()["decoder_version"] == DECODER_VERSION
    with pytest.raises(BundleError, match="decoder_version"):
        DecodeSpec.from_dict({**DecodeSpec().to_dict(), "decoder_version": DECODER_VERSION + 1})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sharpen": 1}, "unknown fields sharpen"),
        ({"color": "bgr"}, "color='bgr'"),
        ({"frames": 1}, "frames=1"),
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
