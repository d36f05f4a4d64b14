"""The verdict: who is better than guessing, in counts and in words."""

import json
from typing import Any

import numpy as np
import pytest

from imgcls.data.class_names import ClassNames
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint, why_unsupported
from imgcls.metrics.outcomes import Outcomes
from imgcls.metrics.verdict import Prior, Verdict, judge

_NAMES = ClassNames(("normal", "pneumonia"))


def _point(threshold: float, **changes: Any) -> OperatingPoint:
    values = {
        "threshold_id": "pneumonia:recall>=0.8",
        "positive_class": "pneumonia",
        "target": "recall",
        "target_value": 0.8,
        "threshold": threshold,
        "review_low": threshold,
        "review_high": threshold,
        "review_fraction": 0.0,
        "recall": 0.8,
        "recall_interval": None,
        "specificity": 0.8,
        "specificity_interval": None,
        "num_positive": 20,
        "num_negative": 20,
    }
    return OperatingPoint(**{**values, **changes})


def _judge(
    score_B: np.ndarray,
    positive_B: np.ndarray,
    point: OperatingPoint | None = None,
    slices: list[str] | None = None,
    groups: list[str] | None = None,
) -> Verdict:
    """Judge scores of pneumonia; labels are the class on top."""
    outcomes = Outcomes()
    probs_BK = np.stack([1 - score_B, score_B], axis=1)
    for row, (is_positive, score) in enumerate(zip(positive_B, score_B, strict=True)):
        unit = groups[row] if groups else str(row)
        outcomes.add_ok(
            (int(is_positive),), (int(score > 0.5),), unit, slices[row] if slices else ""
        )
    points = (point,) if point else ()
    metrics = outcomes.result(_NAMES, probs_BK)
    fitted = Calibration(1.0, "n", 40, 0.0, 0.0, 0.0, 0.0, points)
    metrics["calibrated"] = outcomes.calibrated(fitted, _NAMES, probs_BK)
    prior = Prior(np.array([130, 70]), 200)
    return judge("test", outcomes, _NAMES, prior, metrics, points)


def test_a_model_that_calls_everything_normal_is_not_better_than_guessing() -> None:
    """15 of 42 show it, all are called normal, and their order is that of chance."""
    score_B = np.random.default_rng(4).uniform(0, 0.4, 42)
    verdict = _judge(score_B, np.arange(42) < 15, _point(0.45))
    assert verdict.answer == "not_better"
    lines = list(verdict.lines())
    assert lines[0] == "Verdict: NOT BETTER THAN GUESSING, as far as 42 test images can tell."
    assert lines[1] == (
        "Right for 27 of 42 test images. Answering 'normal' every time, without looking, is right "
        "for 27 of 42: that is the same."
    )
    assert lines[2] == "Found by class: 0 of 15 pneumonia, 27 of 27 normal."
    assert "finds 0 of 15 pneumonia (recall 0 %, 95 % interval 0 to 20 %)" in "\n".join(lines)
    assert "loses 0 of 27 normal" in "\n".join(lines)
    assert any(
        line.startswith("Beware: pneumonia:recall>=0.8 is not kept: recall") for line in lines
    )
    assert "`imgcls promote` refuses it without --force" in lines[-1]
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_model_that_tells_them_apart_is_better_and_says_what_it_finds() -> None:
    positive_B = np.arange(42) < 15
    score_B = np.where(positive_B, 0.8, 0.2)
    score_B[[0, 20, 21, 22]] = [0.3, 0.7, 0.7, 0.7]
    verdict = _judge(score_B, positive_B, _point(0.5))
    assert verdict.answer == "better"
    [point] = verdict.operating_points
    counts = [point[n] for n in ("num_found", "num_positive", "num_lost", "num_negative")]
    assert counts == [14, 15, 3, 27]
    text = "\n".join(verdict.lines())
    assert "finds 14 of 15 pneumonia" in text
    assert "loses 3 of 27 normal" in text
    assert "Beware" not in text
    assert "force" not in text


