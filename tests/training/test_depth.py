"""Training and scoring with --depth 16: what 8 bits cannot show is learnt, and no step rounds."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.config.scoring import ScoreConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.face import load
from imgcls.image.crops import decode_one
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.bundle import read_bundle
from imgcls.runs.latest import read_latest
from imgcls.scoring.driver import score
from imgcls.training.augment.geometric import NUM_DRAWS, augment, build_recipe
from imgcls.training.driver import train
from tests.image.decoding import encode

SIDE_PX = 24
# 128 of 255, and half a step of 8 bits in 65,535.
_MIDDLE, _HALF_STEP = 128 * 257, 128


def fine_picture(number: int, kind: str) -> bytes:
    """Stripes across or down that are less than half a step of 8 bits high: there it is flat."""
    rng = np.random.default_rng(number)
    stripes = np.where(np.arange(SIDE_PX) // 3 % 2, 90, -90)[:, None] * np.ones(SIDE_PX, int)
    image_HW = _MIDDLE + (stripes if kind == "across" else stripes.T)
    image_HW = image_HW + rng.integers(-30, 31, image_HW.shape)
    assert np.abs(image_HW - _MIDDLE).max() < _HALF_STEP
    return encode(Image.fromarray(image_HW.astype(np.uint16)), "PNG")


def write(root: Path, numbers: range, *, in_folders: bool) -> Path:
    for number in numbers:
        kind = ("across", "down")[number % 2]
        folder = root / kind if in_folders else root
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}-{number}.png").write_bytes(fine_picture(number, kind))
    return root


def config(tmp_path: Path, **values: Any) -> TrainConfig:
    usual = {
        "arch": "simple_cnn", "image_px": str(SIDE_PX), "epochs": 4, "batch_size": 8, "lr": 0.01,
        "color": "gray", "gray_range": "declared", "allow_leaks": True, "num_decoders": 1,
        "augment": "none", "flip": "both", "depth": 16,
    }  # fmt: skip
    return TrainConfig(str(tmp_path / "data"), str(tmp_path / "registry"), "m", **(usual | values))


def test_what_eight_bits_do_not_show_is_learnt_and_scored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "data", range(60), in_folders=True)
    with pytest.raises(ConfigError, match=r"nearly blind.*--depth 16"):
        train(config(tmp_path, depth=8))
    caplog.set_level(logging.INFO)
    result = train(config(tmp_path, cache="ram"))
    assert result["accuracy"] == result["test_accuracy"] == 1
    assert "--depth 16 rounds nothing: the levels of the files" in caplog.text
    assert "4 times the memory" in caplog.text
    bundle = read_bundle(str(result["uri"]))
    assert bundle.golden_x_BCHW.dtype == torch.float32
    assert (bundle.golden_x_BCHW % 1 != 0).any()
    night = write(tmp_path / "night", range(60, 76), in_folders=False)
    output = tmp_path / "out"
    scored = score(ScoreConfig(str(night), str(result["model"]), str(output), executor="local"))
    rows = read_latest(str(output)).to_pylist()
    assert len(rows) == scored["rows_ok"] == 16
    assert all(row["class_name"] in row["uri"] for row in rows)
    assert "few_levels" not in scored["greys"]
    with load(str(result["model"])) as model:
        [of_bytes] = model.predict([(night / "down-61.png").read_bytes()])
        [of_array] = model.predict([np.full((SIDE_PX, SIDE_PX), 128, np.uint8)])
    assert (of_bytes.class_name, of_array.status) == ("down", "ok")


def test_no_resize_and_no_change_rounds() -> None:
    """A mean of bytes has a fraction, too."""
    data = encode(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), "u1")), "PNG"
    )
    square = PreprocessSpec(20, 20, fit="pad", resize="longest", pad_color=(7,))
    tiles = PreprocessSpec(32, 32, fit="tiles", resize="exact", overlap_px=4)
    for spec in (square, tiles):
        deep, plain = DecodeSpec(depth=16), DecodeSpec()
        exact, rounded = (decode_one(data, each, spec) for each in (deep, plain))
        with DecoderPool(deep, spec, 1) as pool:
            [pooled] = pool.decode_many([(0, data)])
        for one, other, sent in zip(exact, rounded, pooled.crops, strict=True):
            assert (one.x_CHW.dtype, other.x_CHW.dtype) == (np.float32, np.uint8)
            assert np.abs(one.x_CHW - other.x_CHW).max() <= 1
            np.testing.assert_array_equal(one.x_CHW, sent.x_CHW)
    assert (decode_one(data, deep, square)[0].x_CHW % 1 != 0).mean() > 0.5
    x_BCHW = torch.full((2, 1, 8, 8), 128.4)
    x_BCHW[:, :, ::2] += 0.2
    changed = augment(x_BCHW, torch.full((2, NUM_DRAWS), 0.5), build_recipe("light", "both"))
    assert changed.dtype == torch.float32
    assert 128.3 < changed.min() < changed.max() < 128.7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"depth": 12}, "--depth 12"),
        ({"policy": "augmix"}, "--policy augmix: must be none with --depth 16"),
        ({"precision": "bf16"}, "--precision bf16: must be fp32 with --depth 16"),
        ({"precision": "fp16"}, "--precision fp16: must be fp32 with --depth 16"),
    ],
)
def test_what_would_round_is_refused(flags: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(config(tmp_path, **flags))
