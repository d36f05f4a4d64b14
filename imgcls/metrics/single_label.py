"""How good predictions are, as numbers that survive JSON.

In: labels, predicted labels, optionally probabilities. Out: a dict of plain values.
Invariant: no NaN. A number that is not defined on this data is null, and `undefined` says why.

Shape legend: B image, K class.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.metrics.top_classes import top_label

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]

# Equal-width bins of confidence; Guo et al. 2017, "On Calibration of Modern Neural Networks".
NUM_ECE_BINS = 15
TOP_K = 5


def classification_metrics(
    label_B: Ints, pred_B: Ints, class_names: ClassNames, probs_BK: Floats | None = None
) -> dict[str, Any]:
    """Measure single-label predictions.

    Macro averages run over the classes for which the number is defined: recall where the class has
    images, precision where it was predicted, F1 where either is so. Balanced accuracy is the mean
    recall.

    Args:
        label_B: True labels, integers 0..K-1, at least one.
        pred_B: Predicted labels, integers 0..K-1.
        class_names: The K classes.
        probs_BK: Probabilities, rows sum to 1. Adds top-5 accuracy, AUROC and average precision
            (one class against the rest), log loss, ECE and Brier score.
    """
    # Over a second to import, and a run that only scores never measures.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    assert len(label_B) == len(pred_B) > 0, f"{len(label_B)} labels, {len(pred_B)} predictions"
    num_classes = len(class_names)
    every = list(range(num_classes))
    precision_K, recall_K, f1_K, support_K = precision_recall_fscore_support(
        label_B, pred_B, labels=every, zero_division=np.nan
    )
    result: dict[str, Any] = {
        "num_images": len(label_B),
        "accuracy": float((label_B == pred_B).mean()),
        "balanced_accuracy": defined_mean(recall_K),
        "macro_precision": defined_mean(precision_K),
        "macro_recall": defined_mean(recall_K),
        "macro_f1": defined_mean(f1_K),
        "weighted_f1": float(np.average(np.nan_to_num(f1_K), weights=support_K)),
        "per_class": {
            name: {
                "precision": number_or_null(precision_K[k]),
                "recall": number_or_null(recall_K[k]),
                "f1": number_or_null(f1_K[k]),
                "support": int(support_K[k]),
            }
            for k, name in enumerate(class_names.names)
        },
        "class_names": list(class_names.names),
        # Rows are true classes, columns predicted ones, in the order of class_names.
        "confusion_matrix": confusion_matrix(label_B, pred_B, labels=every).tolist(),
        "undefined": _undefined(label_B, pred_B, class_names, with_probs=probs_BK is not None),
    }
    if probs_BK is not None:
        result |= _probability_metrics(label_B, probs_BK, class_names)
    return result


def _probability_metrics(
    label_B: Ints, probs_BK: Floats, class_names: ClassNames
) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    num_classes = len(class_names)
    assert probs_BK.shape == (len(label_B), num_classes), f"probs of shape {probs_BK.shape}"
    assert np.isfinite(probs_BK).all(), "probabilities must be finite"
    probs_BK = probs_BK.astype(np.float64)
    # float32 rows sum to 1 within 1e-6 only; scikit-learn warns from there on.
    probs_BK = probs_BK / probs_BK.sum(axis=1, keepdims=True)
    own_prob_B = probs_BK[np.arange(len(label_B)), label_B]
    rank_B = (probs_BK > own_prob_B[:, None]).sum(axis=1)
    auroc = [_one_vs_rest(roc_auc_score, label_B, probs_BK, k) for k in range(num_classes)]
    ap = [_one_vs_rest(average_precision_score, label_B, probs_BK, k) for k in range(num_classes)]
    target_BK = np.eye(num_classes)[label_B]
    bins = reliability_bins(probs_BK.max(axis=1), top_label(probs_BK) == label_B)
    return {
        f"top{min(TOP_K, num_classes)}_accuracy": float((rank_B < TOP_K).mean()),
        "auroc_macro": defined_mean(auroc),
        "auroc": _by_name(auroc, class_names),
        "average_precision_macro": defined_mean(ap),
        "average_precision": _by_name(ap, class_names),
        "log_loss": float(log_loss(label_B, probs_BK, labels=list(range(num_classes)))),
        "ece": expected_calibration_error(bins),
        # Summed over the classes, so 0..2, as Brier (1950) has it.
        "brier": float(((probs_BK - target_BK) ** 2).sum(axis=1).mean()),
        "reliability": bins,
    }


def reliability_bins(
    confidence_B: Floats, correct_B: npt.NDArray[np.bool_], num_bins: int = NUM_ECE_BINS
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


def _one_vs_rest(score: Any, label_B: Ints, probs_BK: Floats, k: int) -> float:  # noqa: ANN401  (scikit-learn has no types)
    positive_B = label_B == k
    if positive_B.all() or not positive_B.any():
        return float("nan")
    return float(score(positive_B, probs_BK[:, k]))


def _undefined(
    label_B: Ints, pred_B: Ints, class_names: ClassNames, *, with_probs: bool
) -> dict[str, str]:
    reasons = {}
    one_vs_rest = ", auroc, average_precision" if with_probs else ""
    for k, name in enumerate(class_names.names):
        has_images, is_predicted = bool((label_B == k).any()), bool((pred_B == k).any())
        if not has_images:
            reasons[name] = f"recall{one_vs_rest}: no image of this class"
        elif with_probs and (label_B == k).all():
            reasons[name] = "auroc, average_precision: no image of another class"
        if not is_predicted:
            reason = "precision: never predicted"
            reasons[name] = f"{reasons[name]}; {reason}" if name in reasons else reason
    return reasons


def _by_name(values_K: list[float], class_names: ClassNames) -> dict[str, float | None]:
    return {name: number_or_null(values_K[k]) for k, name in enumerate(class_names.names)}


def number_or_null(value: float) -> float | None:
    """Return a number as JSON may hold it: null for NaN."""
    return float(value) if np.isfinite(value) else None


def defined_mean(values: Any) -> float | None:  # noqa: ANN401  (list or array of floats)
    """Return the mean of the values that are not NaN; null where there is none."""
    finite = [float(value) for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None