def test_a_rare_class_that_is_sorted_well_is_better_although_none_is_called_it() -> None:
    """Accuracy is that of the guesser, for all scores are below a half; the order is not."""
    positive_B = np.arange(100) < 8
    score_B = np.where(positive_B, 0.4, np.linspace(0, 0.38, 100))
    verdict = _judge(score_B, positive_B)
    assert verdict.model["gain"] == 0
    assert verdict.answer == "better"


def test_four_images_are_too_few_even_for_a_faultless_model() -> None:
    positive_B = np.array([True, True, False, False])
    verdict = _judge(np.where(positive_B, 0.9, 0.1), positive_B)
    assert verdict.answer == "unknown"
    assert "4 test images are too few to tell" in verdict.summary
    more_B = np.tile(positive_B, 3)
    assert _judge(np.where(more_B, 0.9, 0.1), more_B).answer == "better"


def test_images_of_few_patients_are_not_so_many_witnesses() -> None:
    positive_B = np.arange(90) % 3 == 0
    score_B = np.where(positive_B, 0.9, 0.1)
    assert _judge(score_B, positive_B).answer == "better"
    three = [f"p{i % 3}" for i in range(90)]
    assert _judge(score_B, positive_B, groups=three).answer == "unknown"


def test_a_slice_that_misses_the_target_is_named() -> None:
    positive_B = np.arange(80) % 2 == 0
    slices = ["north" if i < 40 else "south" for i in range(80)]
    score_B = np.where(positive_B, 0.9, 0.1)
    score_B[(np.arange(80) < 40) & positive_B & (np.arange(80) % 4 == 0)] = 0.2
    verdict = _judge(score_B, positive_B, _point(0.5), slices=slices)
    assert verdict.operating_points[0]["slices"]["south"]["num_found"] == 20
    lines = list(verdict.lines())
    assert any(line.startswith("  north: finds 10 of 20 pneumonia") for line in lines)
    [beware] = [line for line in lines if line.startswith("Beware")]
    assert "pneumonia:recall>=0.8 is not kept in north: recall is 50 %" in beware


def test_several_labels_are_judged_against_the_classes_of_most_images() -> None:
    rng = np.random.default_rng(0)
    names = ClassNames(("dot", "ring", "bar"))
    target_BK = rng.random((120, 3)) < [0.7, 0.3, 0.2]
    for signal, answer in ((4, "better"), (0, "not_better")):
        probs_BK = 1 / (1 + np.exp(2 - signal * target_BK - 0.5 * rng.normal(size=(120, 3))))
        outcomes = Outcomes(multi_label=True)
        for row in range(120):
            sets = (np.flatnonzero(of[row]) for of in (target_BK, probs_BK >= 0.5))
            labels, predicted = (tuple(labels.tolist()) for labels in sets)
            outcomes.add_ok(labels, predicted, str(row), "")
        prior = Prior(np.array([140, 60, 40]), 200)
        verdict = judge("test", outcomes, names, prior, outcomes.result(names, probs_BK))
        assert verdict.guess["answer"] == ["dot"]
        assert verdict.answer == answer


@pytest.mark.parametrize(
    ("target", "value", "num_images", "words"),
    [
        ("specificity", 0.999, 41, "needs 3000 images of other classes, and there are 41"),
        ("recall", 0.95, 59, "needs 60 images of it, and there are 59"),
        ("recall", 0.95, 60, ""),
        ("recall", 0.9, 15, "these support up to 0.8"),
        ("recall", 0.5, 2, "these support no target"),
        ("recall", 1.0, 10**6, "cannot be shown by any number of images"),
    ],
)
def test_a_target_that_the_images_could_not_show_is_refused_with_the_number(
    target: Any, value: float, num_images: int, words: str
) -> None:
    why = why_unsupported(target, value, num_images)
    assert (words in why) if words else why == ""
