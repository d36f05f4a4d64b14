"""What a training sees of its pictures, by its flags."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.config.choices import parse_image_px
from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError
from imgcls.image.png import encode_png
from imgcls.image.preprocess import preprocess
from imgcls.training.planning.fit import build_preprocess_spec
from imgcls.training.planning.make_plan import make_plan

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)


def strips(root: Path, size: tuple[int, int] = (160, 40)) -> Path:
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = root / ("good" if number % 2 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        image_HWC = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(image_HWC))
    return root


def config(data: Path, **values: Any) -> TrainConfig:
    registry = str(data.parent / "reg")
    usual = {"arch": "simple_cnn", "image_px": "32", "batch_size": 8, "num_decoders": 1}
    return TrainConfig(str(data), registry, "strips", **(usual | values))


def test_by_default_the_ends_of_a_strip_reach_the_model() -> None:
    plain = np.full((40, 160, 3), 128, np.uint8)
    ends = plain.copy()
    ends[:, :50], ends[:, -50:] = 255, 0
    for fit, differs in (("auto", True), ("pad", True), ("stretch", True), ("crop", False)):
        spec = build_preprocess_spec(config(Path("d"), fit=fit), MEAN, STD)
        found = [preprocess(image_HWC, spec) for image_HWC in (plain, ends)]
        assert np.array_equal(*found) is not differs, fit


def test_padding_is_nothing_to_the_model() -> None:
    spec = build_preprocess_spec(config(Path("d"), fit="pad"), MEAN, STD)
    x_CHW = preprocess(np.full((40, 160, 3), 255, np.uint8), spec)
    assert x_CHW[:, 0, 0].tolist() == [102, 128, 153]
    assert (x_CHW[:, 12:20] == 255).all()
    assert (x_CHW == 255).all(axis=(0, 2)).sum() == 8


def test_padding_does_not_count_among_the_colours(tmp_path: Path) -> None:
    data = strips(tmp_path / "data")
    by_fit = {fit: make_plan(config(data, fit=fit)).preprocess_spec for fit in ("pad", "stretch")}
    assert by_fit["pad"].mean == by_fit["stretch"].mean
    assert by_fit["pad"].std == by_fit["stretch"].std


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop", "tiles"])
def test_height_and_width_are_apart(fit: str) -> None:
    values = config(Path("d"), fit=fit, image_px="100x300")
    spec = build_preprocess_spec(values, MEAN, STD)
    assert spec.shape_CHW == (3, 100, 300)
    if fit != "tiles":
        assert preprocess(np.zeros((40, 160, 3), np.uint8), spec).shape == (3, 100, 300)


@pytest.mark.parametrize("text", ["", "0", "224x", "x224", "224X224", "-5", "12.5", "0x3", "ten"])
def test_an_image_px_that_is_none_names_both_ways_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"such as 224, or HEIGHTxWIDTH, such as 400x1600"):
        parse_image_px(text)


def test_a_cut_that_leaves_less_than_asked_for_is_refused_and_can_be_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = strips(tmp_path / "data")
    with pytest.raises(ConfigError, match="25% of a picture") as refused:
        make_plan(config(data, fit="crop"))
    flag, _, value = str(refused.value).rpartition(" ")
    assert flag.endswith("--min-seen-fraction")
    assert not (tmp_path / "reg").exists()
    make_plan(config(data, fit="crop", min_seen_fraction=float(value)))
    with caplog.at_level(logging.INFO):
        make_plan(config(data))
    assert "the model sees the whole picture: nothing is cut off; shrunk 5.0 times" in caplog.text
    assert "--augment light zooms into the model's input, not into the picture" in caplog.text
