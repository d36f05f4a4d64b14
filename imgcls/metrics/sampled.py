"""What a night's decisions were worth, of which only some images were looked at again.

In: per night and per way of asking, how many images there were, how many a person answered, and how
many of those are of the positive class. Out: sensitivity and specificity with 95 % intervals.
Invariant: an image counts for as many as it stands for, so that a queue that picks the uncertain
does not make the model look worse, nor better, than it is.

A stratum holds the images of a night that were asked about in one way (each of them chosen for a
reason, or drawn at random) and that the model called the same. In it every image had the same
chance to be answered. Bounds of a share are those of Clopper and Pearson 1934, drawn from, so that
answers of which none is positive still bound how many of the others may be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from imgcls.metrics.bootstrap import middle
from imgcls.metrics.top_classes import Doubles

_NUM_DRAWS: Final = 4000


@dataclass(frozen=True, slots=True)
class Stratum:
    """Images of one night, asked about in one way, called the same.

    Attributes:
        is_chosen: Each was chosen for a reason; else drawn at random from all that were not.
        is_called_positive: What the model made of them.
        num_images: All that there are.
        num_answered: Those of which a person gave the class.
        num_positive: Those of the answered that are of the positive class.
        num_groups: How many patients or lots the answered ones are of; they are no more evidence.
    """

    is_chosen: bool
    is_called_positive: bool
    num_images: int
    num_answered: int
    num_positive: int
    num_groups: int


def estimate(strata: Iterable[Stratum], seed: int = 0) -> dict[str, Any]:
    """Return sensitivity and specificity of the model on all images of the strata.

    Args:
        strata: Of one night or of several.
        seed: Of the draws of the intervals.

    Returns:
        num_images, num_answered; sensitivity and specificity with `_interval` each, null where
        nobody looked at one image of those called positive, or of those called negative, or where
        there is nothing of the class.
    """
    strata = list(strata)
    rng = np.random.default_rng(seed)
    called = {is_positive: _Called() for is_positive in (True, False)}
    for is_positive, all_of in called.items():
        alike = [s for s in strata if s.is_called_positive == is_positive and s.num_images]
        all_of.add([s for s in alike if s.is_chosen], rng)
        all_of.add([s for s in alike if not s.is_chosen], rng)
    positive, negative = called[True], called[False]
    result: dict[str, Any] = {
        "num_images": sum(s.num_images for s in strata),
        "num_answered": sum(s.num_answered for s in strata),
    }
    right = {"sensitivity": positive.found, "specificity": negative.others}
    wrong = {"sensitivity": negative.found, "specificity": positive.others}
    is_known = positive.is_known and negative.is_known
    for name in right:
        result[name] = _share(right[name], wrong[name]) if is_known else None
        result[f"{name}_interval"] = _interval(right[name], wrong[name]) if is_known else None
    return result


@dataclass(frozen=True, slots=True)
class _Number:
    """How many images are of a class: the best guess, and draws of few and of many."""

    guess: float
    few_R: Doubles
    many_R: Doubles

    def __add__(self, other: "_Number") -> "_Number":
        return _Number(
            self.guess + other.guess, self.few_R + other.few_R, self.many_R + other.many_R
        )


def _nothing() -> _Number:
    return _Number(0.0, np.zeros(_NUM_DRAWS), np.zeros(_NUM_DRAWS))


@dataclass
class _Called:
    """All images that the model called the same: how many are of the positive class, and not."""

    found: _Number = field(default_factory=_nothing)
    others: _Number = field(default_factory=_nothing)
    is_known: bool = True

    def add(self, strata: Sequence[Stratum], rng: np.random.Generator) -> None:
        """Add strata that were asked about in one way; their shares are taken for one."""
        num_images = sum(s.num_images for s in strata)
        answered = [s for s in strata if s.num_answered]
        if not answered:
            self.is_known &= not num_images
            return
        seen = sum(s.num_answered for s in answered)
        found = sum(s.num_positive for s in answered)
        asked = sum(s.num_images for s in answered)
        share = sum(s.num_images * s.num_positive / s.num_answered for s in answered) / asked
        # Unlike chances from night to night, and images of one patient, are less evidence.
        count = asked**2 / sum(s.num_images**2 / s.num_groups for s in answered)
        unseen = num_images - seen
        few_share_R = _draw(share * count, (1 - share) * count + 1, rng)
        many_share_R = _draw(share * count + 1, (1 - share) * count, rng)
        few_R = found + rng.binomial(unseen, few_share_R).astype(np.float64)
        many_R = found + rng.binomial(unseen, many_share_R).astype(np.float64)
        guess = found + unseen * share
        self.found += _Number(guess, few_R, many_R)
        self.others += _Number(num_images - guess, num_images - many_R, num_images - few_R)


def _draw(of: float, against: float, rng: np.random.Generator) -> Doubles:
    """Draw shares from a beta distribution, which is 0 or 1 where nothing is for it, or against."""
    if of <= 0 or against <= 0:
        return np.full(_NUM_DRAWS, float(of > 0))
    return rng.beta(of, against, _NUM_DRAWS)


def _share(right: _Number, wrong: _Number) -> float | None:
    whole = right.guess + wrong.guess
    return right.guess / whole if whole > 0 else None


def _interval(right: _Number, wrong: _Number) -> list[float] | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        low = middle(right.few_R / (right.few_R + wrong.many_R))
        high = middle(right.many_R / (right.many_R + wrong.few_R))
    return [low[0], high[1]] if low and high else None
