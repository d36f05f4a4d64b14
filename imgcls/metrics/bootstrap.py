"""How far the metrics would move with other images: 95 % intervals, and tables per slice.

In: labels, predictions, groups. Out: JSON-able intervals. Invariant: what is drawn again is the
group (a patient, a lot) where there are groups, never one of its images: images of one group are
no independent evidence.

Percentile bootstrap (Efron 1979): units are drawn with replacement as often as there are units; an
interval holds the middle 95 % of what the metric becomes. A draw is a weight per image.

Shape legend: B image, K class.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.metrics.single_label import NUM_ECE_BINS, TOP_K, Floats, Ints, classification_metrics
from imgcls.metrics.top_classes import top_label

NUM_RESAMPLES = 1000
# Of three units a draw takes the worst one three times with a chance of 1/27, more than the 2.5 %
# beyond a bound: the interval would be but the worst and the best unit. Of four it is 1/256.
MIN_UNITS = 4
# The percentile bootstrap is too narrow for few units: of 600 simulated test sets (groups of 8
# images, intraclass correlation 0.3, accuracy 0.85) its 95 % held the truth for 30 groups in 94 %,
# for 20 in 91, for 10 in 85, for 4 in 74, for 3 in 58, for 1 in none. So below 30 the card warns.
FEW_UNITS = 30
CONFIDENCE = 0.95
# Resamples x classes x images beyond which AUROC and average precision, which have to go through
# the images in order for every class, get no interval: some 10 s on one core.
MAX_RANKING_WORK = 2 * 10**9

# Draws are measured some at a time: enough to be fast, few enough to fit into the caches.
_CHUNK = 1 << 17

Weights = npt.NDArray[np.float64]


def bootstrap_intervals(
    label_B: Ints,
    pred_B: Ints,
    class_names: ClassNames,
    probs_BK: Floats | None = None,
    unit_B: Sequence[str] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return [low, high] for the numbers of `classification_metrics`.

    Args:
        label_B: True labels, integers 0..K-1.
        pred_B: Predicted labels, integers 0..K-1.
        class_names: The K classes.
        probs_BK: Probabilities, rows sum to 1.
        unit_B: What stays together in a draw: the group of each image; by default the image alone.
        num_resamples: More give smoother bounds.
        seed: Seed of the draws.

    Returns:
        Metric name -> [low, high], null where hardly a draw defines it; `per_class` the same for
        recall and precision; `num_units`, `num_resamples` and `confidence`.
    """
    drawn: defaultdict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
    measures: list[Callable[[Weights], dict[str, npt.NDArray[np.float64]]]] = [
        _ConfusionMeasure(label_B, pred_B, class_names)
    ]
    if probs_BK is not None:
        measures.append(_ScoreMeasure(label_B, probs_BK))
        if num_resamples * probs_BK.size <= MAX_RANKING_WORK:
            measures.append(_RankingMeasure(label_B, probs_BK))
    unit_of_B = number_units(len(label_B), unit_B)
    weights = draw_weights(unit_of_B, num_resamples, seed)
    num_rows = max(1, _CHUNK // max(len(label_B), len(class_names) ** 2))
    while chunk := list(islice(weights, num_rows)):
        weight_RB = np.stack(chunk)
        for measure in measures:
            for name, value_R in measure(weight_RB).items():
                drawn[name].append(value_R)
    num_units = int(unit_of_B.max()) + 1
    intervals = {
        name: interval(np.concatenate(values), num_units) for name, values in drawn.items()
    }
    per_class = {
        class_name: {
            metric: intervals.pop(f"{metric} {class_name}") for metric in ("recall", "precision")
        }
        for class_name in class_names.names
    }
    return {
        **intervals,
        "per_class": per_class,
        "num_units": num_units,
        **no_interval(num_units),
        "num_resamples": num_resamples,
        "confidence": CONFIDENCE,
    }


def metrics_with_intervals(
    label_B: Ints,
    pred_B: Ints,
    class_names: ClassNames,
    probs_BK: Floats | None = None,
    unit_B: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return `classification_metrics`, with `bootstrap_intervals` as its entry `intervals`."""
    return {
        **classification_metrics(label_B, pred_B, class_names, probs_BK),
        "intervals": bootstrap_intervals(label_B, pred_B, class_names, probs_BK, unit_B),
    }


def slice_metrics(
    slice_B: Sequence[str],
    label_B: Ints,
    pred_B: Ints,
    class_names: ClassNames,
    unit_B: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the headline metrics of each slice (a scanner, a site), with the interval of accuracy.

    Args:
        slice_B: The slice of each image; "" is a slice too.
        label_B: True labels.
        pred_B: Predicted labels.
        class_names: The classes.
        unit_B: As for `bootstrap_intervals`.
    """
    table = {}
    slices, units = np.asarray(slice_B), None if unit_B is None else np.asarray(unit_B)
    for name in np.unique(slices):
        inside = slices == name
        metrics = classification_metrics(label_B[inside], pred_B[inside], class_names)
        intervals = bootstrap_intervals(
            label_B[inside],
            pred_B[inside],
            class_names,
            unit_B=None if units is None else units[inside].tolist(),
        )
        table[str(name)] = {
            "num_images": metrics["num_images"],
            "num_units": intervals["num_units"],
            "accuracy": metrics["accuracy"],
            "accuracy_interval": intervals["accuracy"],
            "balanced_accuracy": metrics["balanced_accuracy"],
            "macro_f1": metrics["macro_f1"],
        }
    return table


def number_units(num_images: int, unit_B: Sequence[str] | None) -> npt.NDArray[np.int64]:
    """Return the number of each image's unit, counted from 0 without gaps."""
    if unit_B is None:
        return np.arange(num_images)
    _, unit_of_B = np.unique(np.asarray(unit_B), return_inverse=True)
    return unit_of_B.astype(np.int64)


def draw_weights(
    unit_of_B: npt.NDArray[np.int64], num_resamples: int, seed: int
) -> Iterator[Weights]:
    """Yield, per resample, how often each image was drawn: as often as its unit."""
    rng = np.random.default_rng(seed)
    num_units = int(unit_of_B.max()) + 1
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(0, num_units, num_units), minlength=num_units)
        yield drawn[unit_of_B].astype(np.float64)


def interval(
    values: Sequence[float] | npt.NDArray[np.float64], num_units: int
) -> list[float] | None:
    """Return the middle 95 % of what is defined.

    Null where less than half of the draws are, or where fewer than MIN_UNITS units were drawn from.
    """
    return None if num_units < MIN_UNITS else middle(values)


def no_interval(num_units: int) -> dict[str, str]:
    """Return the entry that says why there are no intervals, and nothing where there are."""
    if num_units >= MIN_UNITS:
        return {}
    reason = f"{num_units} groups (or images without one), and an interval needs {MIN_UNITS}"
    return {"no_interval_because": reason}


def middle(values: Sequence[float] | npt.NDArray[np.float64]) -> list[float] | None:
    """Return the middle 95 % of what is defined; null where less than half of the draws are."""
    drawn = np.asarray(values, np.float64)
    defined = drawn[np.isfinite(drawn)]
    if 2 * len(defined) < len(drawn) or len(defined) == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]


