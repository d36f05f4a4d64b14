"""How good predictions of any number of classes per image are, as numbers that survive JSON.

In: targets and probabilities, one column per class. Out: a dict of plain values with 95 %
intervals. Invariant: no NaN and no warning. A number that is not defined on this data is null, and
`undefined` says why.

A class is predicted from a probability of 0.5 on. Macro averages run over the classes for which the
number is defined; micro takes every (image, class) pair as one decision.

Shape legend: B image, K class.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import (
    CONFIDENCE,
    MAX_RANKING_WORK,
    NUM_RESAMPLES,
    Ranking,
    Weights,
    draw_weights,
    interval,
    no_interval,
    number_units,
)
from imgcls.metrics.single_label import Floats, defined_mean, number_or_null

THRESHOLD = 0.5

Bools = npt.NDArray[np.bool_]


def multi_label_metrics(
    target_BK: npt.NDArray[Any],
    probs_BK: Floats | None,
    class_names: ClassNames,
    unit_B: Sequence[str] | None = None,
    *,
    predicted_BK: npt.NDArray[Any] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure multi-label predictions.

    Args:
        target_BK: 1 or True for each class that the image shows, at least one row.
        probs_BK: Probabilities in 0..1, each class by itself. Adds AUROC, average precision and
            Brier score. None where only the predicted classes are known.
        class_names: The K classes.
        unit_B: What stays together in a bootstrap draw: the group of each image; by default the
            image alone.
        predicted_BK: The predicted classes, where they were not cut at 0.5.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `accuracy` is the share of images with every class right (subset accuracy, under both
        names), `brier` the mean over images and classes; `intervals` has [low, high] of the
        averages, and of recall and precision per class.
    """
    target_BK = np.asarray(target_BK).astype(bool)
    if predicted_BK is None:
        assert probs_BK is not None, "either probabilities or predicted classes"
        predicted_BK = probs_BK >= THRESHOLD
    predicted_BK = np.asarray(predicted_BK).astype(bool)
    assert target_BK.shape == predicted_BK.shape == (len(target_BK), len(class_names))
    assert len(target_BK) > 0, "no images to measure"
    result = _set_metrics(target_BK, predicted_BK, class_names)
    if probs_BK is not None:
        assert np.isfinite(probs_BK).all(), "probabilities must be finite"
        result |= _probability_metrics(target_BK, probs_BK.astype(np.float64), class_names)
    result["undefined"] = _undefined(
        target_BK, predicted_BK, class_names, with_probs=probs_BK is not None
    )
    result["intervals"] = _intervals(
        target_BK, predicted_BK, probs_BK, class_names, unit_B, num_resamples, seed
    )
    return result


