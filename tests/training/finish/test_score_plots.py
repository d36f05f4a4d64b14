"""Pictures for people: what they mark, and that they can be drawn of anything."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from imgcls.metrics.measures import Ranking
from imgcls.metrics.operating_point import measure_point, operating_point
from imgcls.training.finish import errors_sheet, plots, score_plots
from imgcls.training.finish.errors_sheet import WrongImage, as_seen, draw_errors, worst_errors
from imgcls.training.finish.plots import draw_plots
from imgcls.training.finish.score_plots import (
    ClassScores,
    _curve,
    histogram,
    roc_and_precision,
)


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def _scores(name: str = "crack $x", num: int = 80, *, with_point: bool = True) -> ClassScores:
    rng = np.random.default_rng(0)
    positive_B = np.arange(num) % 4 == 0
    score_B = np.clip(rng.normal(0.3 + 0.3 * positive_B, 0.15), 0, 1)
    auroc, ap = Ranking(positive_B, score_B)(np.ones((1, num)))
    point = operating_point(score_B, positive_B, name, "recall", 0.8, None, 0)
    counted: dict[str, Any] = measure_point(point, score_B, positive_B)
    shown = (point, counted) if with_point else (None, None)
    return ClassScores(name, "good", score_B, positive_B, auroc[0], ap[0], *shown)


def test_the_area_under_the_curve_that_is_drawn_is_the_auroc() -> None:
    scores = _scores()
    found, alarms, precision = _curve(scores)
    assert np.trapezoid(found, alarms) == pytest.approx(scores.auroc)
    assert (np.diff(found) * precision[1:]).sum() == pytest.approx(scores.average_precision)


def test_a_class_with_a_point_and_several_without_are_drawn() -> None:
    with_point = _pixels(roc_and_precision([_scores()], "test"))
    without = _pixels(roc_and_precision([_scores(with_point=False)], "test"))
    assert with_point.shape == without.shape
    assert (with_point != without).any()
    many = [_scores(f"class {k}", with_point=False) for k in range(12)]
    assert _pixels(roc_and_precision(many, "test")).shape[1] > 1000
    assert (_pixels(histogram(_scores(), "test")) != 255).any()


def test_the_worst_errors_are_those_it_was_surest_of() -> None:
    target_BK = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    predicted_BK = np.array([[0, 1], [1, 0], [1, 0], [1, 0]], bool)
    probs_BK = np.array([[0.4, 0.6], [0.9, 0.1], [0.99, 0.01], [0.7, 0.3]])
    assert worst_errors(target_BK, predicted_BK, probs_BK) == [2, 3, 0]


@pytest.mark.parametrize(("channels", "num_wrong"), [(1, 1), (3, 7)])
def test_the_sheet_shows_the_pictures_themselves(channels: int, num_wrong: int) -> None:
    green = np.zeros((channels, 20, 30), np.uint8)
    green[channels // 2] = 200
    wrong = [WrongImage(f"a/very/long/path/{'x' * 60}/{i}.png", green, "good", "bad", 0.9)
             for i in range(num_wrong)]  # fmt: skip
    sheet = _pixels(draw_errors(wrong, num_wrong, 50, "test"))
    color = [0, 200, 0] if channels == 3 else [200, 200, 200]
    share = (sheet == color).all(axis=2).mean()
    assert share > 0.1


def test_pictures_of_units_speak_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def texts_of(figure: Figure) -> bytes:
        figure.draw_without_rendering()
        told.extend(text.get_text() for text in figure.findobj(Text) if text.get_text())
        return b""

    for module in (score_plots, errors_sheet, plots):
        monkeypatch.setattr(module, "to_png", texts_of)
    scores = replace(_scores(with_point=False), other_name="", answered="units")
    roc_and_precision([scores], "test")
    histogram(scores, "test")
    grey = np.zeros((1, 8, 8), np.uint8)
    draw_errors([WrongImage("a.png", grey, "good", "bad", 0.9)], 1, 50, "test", "units")
    one = {"low": 0.9, "high": 1.0, "confidence": 0.95, "accuracy": 1.0, "count": 3}
    draw_plots([], 0, {"test": {"reliability": [one], "of_units": {}}})
    assert "1 of 50 test units is wrong" in " ".join(told)
    assert {"other units", "units (20)", "units", "Scores of 80 test units\n"} <= set(told)
    assert not [text for text in told if "image" in text]


def test_tiles_of_one_picture_are_shown_side_by_side() -> None:
    tiles = np.stack([np.full((3, 8, 8), value, np.uint8) for value in (10, 20, 30)])
    seen = as_seen(tiles)
    assert [seen[0, 0, 0], seen[0, 0, 12], seen[0, 12, 0]] == [10, 20, 30]
    assert (as_seen(tiles[:1]) == tiles[0]).all()