def _ratio(part: Any, whole: Any) -> Any:  # noqa: ANN401  (numbers or arrays of them)
    """Divide, giving NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


def _mean_defined(values_RK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average each row over what is defined; NaN where nothing is."""
    is_defined_RK = np.isfinite(values_RK)
    sum_R = np.where(is_defined_RK, values_RK, 0.0).sum(axis=1)
    return np.asarray(_ratio(sum_R, is_defined_RK.sum(axis=1)))


class _ConfusionMeasure:
    """All that follows from the weighted confusion matrix, for R draws at once."""

    def __init__(self, label_B: Ints, pred_B: Ints, class_names: ClassNames) -> None:
        self._names = class_names.names
        self._cell_B = label_B.astype(np.int64) * len(self._names) + pred_B

    def __call__(self, weight_RB: Weights) -> dict[str, npt.NDArray[np.float64]]:
        num_draws, size = len(weight_RB), len(self._names)
        cell_RB = self._cell_B + np.arange(num_draws)[:, None] * size**2
        flat = np.bincount(cell_RB.ravel(), weight_RB.ravel(), num_draws * size**2)
        matrix_RKK = flat.reshape(num_draws, size, size)
        hits_RK = np.diagonal(matrix_RKK, axis1=1, axis2=2)
        support_RK, predicted_RK = matrix_RKK.sum(axis=2), matrix_RKK.sum(axis=1)
        recall_RK, precision_RK = _ratio(hits_RK, support_RK), _ratio(hits_RK, predicted_RK)
        f1_RK = _ratio(2 * hits_RK, support_RK + predicted_RK)
        total_R = support_RK.sum(axis=1)
        return {
            "accuracy": hits_RK.sum(axis=1) / total_R,
            "balanced_accuracy": _mean_defined(recall_RK),
            "macro_f1": _mean_defined(f1_RK),
            "weighted_f1": (np.nan_to_num(f1_RK) * support_RK).sum(axis=1) / total_R,
            **{f"recall {name}": recall_RK[:, k] for k, name in enumerate(self._names)},
            **{f"precision {name}": precision_RK[:, k] for k, name in enumerate(self._names)},
        }