def multi_label_slices(
    slice_B: Sequence[str],
    target_BK: npt.NDArray[Any],
    predicted_BK: npt.NDArray[Any],
    class_names: ClassNames,
    unit_B: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the headline metrics of each slice (a scanner, a site), with intervals.

    Args:
        slice_B: The slice of each image; "" is a slice too.
        target_BK: As for `multi_label_metrics`.
        predicted_BK: The predicted classes.
        class_names: The K classes.
        unit_B: As for `multi_label_metrics`.
    """
    table = {}
    slices, units = np.asarray(slice_B), None if unit_B is None else np.asarray(unit_B)
    for name in np.unique(slices):
        inside = slices == name
        metrics = multi_label_metrics(
            target_BK[inside],
            None,
            class_names,
            None if units is None else units[inside].tolist(),
            predicted_BK=predicted_BK[inside],
        )
        table[str(name)] = {
            "num_images": metrics["num_images"],
            "num_units": metrics["intervals"]["num_units"],
            "accuracy": metrics["accuracy"],
            "accuracy_interval": metrics["intervals"]["accuracy"],
            "hamming_loss": metrics["hamming_loss"],
            "macro_recall": metrics["macro_recall"],
            "macro_f1": metrics["macro_f1"],
        }
    return table


def macro_auroc(target_BK: npt.NDArray[Any], probs_BK: Floats) -> float | None:
    """Return the mean over the classes of AUROC; null where no class has images of both kinds."""
    return defined_mean(_auroc_per_class(np.asarray(target_BK).astype(bool), probs_BK))


def _set_metrics(target_BK: Bools, predicted_BK: Bools, class_names: ClassNames) -> dict[str, Any]:
    # Over a second to import, and a run that only scores never measures.
    from sklearn.metrics import accuracy_score, hamming_loss, precision_recall_fscore_support

    precision_K, recall_K, f1_K, support_K = precision_recall_fscore_support(
        target_BK, predicted_BK, average=None, zero_division=np.nan
    )
    micro = precision_recall_fscore_support(
        target_BK, predicted_BK, average="micro", zero_division=np.nan
    )
    accuracy = float(accuracy_score(target_BK, predicted_BK))
    return {
        "num_images": len(target_BK),
        "accuracy": accuracy,
        "subset_accuracy": accuracy,
        "hamming_loss": float(hamming_loss(target_BK, predicted_BK)),
        **{
            f"macro_{name}": defined_mean(values)
            for name, values in (("precision", precision_K), ("recall", recall_K), ("f1", f1_K))
        },
        **{
            f"micro_{name}": number_or_null(value)
            for name, value in zip(("precision", "recall", "f1"), micro, strict=False)
        },
        "per_class": {
            name: {
                "precision": number_or_null(precision_K[k]),
                "recall": number_or_null(recall_K[k]),
                "f1": number_or_null(f1_K[k]),
                "support": int(support_K[k]),
                "num_predicted": int(predicted_BK[:, k].sum()),
            }
            for k, name in enumerate(class_names.names)
        },
        "class_names": list(class_names.names),
    }


def _probability_metrics(
    target_BK: Bools, probs_BK: Floats, class_names: ClassNames
) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    auroc = _auroc_per_class(target_BK, probs_BK)
    ap = _per_class(average_precision_score, target_BK, probs_BK)
    error_BK = (probs_BK - target_BK) ** 2
    pooled = (target_BK.reshape(-1, 1), probs_BK.reshape(-1, 1))
    return {
        "auroc_macro": defined_mean(auroc),
        "auroc_micro": number_or_null(_per_class(roc_auc_score, *pooled)[0]),
        "auroc": _by_name(auroc, class_names),
        "average_precision_macro": defined_mean(ap),
        "average_precision_micro": number_or_null(_per_class(average_precision_score, *pooled)[0]),
        "average_precision": _by_name(ap, class_names),
        "brier": float(error_BK.mean()),
        "brier_per_class": _by_name(error_BK.mean(axis=0), class_names),
    }


def _auroc_per_class(target_BK: Bools, probs_BK: Floats) -> list[float]:
    from sklearn.metrics import roc_auc_score

    return _per_class(roc_auc_score, target_BK, probs_BK)


def _per_class(score: Callable[[Any, Any], Any], target_BK: Bools, probs_BK: Floats) -> list[float]:
    """Return the score of each column, NaN where all of its images are of one kind."""
    return [
        float(score(target_BK[:, k], probs_BK[:, k]))
        if 0 < target_BK[:, k].sum() < len(target_BK)
        else float("nan")
        for k in range(target_BK.shape[1])
    ]


def _by_name(values_K: Any, class_names: ClassNames) -> dict[str, float | None]:  # noqa: ANN401  (list or array of floats)
    return {name: number_or_null(values_K[k]) for k, name in enumerate(class_names.names)}


def _undefined(
    target_BK: Bools, predicted_BK: Bools, class_names: ClassNames, *, with_probs: bool
) -> dict[str, str]:
    reasons: dict[str, list[str]] = {}
    ranked = ", auroc, average_precision" if with_probs else ""
    for k, name in enumerate(class_names.names):
        if not target_BK[:, k].any():
            reasons.setdefault(name, []).append(f"recall{ranked}: no image shows this class")
        elif with_probs and target_BK[:, k].all():
            reasons.setdefault(name, []).append("auroc, average_precision: every image shows it")
        if not predicted_BK[:, k].any():
            reasons.setdefault(name, []).append("precision: never predicted")
    return {name: "; ".join(of_class) for name, of_class in reasons.items()}


def _intervals(
    target_BK: Bools,
    predicted_BK: Bools,
    probs_BK: Floats | None,
    class_names: ClassNames,
    unit_B: Sequence[str] | None,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    measures: list[Callable[[Weights], dict[str, float]]] = [
        _SetMeasure(target_BK, predicted_BK, class_names)
    ]
    if probs_BK is not None:
        measures.append(_BrierMeasure(target_BK, probs_BK))
        if num_resamples * probs_BK.size <= MAX_RANKING_WORK:
            measures.append(_RankingMeasure(target_BK, probs_BK))
    unit_of_B = number_units(len(target_BK), unit_B)
    numbers = [
        {k: v for measure in measures for k, v in measure(weight_B).items()}
        for weight_B in draw_weights(unit_of_B, num_resamples, seed)
    ]
    num_units = int(unit_of_B.max()) + 1
    intervals = {
        name: interval([drawn[name] for drawn in numbers], num_units) for name in numbers[0]
    }
    per_class = {
        name: {metric: intervals.pop(f"{metric} {name}") for metric in ("recall", "precision")}
        for name in class_names.names
    }
    return {
        **intervals,
        "per_class": per_class,
        "num_units": num_units,
        **no_interval(num_units),
        "num_resamples": num_resamples,
        "confidence": CONFIDENCE,
    }


class _SetMeasure:
    """All that follows from the weighted hits, predictions and positives of each class."""

    def __init__(self, target_BK: Bools, predicted_BK: Bools, class_names: ClassNames) -> None:
        self._names = class_names.names
        self._hit_BK = (target_BK & predicted_BK).astype(np.float64)
        self._target_BK = target_BK.astype(np.float64)
        self._predicted_BK = predicted_BK.astype(np.float64)
        self._num_wrong_B = (target_BK != predicted_BK).sum(axis=1)

    def __call__(self, weight_B: Weights) -> dict[str, float]:
        hits_K, support_K = weight_B @ self._hit_BK, weight_B @ self._target_BK
        predicted_K = weight_B @ self._predicted_BK
        with np.errstate(invalid="ignore", divide="ignore"):
            recall_K, precision_K = hits_K / support_K, hits_K / predicted_K
            f1_K = 2 * hits_K / (support_K + predicted_K)
            hits, support, predicted = hits_K.sum(), support_K.sum(), predicted_K.sum()
            micro = (hits / predicted, hits / support, 2 * hits / (support + predicted))
        accuracy = float(np.average(self._num_wrong_B == 0, weights=weight_B))
        wrong = float(np.average(self._num_wrong_B, weights=weight_B))
        macro = (_nanmean(precision_K), _nanmean(recall_K), _nanmean(f1_K))
        averages = ("precision", "recall", "f1")
        return {
            "accuracy": accuracy,
            "subset_accuracy": accuracy,
            "hamming_loss": wrong / len(self._names),
            **{f"macro_{name}": value for name, value in zip(averages, macro, strict=True)},
            **{f"micro_{name}": float(value) for name, value in zip(averages, micro, strict=True)},
            **{f"recall {name}": float(recall_K[k]) for k, name in enumerate(self._names)},
            **{f"precision {name}": float(precision_K[k]) for k, name in enumerate(self._names)},
        }


class _BrierMeasure:
    """The Brier score."""

    def __init__(self, target_BK: Bools, probs_BK: Floats) -> None:
        self._error_B = ((probs_BK.astype(np.float64) - target_BK) ** 2).mean(axis=1)

    def __call__(self, weight_B: Weights) -> dict[str, float]:
        return {"brier": float(np.average(self._error_B, weights=weight_B))}


class _RankingMeasure:
    """AUROC and average precision, averaged over the classes."""

    def __init__(self, target_BK: Bools, probs_BK: Floats) -> None:
        num_classes = target_BK.shape[1]
        self._classes = [Ranking(target_BK[:, k], probs_BK[:, k]) for k in range(num_classes)]

    def __call__(self, weight_B: Weights) -> dict[str, float]:
        both_K2 = np.array([ranking(weight_B) for ranking in self._classes])
        return {
            "auroc_macro": _nanmean(both_K2[:, 0]),
            "average_precision_macro": _nanmean(both_K2[:, 1]),
        }


def _nanmean(values: npt.NDArray[np.float64]) -> float:
    """Average what is defined; NaN, without numpy's warning, where nothing is."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")
