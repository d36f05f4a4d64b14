"""Golden files prove decoding and preprocessing, in the decoder processes of the machine."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from imgcls.errors import BundleError
from imgcls.image.crops import decode_one
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.pixel_check import check_pixels
from imgcls.model.bundle import Bundle
from imgcls.model.bundle_files import GOLDEN_FILES
from imgcls.model.golden_files import make_files, pack_files, unpack_files
from tests.kit.small_bundle import make_small_bundle

SPEC = PreprocessSpec(32, 48, fit="pad", resize="longest")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A bundle whose golden files and input belong together."""
    files = make_files()
    crops = [decode_one(data, DecodeSpec(), SPEC)[0].x_CHW for data in files.values()]
    return replace(
        make_small_bundle(),
        preprocess_spec=SPEC,
        golden_x_BCHW=torch.from_numpy(np.stack(crops)),
        attachments={GOLDEN_FILES: pack_files(files)},
    )


def check(bundle: Bundle, decode: DecodeSpec, preprocess: PreprocessSpec) -> None:
    with DecoderPool(decode, preprocess, 1) as pool:
        check_pixels(bundle, pool)


def test_the_machine_that_made_them_passes_and_a_bundle_of_before_has_none(bundle: Bundle) -> None:
    check(bundle, DecodeSpec(), SPEC)
    check(replace(bundle, attachments={}), DecodeSpec(), SPEC)


@pytest.mark.parametrize(
    ("decode", "preprocess"),
    [
        (DecodeSpec(), replace(SPEC, filter="bicubic")),
        (DecodeSpec(), replace(SPEC, crop_place="top_left")),
        (DecodeSpec(), replace(SPEC, pad_color=(4,))),
        (DecodeSpec(), PreprocessSpec(32, 48)),
        (DecodeSpec(gray_range="min_max"), SPEC),
    ],
    ids=["filter", "place", "padding", "cut", "greys"],
)
def test_another_way_to_decode_or_preprocess_is_refused(
    bundle: Bundle, decode: DecodeSpec, preprocess: PreprocessSpec
) -> None:
    with pytest.raises(BundleError, match=r"golden file .* does not give the pixels .* of 255"):
        check(bundle, decode, preprocess)


def test_files_are_of_every_kind_the_same_each_time_and_survive_the_zip() -> None:
    files = make_files()
    assert {name.partition(".")[2] for name in files} == {"jpg", "png", "16.png", "gray.png", "dcm"}
    assert make_files() == files
    assert unpack_files(pack_files(files)) == files
    assert sum(map(len, files.values())) < 1 << 20
