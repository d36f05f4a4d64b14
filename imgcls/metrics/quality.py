"""How good predictions are, as numbers that survive JSON.

In: labelled images and what was predicted. Out: a dict of plain values with 95 % intervals.
Invariant: no NaN. A number that is not defined on this data is null, and `undefined` says why.

Shape legend: B image, K class, R draw.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.metrics.bootstrap import (
    CONFIDENCE,
    NUM_RESAMPLES,
    Measure,
    count_units,
    draw,
    interval,
    no_interval,
    number_units,
)
from imgcls.metrics.measures import (
    HEADLINES,
    IN_TABLE,
    NUM_ECE_BINS,
    Labelled,
    MicroRankingMeasure,
    RankingMeasure,
    cheap_measures,
    headline_of,
)
from imgcls.metrics.top_classes import Bools, Doubles, Floats, top_label

# Resamples x classes x images beyond which AUROC and average precision, which have to go through
# the images in order for every class, get no interval: some 10 s on one core.
_MAX_RANKING_WORK: Final = 2 * 10**9
_WITH_INTERVAL: Final = ("recall", "precision")  # of each class


def measure_quality(
    data: Labelled,
    unit_B: Sequence[str] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every number that this data defines; see `measures.py` for what they are.

    Args:
        data: At least one image.
        unit_B: What stays together in a bootstrap draw: the group of each image; by default the
            image alone.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        Headlines by name; `per_class` tables; `auroc`, `average_precision` and `brier_per_class` by
        class; of one label per image `confusion_matrix` and `reliability`; `undefined` by class;
        `intervals`: [low, high] of the headlines and, in `per_class`, of recall and precision,
        `num_units`, `num_resamples` and `confidence`.
    """
    cheap, ranked = cheap_measures(data), list[Measure]()
    if data.probs_BK is not None:
        ranked.append(RankingMeasure(data.target_BK, data.probs_BK))
        if data.multi_label:
            ranked.append(MicroRankingMeasure(data.target_BK, data.probs_BK))
    ones_RB = np.ones((1, len(data.target_BK)))
    values = {
        name: of_one[0]
        for measure in [*cheap, *ranked]
        for name, of_one in measure(ones_RB).items()
    }
    return {
        "num_images": len(data.target_BK),
        **_plain(values, data),
        **(_of_one_label(data) if not data.multi_label else {}),
        "class_names": list(data.class_names.names),
        "undefined": _undefined(data),
        "intervals": _intervals(
            data,
            [*cheap, *ranked[:1]] if _is_affordable(data, num_resamples) else cheap,
            number_units(len(ones_RB[0]), unit_B),
            num_resamples,
            seed,
        ),
    }


