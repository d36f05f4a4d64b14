import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import wilson
from imgcls.metrics.measures import Labelled, one_hot
from imgcls.metrics.quality import measure_quality
from imgcls.training.finish.plots import (
    CONFUSION,
    CURVES,
    RELIABILITY,
    confusion,
    curves,
    draw_plots,
)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def metrics_of(num_classes: int, num_images: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    label_B = rng.integers(0, num_classes, num_images)
    logits_BK = rng.normal(size=(num_images, num_classes)) + 3 * np.eye(num_classes)[label_B]
    probs_BK = np.exp(logits_BK)
    probs_BK /= probs_BK.sum(axis=1, keepdims=True)
    names = ClassNames(tuple(f"class with a long name and a $ {k:03d}" for k in range(num_classes)))
    sets = (one_hot(each, num_classes) for each in (label_B, probs_BK.argmax(axis=1)))
    data = Labelled(*sets, names, multi_label=False, probs_BK=probs_BK)
    return measure_quality(data, num_resamples=2)


HISTORY = [
    {"epoch": e, "train_loss": 1 / e, "val_loss": 1.2 / e, "val_accuracy": 1 - 0.5 / e}
    for e in range(1, 6)
]


@pytest.mark.parametrize("num_classes", [2, 100])
def test_every_picture_is_drawn_and_not_empty(num_classes: int) -> None:
    test = metrics_of(num_classes)
    test["calibrated"] = {"reliability": test["reliability"]}
    plots = draw_plots(HISTORY, 4, {"val": metrics_of(num_classes), "test": test})
    assert set(plots) == {CURVES, CONFUSION, RELIABILITY}
    for data in plots.values():
        image_HWC = pixels(data)
        assert 400 <= image_HWC.shape[0] <= 1700
        assert len(np.unique(image_HWC.reshape(-1, 3), axis=0)) > 20


def test_what_there_is_no_number_for_is_left_out() -> None:
    assert draw_plots([], 0, {}) == {}
    without_val = [{"epoch": 1, "train_loss": 0.5}]
    assert set(draw_plots(without_val, 1, {})) == {CURVES}
    sets = {"test": {"accuracy": 0.5}}  # multi-label: no confusion matrix
    assert set(draw_plots(HISTORY, 0, sets)) == {CURVES}


def test_a_picture_that_fails_costs_no_model(caplog: pytest.LogCaptureFixture) -> None:
    broken = {"test": {"confusion_matrix": "none", "class_names": ["a", "b"]}}
    assert set(draw_plots(HISTORY, 0, broken)) == {CURVES}
    assert "confusion.png could not be drawn" in caplog.text


def test_a_confusion_shows_in_its_cell() -> None:
    right, wrong = (pixels(confusion(m, ["a", "b"])) for m in ([[9, 0], [0, 9]], [[0, 9], [0, 9]]))
    assert right.shape == wrong.shape
    assert (right != wrong).any(axis=2).mean() > 0.02


def test_curves_follow_the_numbers() -> None:
    other = [{**numbers, "val_loss": 2.0} for numbers in HISTORY]
    assert (pixels(curves(HISTORY, 4)) != pixels(curves(other, 4))).any()


def test_curves_show_the_training_accuracy_where_it_was_recorded() -> None:
    with_it = [{**numbers, "train_accuracy": 0.5} for numbers in HISTORY]
    assert (pixels(curves(HISTORY, 4)) != pixels(curves(with_it, 4))).any()
    unknown = [{**numbers, "train_accuracy": None} for numbers in HISTORY]
    assert (pixels(curves(HISTORY, 4)) == pixels(curves(unknown, 4))).all()


def test_a_bin_of_few_images_has_a_long_bar() -> None:
    """Against the table in Newcombe 1998, Statistics in Medicine 17: 81/263, 15/148, 0/20, 1/29."""
    for part, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(part / count, count) == pytest.approx((low, high), abs=1e-4)
