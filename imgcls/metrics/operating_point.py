"""A threshold for one class, and what it is worth.

In: calibrated probabilities of the class, and which images are of it. Out: an `OperatingPoint`,
which lives in the bundle, or what it achieves on other images. Invariant: a threshold decides in
scoring by `decide`, the function that it was fitted with; a target that the images could not show
even if none were wrong is refused by whoever asks for it, see `why_unsupported`.

Shape legend: B image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from imgcls.errors import ConfigError
from imgcls.metrics.bootstrap import (
    NUM_RESAMPLES,
    count_units,
    draw_weights,
    interval,
    middle,
    number_units,
)
from imgcls.metrics.top_classes import Bools, Floats

Target = Literal["recall", "specificity"]

_MAX_RESAMPLING_WORK: Final = 2 * 10**9  # resamples x images: some 20 s on one core
# Where none of n independent images is wrong, the true share of wrong ones may still be 3/n (95 %):
# Jovanovic and Levy 1997, "A look at the rule of three".
_RULE_OF_THREE: Final = 3.0


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the calibrated probability of one class, and what it achieves on validation.

    From `review_high` on the decision is positive, below `review_low` negative, between them
    review: the band is the 95 % interval of the threshold, within which another validation sample
    would have decided otherwise.
    """

    threshold_id: str
    positive_class: str
    target: Target
    target_value: float
    threshold: float
    review_low: float
    review_high: float
    review_fraction: float  # share of the validation images in the band
    recall: float
    recall_interval: list[float] | None
    specificity: float
    specificity_interval: list[float] | None
    num_positive: int
    num_negative: int


def why_unsupported(target: Target, value: float, num_images: int) -> str:
    """Return why so few images cannot show that a target is reached, "" where they can.

    Args:
        target: What is to be reached.
        value: How much of it, in (0, 1].
        num_images: Of the class for "recall", of the others for "specificity".
    """
    kind = "images of it" if target == "recall" else "images of other classes"
    if value >= 1:
        return (
            f"a {target} of 1 cannot be shown by any number of images: even where all of n are "
            "right, the true share may be 1 - 3/n. Ask for 0.99, which needs 300"
        )
    num_needed = num_images_needed(value)
    if num_images >= num_needed:
        return ""
    most = max(0.0, math.floor(100 * (1 - _RULE_OF_THREE / max(num_images, 1))) / 100)
    possible = f"these support up to {most:g}" if most > 0 else "these support no target"
    return (
        f"a {target} of {value:g} needs {num_needed} {kind}, and there are {num_images}: even were "
        f"none of them wrong, the true {target} could be as low as "
        f"{max(0.0, 1 - _RULE_OF_THREE / max(num_images, 1)):.2g} (rule of three, 95 %); {possible}"
    )


def num_images_needed(value: float) -> int:
    """Return how many images, all right, would show a share of `value`, below 1."""
    return math.ceil(_RULE_OF_THREE / (1 - value) - 1e-9)


def decide(prob_B: Floats, point: OperatingPoint) -> list[str]:
    """Return "positive", "negative" or "review" per calibrated probability of the class."""
    choices = ["positive", "negative"]
    conditions = [prob_B >= point.review_high, prob_B < point.review_low]
    return [str(d) for d in np.select(conditions, choices, default="review")]


