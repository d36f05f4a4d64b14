"""The verdict of a training: is the model better than guessing, and what does it find?

In: what was measured of a split, and how common the classes were in training. Out: a `Verdict`:
plain values for JSON, and sentences for people. Invariants: a model is called better only where an
interval says so; where even a faultless model could not have shown it with so few images, the
verdict is that it is not known; counts stand before shares.

A guesser sees no image. Of one label it always answers the commonest class of training; of several
it answers the classes that more than half of the images show.

Shape legend: B image, K class, R draw.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from typing import Any, Final, Literal

import numpy as np

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import draw, interval, number_units, wilson
from imgcls.metrics.measures import sets_of
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.metrics.outcomes import Outcomes
from imgcls.metrics.top_classes import Bools, Doubles, Ints

Answer = Literal["better", "not_better", "unknown"]
Kind = Literal["image", "unit"]

# With fewer images even a faultless order is chance in more than one of twenty cases.
_MAX_CHANCE: Final = 0.05
_MAX_SLICES_SHOWN: Final = 8
_MAX_CLASSES_SHOWN: Final = 6
_HEADINGS: Final[dict[Answer, str]] = {
    "better": "better than guessing",
    "not_better": "NOT BETTER THAN GUESSING",
    "unknown": "NOT KNOWN whether it is better than guessing",
}


@dataclass(frozen=True)
class Verdict:
    """What a person must know first.

    Attributes:
        answer: Whether the model is better than guessing.
        summary: The answer as one sentence.
        is_of_two: Whether there are two classes that exclude each other.
        split: Which images it was measured on; "" for none.
        num_images: How many of them have a prediction.
        guess: `answer` of the guesser, `num_right`, `accuracy`, `log_loss` of knowing the shares.
        model: `num_right`, `accuracy`, its `gain` over the guess, `auroc`, `log_loss`, and what it
            `found` of each class; with intervals.
        operating_points: Per threshold counts, shares and intervals, and `slices` with the same.
        warnings: What speaks against using it, each a sentence.
        kind: What an answer is for, an image or a unit of several.
    """

    answer: Answer
    summary: str
    is_of_two: bool = False
    split: str = ""
    num_images: int = 0
    guess: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    operating_points: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kind: Kind = "image"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, and what `lines` says of them."""
        return {**asdict(self), "lines": list(self.lines())}

    def lines(self) -> Iterator[str]:
        """Yield the verdict as people read it, the answer first."""
        yield self.summary
        if self.split:
            yield from _compared(self)
        for point in self.operating_points:
            yield from _point_lines(point)
        for warning in self.warnings:
            yield f"Beware: {warning}"
        if self.answer == "not_better":
            yield "It is kept, and marked: `imgcls promote` refuses it without --force."


def not_measured(why: str) -> Verdict:
    """Return the verdict on a model without images to judge it by."""
    return Verdict("unknown", f"Verdict: {_HEADINGS['unknown']}: {why}.")


@dataclass(frozen=True)
class Prior:
    """How common the classes were in training: all that a guesser knows."""

    counts_K: Ints  # images that show each class
    num_images: int

    def shares(self) -> Doubles:
        """Return the share of images that show each class, never quite 0 or 1."""
        return np.asarray((self.counts_K + 0.5) / (self.num_images + 1.0))

    def answer(self, *, multi_label: bool) -> Bools:
        """Return the classes [K] that the guesser answers for every image."""
        if multi_label:
            return np.asarray(2 * self.counts_K > self.num_images)
        return np.asarray(np.arange(len(self.counts_K)) == int(np.argmax(self.counts_K)))