def measure_slices(
    slice_B: Sequence[str], data: Labelled, unit_B: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the headline metrics of each slice (a scanner, a site), with the interval of accuracy.

    Args:
        slice_B: The slice of each image; "" is a slice too.
        data: The images.
        unit_B: As for `measure_quality`.
    """
    table: dict[str, dict[str, Any]] = {}
    slices, units = np.asarray(slice_B), None if unit_B is None else np.asarray(unit_B)
    for name in np.unique(slices):
        inside = slices == name
        metrics = measure_quality(
            data.only(inside), None if units is None else units[inside].tolist()
        )
        table[str(name)] = {
            "num_images": metrics["num_images"],
            "num_units": metrics["intervals"]["num_units"],
            "accuracy": metrics["accuracy"],
            "accuracy_interval": metrics["intervals"]["accuracy"],
            **{h.name: metrics[h.name] for h in HEADLINES if h.of_slices and h.name in metrics},
        }
    return table


def macro_auroc(target_BK: Bools, probs_BK: Floats) -> float | None:
    """Return the mean over the classes of AUROC; null where no class has images of both kinds."""
    numbers = RankingMeasure(target_BK, probs_BK)(np.ones((1, len(target_BK))))
    return number_or_null(numbers["auroc_macro"][0])


def reliability_bins(
    confidence_B: Floats, correct_B: Bools, num_bins: int = NUM_ECE_BINS
) -> list[dict[str, Any]]:
    """Compare confidence (0..1) with accuracy in equal-width bins; empty bins are left out."""
    bin_B = np.minimum((confidence_B * num_bins).astype(np.int64), num_bins - 1)
    return [
        {
            "low": float(i / num_bins),
            "high": float((i + 1) / num_bins),
            "count": int((bin_B == i).sum()),
            "confidence": float(confidence_B[bin_B == i].mean()),
            "accuracy": float(correct_B[bin_B == i].mean()),
        }
        for i in np.unique(bin_B)
    ]


def expected_calibration_error(bins: list[dict[str, Any]]) -> float:
    """Average |accuracy - confidence| over the images of `reliability_bins` (Guo et al. 2017)."""
    total = sum(b["count"] for b in bins)
    return float(sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / total)


def number_or_null(value: float) -> float | None:
    """Return a number as JSON may hold it: null for NaN."""
    return float(value) if np.isfinite(value) else None


def _plain(values: dict[str, Doubles], data: Labelled) -> dict[str, Any]:
    """Sort numbers into headlines, tables and dicts by class."""
    names = data.class_names.names
    headlines = {name: number_or_null(float(v)) for name, v in values.items() if v.ndim == 0}
    by_class = {
        name: dict(zip(names, map(number_or_null, v), strict=True))
        for name, v in values.items()
        if v.ndim == 1 and name not in IN_TABLE
    }
    support_K, num_predicted_K = data.target_BK.sum(axis=0), data.predicted_BK.sum(axis=0)
    per_class = {
        class_name: {
            **{
                metric: number_or_null(values[metric][k])
                for metric in ("precision", "recall", "f1")
            },
            "support": int(support_K[k]),
            "num_predicted": int(num_predicted_K[k]),
        }
        for k, class_name in enumerate(names)
    }
    return {**headlines, **by_class, "per_class": per_class}


def _of_one_label(data: Labelled) -> dict[str, Any]:
    """Return what only images with one label have."""
    num_classes = len(data.class_names)
    cell_B = num_classes * data.label_B + data.predicted_BK.argmax(axis=1)
    counts = np.bincount(cell_B, minlength=num_classes**2)
    # Rows are true classes, columns predicted ones, in the order of class_names.
    table: dict[str, Any] = {"confusion_matrix": counts.reshape(num_classes, -1).tolist()}
    if data.probs_BK is not None:
        probs_BK = data.probs_BK.astype(np.float64)
        probs_BK = probs_BK / probs_BK.sum(axis=1, keepdims=True)
        is_right_B = top_label(probs_BK) == data.label_B
        table["reliability"] = reliability_bins(probs_BK.max(axis=1), is_right_B)
    return table


def _is_affordable(data: Labelled, num_resamples: int) -> bool:
    return data.probs_BK is not None and num_resamples * data.probs_BK.size <= _MAX_RANKING_WORK


def _intervals(
    data: Labelled,
    measures: list[Measure],
    unit_of_B: npt.NDArray[np.int64],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    drawn = draw(
        measures,
        unit_of_B,
        num_resamples=num_resamples,
        seed=seed,
    )
    num_units = int(unit_of_B.max()) + 1
    shown_K, others_K = count_units(unit_of_B, data.target_BK)
    counted = {"recall": shown_K, "precision": count_units(unit_of_B, data.predicted_BK)[0]}
    both = np.minimum(shown_K, others_K)[(shown_K > 0) & (others_K > 0)]
    fewest = int(both.min()) if len(both) else num_units
    headlines = {
        name: interval(
            values,
            num_units,
            num_units if headline_of(name).of_all_images else fewest,
            headline_of(name).limits,
        )
        for name, values in drawn.items()
        if values.ndim == 1
    }
    per_class = {
        name: {
            metric: interval(drawn[metric][:, k], num_units, int(counted[metric][k]))
            for metric in _WITH_INTERVAL
        }
        for k, name in enumerate(data.class_names.names)
    }
    return {
        **headlines,
        "per_class": per_class,
        "num_units": num_units,
        **no_interval(num_units),
        "num_resamples": num_resamples,
        "confidence": CONFIDENCE,
    }


def _undefined(data: Labelled) -> dict[str, str]:
    reasons: dict[str, list[str]] = {}
    with_probs = data.probs_BK is not None
    ranked = ", auroc, average_precision" if with_probs else ""
    for k, name in enumerate(data.class_names.names):
        if not data.target_BK[:, k].any():
            reasons.setdefault(name, []).append(f"recall{ranked}: no image shows this class")
        elif with_probs and data.target_BK[:, k].all():
            reasons.setdefault(name, []).append("auroc, average_precision: every image shows it")
        if not data.predicted_BK[:, k].any():
            reasons.setdefault(name, []).append("precision: never predicted")
    return {name: "; ".join(of_class) for name, of_class in reasons.items()}
