"""What the scores of one class are worth, drawn for people: ROC, precision, and a histogram.

In: the scores of a split and which images show the class. Out: PNG bytes. Invariant: the point that
is marked, its interval and its counts are those of the verdict; axes say what they show in words.

Shape legend: B image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from imgcls.inert import in_picture
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.metrics.top_classes import Bools, Doubles
from imgcls.training.canvas import (
    GUESS,
    OTHERS,
    POSITIVE,
    REVIEW,
    make_figure,
    make_plain,
    to_png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_CURVES: Final = 8
_NUM_BINS: Final = 25
_MAX_NAME: Final = 24  # characters of a class name


@dataclass(frozen=True, eq=False)
class ClassScores:
    """The scores of a class on one split; `point` and `counted` where it has a threshold."""

    class_name: str
    other_name: str  # of two classes the other one, else ""
    score_B: Doubles  # calibrated probability
    positive_B: Bools
    auroc: float | None
    average_precision: float | None
    point: OperatingPoint | None = None
    counted: dict[str, Any] | None = None  # an entry of Verdict.operating_points
    answered: str = "images"  # what has a score, or units of several

    @property
    def has_both(self) -> bool:
        """Whether there are images of the class and others: else no curve is defined."""
        return bool(self.positive_B.any() and not self.positive_B.all())

    @property
    def name(self) -> str:
        """The class, as a picture may hold it."""
        return in_picture(self.class_name, _MAX_NAME)

    @property
    def others(self) -> str:
        """What the other images are called."""
        return (
            in_picture(self.other_name, _MAX_NAME) if self.other_name else f"other {self.answered}"
        )


def roc_and_precision(classes: Sequence[ClassScores], split: str) -> bytes:
    """Draw how many are found at the price of how many false alarms, and of which precision.

    Args:
        classes: One class in full, with its point; or a curve for each of the first few.
        split: Where it was measured.
    """
    shown = sorted((c for c in classes if c.has_both), key=lambda c: c.auroc or 0)[:_MAX_CURVES]
    figure = make_figure(11.5, 5.6 if len(shown) == 1 else 6.4, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_roc(left, shown)
    _draw_precision(right, shown)
    on = f"on {len(shown[0].score_B)} {split} {shown[0].answered}"
    if len(shown) == 1:
        title = f"How well it tells {shown[0].name} from {shown[0].others}, {on}"
        for ax in (left, right):
            _legend(ax)
    else:
        which = (
            "" if len(shown) == len(classes) else f": the {len(shown)} hardest of {len(classes)}"
        )
        title = f"How well it tells each class from all others, {on}{which}"
        legend = figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.suptitle(f"{title}\n", parse_math=False)
    return to_png(figure)


def histogram(scores: ClassScores, split: str) -> bytes:
    """Draw the scores of both kinds of images, with the threshold and the review band."""
    figure = make_figure(9, 5.6, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    low, high = _score_range(scores)
    bins = np.linspace(low, high, _NUM_BINS + 1)
    kinds = (
        (upper, scores.positive_B, scores.name, POSITIVE),
        (lower, ~scores.positive_B, scores.others, OTHERS),
    )
    point = scores.point
    for ax, is_kind_B, name, color in kinds:
        ax.hist(scores.score_B[is_kind_B], bins, color=color, edgecolor="white", linewidth=0.5)
        make_plain(ax)
        ax.yaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(0, max(1.0, ax.get_ylim()[1]) * 1.12)
        ax.set_ylabel(f"{scores.answered} ({int(is_kind_B.sum())})")
        ax.set_title(name, loc="left", color=color, fontweight="bold", parse_math=False)
        if point is not None:
            if point.review_high > point.review_low:
                ax.axvspan(point.review_low, point.review_high, color=REVIEW, zorder=0)
            ax.axvline(point.threshold, color="black", linewidth=1.5)
    if point is not None:
        _name_regions(upper, scores, point)
    lower.set(xlim=(low, high), xlabel=f"score: calibrated probability of {scores.name}")
    figure.suptitle(f"{_counts(scores, split)}\n", parse_math=False)
    return to_png(figure)


def _score_range(scores: ClassScores) -> tuple[float, float]:
    """Return what to draw: 0 to 1, or where the scores lie if that is less than half of it."""
    shown = [float(scores.score_B.min()), float(scores.score_B.max())]
    if scores.point is not None:
        shown += [scores.point.review_low, scores.point.review_high]
    low, high = min(shown), max(shown)
    margin = max(0.1 * (high - low), 1e-6)
    low, high = max(0.0, low - margin), min(1.0, high + margin)
    return (low, high) if high - low < 0.5 else (0.0, 1.0)


def _counts(scores: ClassScores, split: str) -> str:
    counted = scores.counted
    if counted is None:
        return f"Scores of {len(scores.score_B)} {split} {scores.answered}"
    return (
        f"On {split} it finds {counted['num_found']} of {counted['num_positive']} {scores.name} "
        f"and loses {counted['num_lost']} of {counted['num_negative']} {scores.others}"
    )


def _name_regions(ax: "Axes", scores: ClassScores, point: OperatingPoint) -> None:
    """Say above the picture what happens left, within and right of the band."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color="black", linewidth=1.5, label=f"threshold {point.threshold:.3g}")
    ]
    if point.review_high > point.review_low:
        handles.append(
            Patch(
                color=REVIEW,
                label=f"a person decides: {point.review_low:.3g} to {point.review_high:.3g}",
            )
        )
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, frameon=False)