class _ScoreMeasure:
    """Averages over the images: top-5, Brier and log loss; and the calibration error."""

    def __init__(self, label_B: Ints, probs_BK: Floats) -> None:
        probs_BK = probs_BK.astype(np.float64)
        num_classes = probs_BK.shape[1]
        own_B = probs_BK[np.arange(len(label_B)), label_B]
        self._top_name = f"top{min(TOP_K, num_classes)}_accuracy"
        is_top_B = (probs_BK > own_B[:, None]).sum(axis=1) < TOP_K
        brier_B = ((probs_BK - np.eye(num_classes)[label_B]) ** 2).sum(axis=1)
        loss_B = -np.log(np.maximum(own_B, np.finfo(np.float64).eps))
        self._value_B3 = np.stack([is_top_B, brier_B, loss_B], axis=1)
        confidence_B = probs_BK.max(axis=1)
        # The gap of a bin is the sum over its images of correct minus confidence.
        gap_B = (top_label(probs_BK) == label_B) - confidence_B
        bin_B = np.minimum((confidence_B * NUM_ECE_BINS).astype(np.int64), NUM_ECE_BINS - 1)
        self._gap_BE = gap_B[:, None] * np.eye(NUM_ECE_BINS)[bin_B]

    def __call__(self, weight_RB: Weights) -> dict[str, npt.NDArray[np.float64]]:
        total_R = weight_RB.sum(axis=1)
        mean_R3 = weight_RB @ self._value_B3 / total_R[:, None]
        return {
            self._top_name: mean_R3[:, 0],
            "brier": mean_R3[:, 1],
            "log_loss": mean_R3[:, 2],
            "ece": np.abs(weight_RB @ self._gap_BE).sum(axis=1) / total_R,
        }


class _RankingMeasure:
    """AUROC and average precision, one class against the rest, averaged over the classes."""

    def __init__(self, label_B: Ints, probs_BK: Floats) -> None:
        self._classes = [Ranking(label_B == k, probs_BK[:, k]) for k in range(probs_BK.shape[1])]

    def __call__(self, weight_RB: Weights) -> dict[str, npt.NDArray[np.float64]]:
        both_KR = [ranking(weight_RB) for ranking in self._classes]
        auroc_RK, ap_RK = (np.stack(values, axis=1) for values in zip(*both_KR, strict=True))
        return {
            "auroc_macro": _mean_defined(auroc_RK),
            "average_precision_macro": _mean_defined(ap_RK),
        }


class Ranking:
    """The images in falling order of one class's probability; equal ones form a step."""

    def __init__(self, positive_B: npt.NDArray[np.bool_], score_B: Floats) -> None:
        self._order = np.argsort(-score_B, kind="stable")
        self._positive = positive_B[self._order]
        sorted_score = score_B[self._order]
        self._step_starts = np.flatnonzero(np.r_[True, sorted_score[1:] != sorted_score[:-1]])

    def __call__(
        self, weight_B: Weights
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return AUROC and average precision of weighted images, NaN without both kinds.

        Args:
            weight_B: One draw [B], or several [R,B]: then each number is an array [R].
        """
        weight = weight_B[..., self._order]
        positive = np.add.reduceat(weight * self._positive, self._step_starts, axis=-1)
        total = np.add.reduceat(weight, self._step_starts, axis=-1)
        seen_positive, seen = np.cumsum(positive, axis=-1), np.cumsum(total, axis=-1)
        num_positive = seen_positive[..., -1]
        num_negative = seen[..., -1] - num_positive
        negative = total - positive
        below = num_negative[..., None] - np.cumsum(negative, axis=-1)
        auroc = (positive * (below + negative / 2)).sum(axis=-1)
        precision = np.divide(seen_positive, seen, out=np.zeros_like(seen), where=seen > 0)
        has_both = (num_positive > 0) & (num_negative > 0)
        ap = np.where(has_both, (positive * precision).sum(axis=-1), np.nan)
        return _ratio(auroc, num_positive * num_negative), _ratio(ap, num_positive)