def judge(
    split: str,
    outcomes: Outcomes,
    class_names: ClassNames,
    prior: Prior,
    metrics: Mapping[str, Any],
    points: Sequence[OperatingPoint] = (),
    beware: Sequence[str] = (),
    kind: Kind = "image",
) -> Verdict:
    """Judge a model by one split.

    Args:
        split: Its name: test, or val where there is no test.
        outcomes: Its images.
        class_names: The K classes.
        prior: Of the training split.
        metrics: `Outcomes.result`, with what the calibration achieves under `calibrated`.
        points: The operating points of the calibration.
        beware: Sentences that stand before the warnings that are found here.
        kind: What was measured.
    """
    target_BK, multi_label = outcomes.target_BK(len(class_names)), outcomes.multi_label
    guess_K = prior.answer(multi_label=multi_label)
    guess_B = (target_BK == guess_K).all(axis=1)
    right_B = np.array([a == b for a, b in zip(outcomes.labels, outcomes.predicted, strict=True)])
    gain_interval = _gain_interval(right_B, guess_B, outcomes.units)
    after = metrics.get("calibrated", {})
    predicted_BK = sets_of(outcomes.predicted, len(class_names))
    found_K = (target_BK & predicted_BK).sum(axis=0)
    model = {
        "num_right": int(right_B.sum()),
        "accuracy": float(right_B.mean()),
        "gain": float(right_B.mean() - guess_B.mean()),
        "gain_interval": gain_interval,
        "num_different": int((right_B != guess_B).sum()),
        "auroc": metrics.get("auroc_macro"),
        "auroc_interval": metrics["intervals"].get("auroc_macro"),
        "log_loss": after.get("log_loss", metrics.get("log_loss")),
        "folds": metrics.get("folds", []),
        "found": {
            name: {"found": int(found_K[k]), "of": int(target_BK[:, k].sum())}
            for k, name in enumerate(class_names.names)
        },
    }
    guess = {
        "answer": [name for name, is_in in zip(class_names.names, guess_K, strict=True) if is_in],
        "num_right": int(guess_B.sum()),
        "accuracy": float(guess_B.mean()),
        "log_loss": _prior_log_loss(target_BK, prior.shares(), multi_label=multi_label),
    }
    answer = _answer(target_BK, gain_interval, model["auroc_interval"])
    is_of_two = len(class_names) == 2 and not multi_label
    other = class_names.names if is_of_two else ()
    found = [
        _described(point, after["operating_points"][point.threshold_id], other)
        for point in points
        if "operating_points" in after
    ]
    return Verdict(
        answer=answer,
        summary=f"Verdict: {_HEADINGS[answer]}{_how_far(answer, split, len(target_BK), kind)}.",
        is_of_two=is_of_two,
        split=split,
        num_images=len(target_BK),
        guess=guess,
        model=model,
        operating_points=found,
        warnings=[*beware, *(w for point in found for w in _missed(point))],
        kind=kind,
    )


def _answer(
    target_BK: Bools, gain_interval: list[float] | None, auroc_interval: list[float] | None
) -> Answer:
    if gain_interval is None or not _could_be_shown(target_BK):
        return "unknown"
    if gain_interval[0] > 0 or (auroc_interval is not None and auroc_interval[0] > 0.5):
        return "better"
    return "not_better"


def _could_be_shown(target_BK: Bools) -> bool:
    """Say whether a faultless order of the images would be more than chance, for any class.

    Of n images, k of which show a class, one order in (n over k) puts them first.
    """
    num_images = len(target_BK)
    for num_positive in target_BK.sum(axis=0).tolist():
        fewer = min(num_positive, num_images - num_positive)
        if fewer > 0 and comb(num_images, min(fewer, 5)) * _MAX_CHANCE > 1:
            return True
    return False


def _gain_interval(right_B: Bools, guess_B: Bools, units: Sequence[str]) -> list[float] | None:
    """Return the interval of the difference, both measured on the same drawn images."""
    difference_B = right_B.astype(np.float64) - guess_B
    unit_of_B = number_units(len(difference_B), units)

    def measure(weight_RB: Doubles) -> dict[str, Doubles]:
        return {"gain": (weight_RB * difference_B).sum(axis=1) / weight_RB.sum(axis=1)}

    num_units = int(unit_of_B.max()) + 1
    return interval(draw([measure], unit_of_B)["gain"], num_units, limits=(-1.0, 1.0))


def _prior_log_loss(target_BK: Bools, shares_K: Doubles, *, multi_label: bool) -> float:
    """Return the log loss of probabilities that are the shares, as the model's is computed."""
    if multi_label:
        loss_BK = -np.log(np.where(target_BK, shares_K, 1 - shares_K))
        return float(loss_BK.mean())
    return float(-np.log((shares_K / shares_K.sum())[target_BK.argmax(axis=1)]).mean())


def _described(
    point: OperatingPoint, measured: Mapping[str, Any], two_classes: Sequence[str]
) -> dict[str, Any]:
    """Return what a threshold does on these images, in counts first, and in each slice."""
    others = [name for name in two_classes if name != point.positive_class]
    about = {
        "threshold_id": point.threshold_id,
        "positive_class": point.positive_class,
        "other_class": others[0] if others else "",
        "target": point.target,
        "target_value": point.target_value,
    }
    slices = {
        name: _counted(point, of_slice) for name, of_slice in measured.get("slices", {}).items()
    }
    return {**about, **_counted(point, measured), "slices": slices}


def _counted(point: OperatingPoint, measured: Mapping[str, Any]) -> dict[str, Any]:
    counted = {
        name: measured[name]
        for name in ("num_found", "num_positive", "num_lost", "num_negative", "num_review")
    }
    num_kept = measured["num_negative"] - measured["num_lost"]
    for name, num, of in (
        ("recall", measured["num_found"], measured["num_positive"]),
        ("specificity", num_kept, measured["num_negative"]),
    ):
        bounds = measured[f"{name}_interval"]
        if of and bounds is None:
            bounds = list(wilson(num / of, of))
        counted |= {name: measured[name], f"{name}_interval": bounds}
    bounds = counted[f"{point.target}_interval"]
    counted["excludes_target"] = bounds is not None and bounds[1] < point.target_value
    return counted


def _how_far(answer: Answer, split: str, num_images: int, kind: Kind) -> str:
    on = f"{num_images} {split} {kind}{'s' if num_images != 1 else ''}"
    if answer == "unknown":
        return f": {on} are too few to tell" if num_images != 1 else f": {on} is too few to tell"
    return f", as far as {on} can tell"


