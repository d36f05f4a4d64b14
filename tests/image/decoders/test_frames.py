"""Limits hold per frame, and what a row says of a bad sequence names the frame."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.errors import DecoderCrashError, DecodeTimeoutError
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec

PREPROCESS = PreprocessSpec.for_image_px(32)
WALL_LIMIT_S = 1.0
Decode = Callable[..., list[Decoded]]
# Found by the site module of a decoder: a file's last word says what its frames do.
FAULT = """
import ctypes, re, time
import imgcls.image.crops as module
iter_images = module.iter_images
def misbehave(data, spec, wanted_size, begin_frame):
    def begin(index):
        begin_frame(index)
        for verb, what in re.findall(rb"!(\\w+) ([\\d.]+)", data[-40:]):
            if verb == b"each":
                time.sleep(float(what))
            if verb == b"hang" and index == int(what):
                time.sleep(60)
            if verb == b"crash" and index == int(what):
                ctypes.string_at(0)
    yield from iter_images(data, spec, wanted_size, begin)
module.iter_images = misbehave
"""


def sequence(num_frames: int, does: str = "") -> bytes:
    frames = [Image.new("RGB", (40, 30), (i, 0, 0)) for i in range(num_frames)]
    out = io.BytesIO()
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    return out.getvalue() + does.encode()


@pytest.fixture
def decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Decode:
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*files: bytes, frames: str = "all") -> list[Decoded]:
        spec = DecodeSpec(frames=frames)  # type: ignore[arg-type]  # one of its choices
        with DecoderPool(spec, PREPROCESS, 2, wall_limit_s=WALL_LIMIT_S) as pool:
            results = {r.index: r for r in pool.decode_many(enumerate(files))}
        return [results[index] for index in range(len(files))]

    return run


def test_a_long_sequence_may_take_longer_than_the_limit_of_a_frame(decode: Decode) -> None:
    [result] = decode(sequence(12, "!each 0.15"))
    assert result.error is None
    assert [crop.frame for crop in result.crops] == list(range(12))
    assert [int(np.median(crop.x_CHW[0])) for crop in result.crops] == list(range(12))


def test_a_frame_beyond_the_limit_is_named(decode: Decode) -> None:
    other, result = decode(sequence(3), sequence(9, "!hang 4"))
    assert other.error is None
    assert isinstance(result.error, DecodeTimeoutError)
    assert str(result.error) == "not decoded within 1 s, at frame 4"


def test_the_sum_grows_with_the_frames_and_ends_what_is_endless(decode: Decode) -> None:
    [result] = decode(sequence(40, "!each 0.6"))
    assert isinstance(result.error, DecodeTimeoutError)
    told = re.fullmatch(r"not decoded within ([\d.]+) s, at frame (\d)", str(result.error))
    assert told is not None
    num_begun = int(told[2]) + 1
    assert num_begun >= 2
    assert float(told[1]) == pytest.approx(WALL_LIMIT_S * (1 + 0.2 * num_begun))


def test_a_crash_names_the_frame(decode: Decode) -> None:
    other, result = decode(sequence(3), sequence(9, "!crash 5"))
    assert other.error is None
    assert isinstance(result.error, DecoderCrashError)
    assert str(result.error) == "the decoder process died on it twice (signal 11, at frame 5)"


def test_the_middle_frame_is_named_and_a_single_image_has_none(decode: Decode) -> None:
    [middle] = decode(sequence(9, "!hang 4"), frames="middle")
    assert str(middle.error) == "not decoded within 1 s, at frame 4"
