"""Pictures for people who look before they read: learning curves, confusion matrix, reliability.

In: the history and the metrics of a bundle. Out: PNG files by name. Invariant: drawn from the
numbers that the bundle holds, without pyplot and its global state, so any thread may do it; legible
with 2 classes and with 100.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcls.inert import in_picture
from imgcls.metrics.bootstrap import wilson
from imgcls.training.canvas import make_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES, CONFUSION, RELIABILITY = "curves.png", "confusion.png", "reliability.png"
_MAX_NUMBERED = 20  # classes up to which each cell of a confusion matrix has room for its count
_MAX_NAMED = 120  # classes up to which each row has room for its name
_MAX_NAME = 24  # characters of a class name
_MAX_MARKED = 50  # epochs up to which each has a dot
_SHORT_AXIS = 30  # images up to which an axis of counts has more labels than powers of ten
_COLORS = {"train": "tab:blue", "val": "tab:orange"}
# Summed up while the weights still changed, so it may well be worse than validation.
_LABELS = {"train": "train (augmented, as it went)", "val": "val"}
_CURVE_COLORS = ("tab:blue", "tab:orange")  # as trained, calibrated

log = logging.getLogger(__name__)


def draw_plots(
    history: Sequence[Mapping[str, Any]], best_epoch: int, metrics: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the PNG files that these numbers give; what cannot be drawn is left out, and logged.

    Args:
        history: numbers of each epoch.
        best_epoch: the one whose weights were kept, from 1; 0 for none.
        metrics: by split.
    """
    measured = metrics.get("test") or metrics.get("val")
    draw: dict[str, Callable[[], bytes]] = {}
    if history:
        draw[CURVES] = lambda: curves(history, best_epoch)
    if measured and "confusion_matrix" in measured:
        split = "test" if metrics.get("test") else "val"
        draw[CONFUSION] = lambda: confusion(
            measured["confusion_matrix"], measured["class_names"], split
        )
    bins = {split: _bins_before_and_after(numbers) for split, numbers in metrics.items()}
    bins = {split: both for split, both in bins.items() if both}
    if bins:
        is_of_units = any("of_units" in numbers for numbers in metrics.values())
        draw[RELIABILITY] = lambda: reliability(bins, "units" if is_of_units else "images")
    plots = {}
    for name, picture in draw.items():
        try:
            plots[name] = picture()
        except Exception:  # a picture is not a reason to lose the model
            log.warning("%s could not be drawn", name, exc_info=True)
    return plots


def curves(history: Sequence[Mapping[str, Any]], best_epoch: int) -> bytes:
    """Draw loss and accuracy per epoch."""
    figure = make_figure(10, 4)
    axes = figure.subplots(1, 2)
    for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        for split in ("train", "val"):
            name = f"{split}_{quantity}"
            points = [(n["epoch"], n[name]) for n in history if n.get(name) is not None]
            if points:
                epochs, values = zip(*points, strict=True)
                marker = "." if len(points) < _MAX_MARKED else ""
                ax.plot(epochs, values, marker=marker, label=_LABELS[split], color=_COLORS[split])
        if best_epoch:
            ax.axvline(best_epoch, color="grey", linestyle=":", label=f"kept: {best_epoch}")
        ax.set(xlabel="epoch", ylabel=quantity, title=quantity)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    return to_png(figure)


def confusion(
    matrix: Sequence[Sequence[int]], class_names: Sequence[str], split: str = "test"
) -> bytes:
    """Draw a confusion matrix: colours are shares of a row, which is a true class."""
    count_KK = np.asarray(matrix)
    num_classes = len(class_names)
    support_K1 = count_KK.sum(axis=1, keepdims=True)
    share_KK = np.divide(count_KK, support_K1, where=support_K1 > 0, out=np.zeros(count_KK.shape))
    side_inch = float(np.clip(0.55 * num_classes + 2.5, 5, 16))
    # Names of any length have to fit; elsewhere this would only cost time.
    figure = make_figure(side_inch + 1, side_inch, layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.7)
    if num_classes <= _MAX_NUMBERED:
        for (true, predicted), count in np.ndenumerate(count_KK):
            if count:
                color = "white" if share_KK[true, predicted] > 0.5 else "black"
                ax.text(predicted, true, str(count), ha="center", va="center", color=color)
    every = range(0, num_classes, 1 + (num_classes - 1) // _MAX_NAMED)
    names = [in_picture(class_names[k], _MAX_NAME) for k in every]
    font_pt = float(np.clip(side_inch * 72 * 0.55 / max(1, num_classes), 4, 10))
    ax.set_xticks(list(every), names, rotation=90, fontsize=font_pt, parse_math=False)
    ax.set_yticks(list(every), names, fontsize=font_pt, parse_math=False)
    num_right, num_images = int(np.trace(count_KK)), int(count_KK.sum())
    ax.set(xlabel="predicted", ylabel="true", title=f"{split}: {num_right} of {num_images} right")
    return to_png(figure)


def reliability(
    bins: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], answered: str = "images"
) -> bytes:
    """Draw confidence against accuracy.

    Args:
        bins: by split, then by curve (`as trained`, `calibrated`): `reliability_bins`.
        answered: what is counted: images, or units of several.
    """
    figure = make_figure(5 * len(bins), 6)
    axes = figure.subplots(2, len(bins), squeeze=False, height_ratios=(3, 1), sharex=True)
    for column, (split, by_curve) in enumerate(bins.items()):
        _draw_reliability(axes[0][column], axes[1][column], split, by_curve)
        axes[1][column].set_ylabel(answered)
    return to_png(figure)


def _draw_reliability(
    upper: "Axes", lower: "Axes", split: str, by_curve: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    from matplotlib.ticker import LogLocator  # not before there is something to draw

    upper.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for color, (curve, points) in zip(_CURVE_COLORS, by_curve.items(), strict=False):
        x, y = [p["confidence"] for p in points], [p["accuracy"] for p in points]
        # A line from dot to dot would show noise: a bin of two says little, as its bar tells.
        bounds = [wilson(p["accuracy"], p["count"]) for p in points]
        below = [max(0.0, v - low) for v, (low, _) in zip(y, bounds, strict=True)]
        above = [max(0.0, high - v) for v, (_, high) in zip(y, bounds, strict=True)]
        upper.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=color, alpha=0.4)
        upper.scatter(x, y, s=25, color=color, label=curve, clip_on=False, zorder=3)
        centre = [(p["low"] + p["high"]) / 2 for p in points]
        width = points[0]["high"] - points[0]["low"] if points else 1.0
        counts = [p["count"] for p in points]
        lower.bar(centre, counts, width=0.9 * width, alpha=0.5, color=color)
    title = f"{split}; bars: 95 % interval of each bin"
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title)
    upper.grid(alpha=0.3)
    upper.legend(loc="upper left")
    # From below 1: a bin of one image has a bar, too.
    lower.set(xlabel="confidence", yscale="log", ylim=(0.5, None))
    # Matplotlib's own labels of a short log axis are powers, wide and one over the other.
    is_short = lower.get_ylim()[1] < _SHORT_AXIS
    lower.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
    lower.yaxis.set_major_formatter(lambda count, _: f"{count:g}" if count >= 1 else "")
    lower.yaxis.set_minor_formatter("")


def _bins_before_and_after(numbers: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        "as trained": numbers.get("reliability"),
        "calibrated": numbers.get("calibrated", {}).get("reliability"),
    }
    return {curve: bins for curve, bins in both.items() if bins}