def _draw_roc(ax: "Axes", shown: Sequence[ClassScores]) -> None:
    ax.plot([0, 1], [0, 1], color=GUESS, linestyle=":", label="guessing")
    for scores, color in zip(shown, _colors(len(shown)), strict=True):
        found, alarms, _ = _curve(scores)
        area = "" if scores.auroc is None else f" (AUROC {scores.auroc:.3f})"
        ax.step(alarms, found, where="post", color=color, linewidth=2, label=scores.name + area)
    _mark(ax, shown, is_roc=True)
    one = shown[0] if len(shown) == 1 else None
    of, others = (one.name, one.others) if one else ("the class", f"the other {shown[0].answered}")
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel=f"false alarms: share of {others} that raise one",
        ylabel=f"found: share of {of} (recall)",
        title="How many it finds, at the price of false alarms",
    )
    make_plain(ax)


def _draw_precision(ax: "Axes", shown: Sequence[ClassScores]) -> None:
    for scores, color in zip(shown, _colors(len(shown)), strict=True):
        found, _, precision = _curve(scores)
        ax.step(found, precision, where="pre", color=color, linewidth=2, label=scores.name)
        share = float(scores.positive_B.mean())
        if len(shown) == 1:
            ax.axhline(share, color=GUESS, linestyle=":", label=f"guessing ({share:.0%})")
    _mark(ax, shown, is_roc=False)
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel=f"found: share of {shown[0].name if len(shown) == 1 else 'the class'} (recall)",
        ylabel="right alarms: share of all alarms (precision)",
        title="How many of its alarms are right",
    )
    make_plain(ax)


def _curve(scores: ClassScores) -> tuple[Doubles, Doubles, Doubles]:
    """Return recall, false alarms and precision at each distinct score, from none to all."""
    order = np.argsort(-scores.score_B, kind="stable")
    falling, positive = scores.score_B[order], scores.positive_B[order]
    last_of_step = np.flatnonzero(np.r_[falling[1:] != falling[:-1], True])
    hits = np.cumsum(positive)[last_of_step]
    seen = last_of_step + 1
    recall = hits / positive.sum()
    alarms = (seen - hits) / (~positive).sum()
    precision = hits / seen
    return np.r_[0.0, recall], np.r_[0.0, alarms], np.r_[precision[0], precision]


def _mark(ax: "Axes", shown: Sequence[ClassScores], *, is_roc: bool) -> None:
    """Mark the operating point of the one class that is shown, with its intervals."""
    if len(shown) != 1 or shown[0].counted is None:
        return
    counted = shown[0].counted
    recall, specificity = counted["recall"], counted["specificity"]
    if recall is None or specificity is None:
        return
    bars: dict[str, Any] = {
        "fmt": "o",
        "color": "black",
        "capsize": 4,
        "markersize": 7,
        "zorder": 5,
    }
    label = f"threshold: {counted['num_found']} of {counted['num_positive']} found"
    recall_bars = _bars(recall, counted["recall_interval"])
    if is_roc:
        alarms = 1 - specificity
        low, high = counted["specificity_interval"] or (specificity, specificity)
        xerr = _bars(alarms, [1 - high, 1 - low])
        ax.errorbar([alarms], [recall], xerr=xerr, yerr=recall_bars, label=label, **bars)
    else:
        num_alarms = counted["num_found"] + counted["num_lost"]
        if num_alarms:
            right = counted["num_found"] / num_alarms
            label = f"threshold: {counted['num_found']} of {num_alarms} alarms are right"
            ax.errorbar([recall], [right], xerr=recall_bars, label=label, **bars)


def _bars(value: float, bounds: Sequence[float] | None) -> list[list[float]]:
    low, high = bounds or (value, value)
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _legend(ax: "Axes") -> None:
    legend = ax.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colors(count: int) -> list[str]:
    if count == 1:
        return [POSITIVE]
    return [f"C{number}" for number in range(count)]
