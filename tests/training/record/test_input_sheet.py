"""Pictures of what the network gets: the very pixels, and only in the run's folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imgcls.image.crops import decode_one
from imgcls.image.decoders.pool import DecoderPool
from imgcls.training.driver import train
from imgcls.training.planning.make_plan import make_plan
from imgcls.training.record.input_sheet import INPUTS, InputPair, draw_inputs, read_pairs, titles_of
from tests.training.planning.test_fit import config, strips


@pytest.mark.parametrize(
    ("values", "share"), [({}, 1.0), ({"fit": "crop"}, 0.25), ({"fit": "tiles"}, 0.16)]
)
def test_right_hand_pictures_are_the_very_input(
    tmp_path: Path, values: dict[str, Any], share: float
) -> None:
    data = strips(tmp_path / "data")
    plan = make_plan(config(data, min_seen_fraction=0.0, overlap=0, **values))
    with DecoderPool(plan.decode_spec, plan.preprocess_spec, 1) as pool:
        pairs = read_pairs(plan, pool)
    assert len(pairs) == 6
    for pair in pairs:
        [path] = data.rglob(pair.name)
        crops = decode_one(path.read_bytes(), plan.decode_spec, plan.preprocess_spec)
        np.testing.assert_array_equal(pair.x_CHW, crops[len(crops) // 2].x_CHW)
        assert pair.size_px == (160, 40)
        assert (pair.box is None) is (share == 1)
        if pair.box is not None:
            left, top, right, bottom = pair.box
            height, width, _ = pair.source_HWC.shape
            assert (right - left) * (bottom - top) / (height * width) == pytest.approx(share)
    assert draw_inputs(pairs, plan.preprocess_spec).startswith(b"\x89PNG")


def test_sizes_are_width_by_height_on_both_sides() -> None:
    pair = InputPair("a.png", np.zeros((4, 16, 3)), (160, 40), None, np.zeros((3, 20, 50)))
    assert titles_of(pair) == ("a.png, 160 x 40 pixels", "50 x 20 pixels")


def test_pictures_of_data_are_in_the_bundle_only_if_asked_for(tmp_path: Path) -> None:
    data = strips(tmp_path / "data")
    usual = {"epochs": 1, "allow_leaks": True, "augment": "none"}
    result = train(config(data, **usual))
    assert (Path(result["run"]) / INPUTS).exists()
    assert not (Path(result["uri"]) / INPUTS).exists()
    asked = train(config(data, **usual, pictures_in_bundle=True, seed=1))
    assert (Path(asked["uri"]) / INPUTS).exists()
    card = (Path(result["uri"]) / "MODEL_CARD.md").read_text()
    assert "The model sees the whole picture: nothing is cut off; shrunk 5.0 times" in card