def measure_point(
    point: OperatingPoint,
    score_B: Floats,
    positive_B: Bools,
    unit_B: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return recall and specificity at the threshold, with 95 % intervals and in counts.

    `num_found` of `num_positive` images of the class reach the threshold, and `num_lost` of
    `num_negative` others do; `num_review`, the share `review_fraction`, lie in the review band.

    Null stands where there are no images to tell, and for intervals of more images than a bootstrap
    could go through in half a minute.

    Args:
        point: Of the bundle.
        score_B: Calibrated probability of its class, at least one.
        positive_B: Which images are of this class.
        unit_B: Groups of the images; by default each image is its own.
    """
    recall, specificity = _achieved(score_B, positive_B, point.threshold)
    in_band = np.array(decide(score_B, point)) == "review"
    called_B = score_B >= point.threshold
    intervals: list[list[float] | None] = [None, None]
    if NUM_RESAMPLES * len(score_B) <= _MAX_RESAMPLING_WORK:
        cells_B4 = np.stack(
            [called_B & positive_B, positive_B, ~called_B & ~positive_B, ~positive_B], axis=1
        ).astype(np.float64)
        units = number_units(len(score_B), unit_B)
        drawn_R4 = np.array([w @ cells_B4 for w in draw_weights(units, NUM_RESAMPLES, 0)])
        with np.errstate(invalid="ignore"):
            num_units = int(units.max()) + 1
            num_of_kind = count_units(units, positive_B[:, None])
            intervals = [
                interval(drawn_R4[:, i] / drawn_R4[:, i + 1], num_units, int(num[0]))
                for i, num in zip((0, 2), num_of_kind, strict=True)
            ]
    return {
        "recall": recall if positive_B.any() else None,
        "recall_interval": intervals[0],
        "specificity": specificity if not positive_B.all() else None,
        "specificity_interval": intervals[1],
        "review_fraction": float(in_band.mean()),
        "num_found": int((called_B & positive_B).sum()),
        "num_positive": int(positive_B.sum()),
        "num_lost": int((called_B & ~positive_B).sum()),
        "num_negative": int((~positive_B).sum()),
        "num_review": int(in_band.sum()),
    }


def threshold_for(score_B: Floats, positive_B: Bools, target: Target, value: float) -> float:
    """Return a threshold that reaches a target, with as much of the other quantity as it leaves.

    An image is positive from the threshold on. The threshold lies halfway between two neighbouring
    scores, so that rounding on another machine moves no image across it.

    Args:
        score_B: Probability of the positive class.
        positive_B: Which images are positive; at least one is, and one is not.
        target: "recall": the highest threshold with at least this recall. "specificity": the lowest
            with at least this specificity.
        value: In (0, 1].
    """
    distinct = np.unique(score_B)
    if target == "recall":
        falling = np.sort(score_B[positive_B])[::-1]
        last = falling[_num_needed(value, len(falling)) - 1]
        below = distinct[distinct < last]
        return float((last + (below[-1] if len(below) else 0.0)) / 2)
    rising = np.sort(score_B[~positive_B])
    last = rising[_num_needed(value, len(rising)) - 1]
    above = distinct[distinct > last]
    return float((last + (above[0] if len(above) else 1.0)) / 2) if last < 1 else 1.0 + 1e-9


def _num_needed(value: float, count: int) -> int:
    # 0.95 of 20 is 19, although 0.95 * 20 is a little more than 19 as a float.
    return max(1, int(np.ceil(value * count - 1e-9)))


def operating_point(
    score_B: Floats,
    positive_B: Bools,
    name: str,
    target: Target,
    value: float,
    unit_B: Sequence[str] | None,
    seed: int,
) -> OperatingPoint:
    """Fit the threshold of one class.

    Args:
        score_B: Its calibrated probability.
        positive_B: Which images show it.
        name: The class.
        target: What to reach, see `threshold_for`.
        value: How much of it, in (0, 1].
        unit_B: Groups of the images, for the intervals; by default each image is its own.
        seed: Of the bootstrap.

    Raises:
        ConfigError: the value is out of range, or there are images of one kind only.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"target {target} of {name!r} is {value}: it must be above 0, at most 1")
    if positive_B.all() or not positive_B.any():
        raise ConfigError(
            f"no operating point for {name!r}: validation needs images of it and of another class"
        )
    threshold = threshold_for(score_B, positive_B, target, value)
    drawn = {"threshold": list[float](), "recall": list[float](), "specificity": list[float]()}
    units = number_units(len(score_B), unit_B)
    num_units = int(units.max()) + 1
    for weight_B in draw_weights(units, NUM_RESAMPLES, seed):
        again = np.repeat(np.arange(len(score_B)), weight_B.astype(np.int64))
        score, positive = score_B[again], positive_B[again]
        if positive.all() or not positive.any():
            continue
        drawn["threshold"].append(threshold_for(score, positive, target, value))
        recall, specificity = _achieved(score, positive, threshold)
        drawn["recall"].append(recall)
        drawn["specificity"].append(specificity)
    recall, specificity = _achieved(score_B, positive_B, threshold)
    low, high = middle(drawn["threshold"]) or [threshold, threshold]
    low, high = min(low, threshold), max(high, threshold)
    bounds = [
        interval(drawn[name], num_units, int(num[0])) if drawn[name] else None
        for name, num in zip(
            ("recall", "specificity"), count_units(units, positive_B[:, None]), strict=True
        )
    ]
    return OperatingPoint(
        threshold_id=f"{name}:{target}>={value:g}",
        positive_class=name,
        target=target,
        target_value=value,
        threshold=threshold,
        review_low=low,
        review_high=high,
        review_fraction=float(((score_B >= low) & (score_B < high)).mean()),
        recall=recall,
        recall_interval=bounds[0],
        specificity=specificity,
        specificity_interval=bounds[1],
        num_positive=int(positive_B.sum()),
        num_negative=int((~positive_B).sum()),
    )


def _achieved(score_B: Floats, positive_B: Bools, threshold: float) -> tuple[float, float]:
    """Return recall and specificity; NaN without images to tell."""
    called_B = score_B >= threshold
    num_positive = int(positive_B.sum())
    num_negative = len(positive_B) - num_positive
    recall = (called_B & positive_B).sum() / num_positive if num_positive else np.nan
    specificity = (~called_B & ~positive_B).sum() / num_negative if num_negative else np.nan
    return float(recall), float(specificity)