def _compared(verdict: Verdict) -> Iterator[str]:
    guess, model, num = verdict.guess, verdict.model, verdict.num_images
    said = " and ".join(f"'{name}'" for name in guess["answer"]) or "none of the classes"
    is_same = model["num_different"] == 0
    gain = f"{100 * model['gain']:+.1f} points{_in_hundredths(model['gain_interval'])}"
    yield (
        f"Right for {model['num_right']} of {num} {verdict.split} {verdict.kind}s. "
        f"Answering {said} every time, without looking, is right for {guess['num_right']} of "
        f"{num}: {'that is the same' if is_same else f'the difference is {gain}'}."
    )
    yield f"Found by class: {_by_class(model['found'])}."
    if model["auroc"] is not None:
        two = " and ".join(f"one '{name}'" for name in model["found"])
        one = "an image" if verdict.kind == "image" else f"a {verdict.kind}"
        pair = two if verdict.is_of_two else f"{one} of a class and one of another"
        yield (
            f"Given {pair}, it tells them apart in {100 * model['auroc']:.0f} of 100 pairs"
            f"{_in_hundredths(model['auroc_interval'])}; a guesser in 50 "
            f"(AUROC {model['auroc']:.3f})."
        )
    if model["folds"]:
        yield f"From fold to fold: {_spread(model['folds'])}."
    if model["log_loss"] is not None:
        yield (
            f"Log loss {model['log_loss']:.3f}; knowing only how common each class is, it would be "
            f"{guess['log_loss']:.3f} (lower is better)."
        )


def _point_lines(point: Mapping[str, Any]) -> Iterator[str]:
    yield f"At {point['threshold_id']} it {_found_and_lost(point, point)}."
    shown = list(point["slices"].items())[:_MAX_SLICES_SHOWN]
    for name, of_slice in shown:
        yield f"  {name or '(no slice)'}: {_found_and_lost(point, of_slice)}"
    if len(point["slices"]) > len(shown):
        yield f"  and {len(point['slices']) - len(shown)} more slices, see MODEL_CARD.md"


def _found_and_lost(point: Mapping[str, Any], counted: Mapping[str, Any]) -> str:
    kinds = (point["positive_class"], point["other_class"] or "others")
    found = (
        f"finds {counted['num_found']} of {counted['num_positive']} {kinds[0]}"
        f"{_shares(counted, 'recall')}; loses {counted['num_lost']} of {counted['num_negative']} "
        f"{kinds[1]}{_shares(counted, 'specificity')}"
    )
    if num_review := counted["num_review"]:
        go = (
            "is close to the threshold and goes"
            if num_review == 1
            else "are close to the threshold and go"
        )
        found += f"; {num_review} {go} to a person"
    return found


def _shares(counted: Mapping[str, Any], name: str) -> str:
    if counted[name] is None:
        return ""
    low, high = counted[f"{name}_interval"]
    return f" ({name} {_percent(counted[name])}, 95 % interval {_percent(low, high)})"


def _missed(point: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the interval of the target's number lies below the target."""
    places = {"": point, **{f" in {name or 'no slice'}": s for name, s in point["slices"].items()}}
    for place, counted in places.items():
        if counted["excludes_target"]:
            low, high = counted[f"{point['target']}_interval"]
            yield (
                f"{point['threshold_id']} is not kept{place}: {point['target']} is "
                f"{_percent(counted[point['target']])} (95 % interval {_percent(low, high)})."
            )


def _percent(*shares: float) -> str:
    return f"{' to '.join(f'{100 * share:.0f}' for share in shares)} %"


def _spread(folds: Sequence[Mapping[str, Any]]) -> str:
    """Return the lowest and the highest number of the folds."""
    told = []
    for name, title in (("accuracy", "accuracy"), ("auroc_macro", "AUROC")):
        values = [fold[name] for fold in folds if fold.get(name) is not None]
        if values:
            told.append(f"{title} {min(values):.3f} to {max(values):.3f}")
    return ", ".join(told)


def _by_class(found: Mapping[str, Mapping[str, int]]) -> str:
    """Name the classes of which the least is found first; of many only those."""
    with_images = {name: counts for name, counts in found.items() if counts["of"]}
    order = sorted(with_images, key=lambda name: found[name]["found"] / found[name]["of"])
    shown = [f"{found[name]['found']} of {found[name]['of']} {name}" for name in order]
    left = len(shown) - _MAX_CLASSES_SHOWN
    return ", ".join(shown[:_MAX_CLASSES_SHOWN]) + (
        f", and {left} more classes" if left > 0 else ""
    )


def _in_hundredths(bounds: list[float] | None) -> str:
    if bounds is None:
        return ""
    low, high = (100 * bound for bound in bounds)
    return (
        f" (95 % interval {low:+.1f} to {high:+.1f})"
        if low < 0
        else (f" (95 % interval {low:.1f} to {high:.1f})")
    )
