"""Fit the last layer on features: logistic regression, its strength by folds of whole groups.

In: features, labels, weights, groups. Out: weights and bias of a linear layer. Invariant: a
function of its arguments and the seed; no group is on both sides of a fold.

Features are brought to mean 0 and spread 1 for the solver, and the layer takes that back. Shape
legend: N image, E embedding, K classes.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from imgcls.errors import ConfigError
from imgcls.in_order import in_order
from imgcls.inference.device import num_cores_here

# Inverse of the penalty on the squared weights, of which the folds choose; strong ones first.
STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
_WITHOUT_FOLDS: Final = 1e-2
_NUM_FOLDS: Final = 5
# Images that the strength is chosen on; more hardly change it, and cost minutes.
_MAX_FOLD_IMAGES: Final = 5_000
_MAX_STEPS: Final = 300
# Probability of a class that a training image never shows, or always does: log odds of it.
_ABSENT_LOGIT: Final = 10.0
_LEAST_PROB: Final = 1e-7
# Log loss beside that of the class shares alone, from which on the features tell something.
_CLEARLY_BETTER: Final = 0.9

Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LinearHead:
    """A linear layer, and how it was chosen."""

    weight_KE: npt.NDArray[np.float32]
    bias_K: npt.NDArray[np.float32]
    strength: float
    loss_by_strength: dict[str, float]
    """Log loss on held-out folds, empty where there were too few groups to choose by."""


def fit_linear_head(
    features_NE: npt.NDArray[np.float32],
    target_NK: npt.NDArray[np.bool_],
    *,
    weight_N: npt.NDArray[np.float32],
    group_N: npt.NDArray[np.int64],
    multi_label: bool,
    seed: int,
) -> LinearHead:
    """Fit a layer whose softmax, or sigmoid of each class, gives the labels of the features.

    Args:
        features_NE: of the training images.
        target_NK: the classes that each image shows: one, or any number if multi-label.
        weight_N: how much each image counts.
        group_N: what belongs together, such as the images of a patient.
        multi_label: a class by itself each.
        seed: of the folds.
    """
    x_NE, mean_E, spread_E = _standardise(features_NE)
    with _one_thread_a_fit():
        losses = _losses(x_NE, target_NK, weight_N, group_N, multi_label, seed)
        strength = _least(losses)
        weight_KE, bias_K = _fit(x_NE, target_NK, weight_N, strength, multi_label)
    weight_KE = weight_KE / spread_E
    bias_K = bias_K - weight_KE @ mean_E
    return LinearHead(
        weight_KE.astype(np.float32),
        bias_K.astype(np.float32),
        strength,
        {f"{value:g}": round(loss, 6) for value, loss in losses.items()},
    )


def out_of_fold_probs(
    features_NE: npt.NDArray[np.float32],
    target_NK: npt.NDArray[np.bool_],
    group_N: npt.NDArray[np.int64],
    seed: int,
) -> Doubles:
    """Return what models say of images that they have not seen: [N,K], each row of one fold.

    Args:
        features_NE: of the images.
        target_NK: the one class of each.
        group_N: what belongs together: all of it is on one side of a fold.
        seed: of the folds.

    Raises:
        ConfigError: fewer than two groups.
    """
    parts = _folds(target_NK, group_N, False, seed)
    if not parts:
        raise ConfigError("all images are of one group: no model can be kept from seeing it")
    x_NE, _, _ = _standardise(features_NE)
    weight_N = np.ones(len(x_NE), np.float32)
    # One number that all images chose together tells a model nothing of one of them.
    probs_NK = np.zeros(target_NK.shape)
    with _one_thread_a_fit():
        strength = _least(_losses(x_NE, target_NK, weight_N, group_N, False, seed))
        for train, test in parts:
            layer = _fit(x_NE[train], target_NK[train], weight_N[train], strength, False)
            logits_NK = x_NE[test] @ layer[0].T + layer[1]
            odds_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
            probs_NK[test] = odds_NK / odds_NK.sum(axis=1, keepdims=True)
    return probs_NK


@contextmanager
def _one_thread_a_fit() -> Iterator[None]:
    """Let a fit be one thread, whatever there are: sums in one order, and the fits side by side.

    Products of a few thousand images are so small that threads wait for each other: with two of
    them 6,000 x 2,048 took 20 s, with one 8 s, and 605 x 1,024 4.7 s and 0.9 s.
    """
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        # A weak penalty on classes that can be told apart never ends: the folds do not choose it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def balanced_weights(target_NK: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return weights [N] by which each class, an image's only one, counts the same in all."""
    count_K = np.maximum(target_NK.sum(axis=0), 1)
    weight_K = len(target_NK) / ((target_NK.any(axis=0)).sum() * count_K)
    weight_N: npt.NDArray[np.float32] = (target_NK * weight_K).sum(axis=1).astype(np.float32)
    return weight_N


def _standardise(features_NE: npt.NDArray[np.float32]) -> tuple[Doubles, Doubles, Doubles]:
    """Return features of mean 0 and spread 1, and what was taken from them: mean, spread [E].

    What is the same in all images, but for rounding, is left at 0.
    """
    mean_E = features_NE.mean(axis=0, dtype=np.float64)
    spread_E = features_NE.std(axis=0, dtype=np.float64)
    spread_E[spread_E < 1e-6 * max(float(spread_E.max(initial=0.0)), 1e-6)] = 1.0
    return (features_NE - mean_E) / spread_E, mean_E, spread_E


def _folds(
    target_NK: npt.NDArray[np.bool_], group_N: npt.NDArray[np.int64], multi_label: bool, seed: int
) -> list[tuple[Rows, Rows]]:
    """Return (rows that fit, rows held out) per fold, whole groups; none of a single group."""
    num_folds = min(_NUM_FOLDS, len(np.unique(group_N)))
    if num_folds < 2:
        return []
    folds: Any = GroupKFold(num_folds)
    if not multi_label:
        folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer images than folds
        return list(folds.split(group_N, target_NK.argmax(axis=1), group_N))


def _least(losses: dict[float, float]) -> float:
    """Return the strength of the least loss, the strongest of equal ones."""
    return min(losses, key=losses.__getitem__, default=_WITHOUT_FOLDS)


def _losses(
    x_NE: Doubles,
    target_NK: npt.NDArray[np.bool_],
    weight_N: npt.NDArray[np.float32],
    group_N: npt.NDArray[np.int64],
    multi_label: bool,
    seed: int,
) -> dict[float, float]:
    """Return the log loss on held-out folds by strength; empty where there are too few groups."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(x_NE))[:_MAX_FOLD_IMAGES])
    parts = [
        (rows[train], rows[test])
        for train, test in _folds(target_NK[rows], group_N[rows], multi_label, seed)
    ]
    if not parts:
        return {}

    def loss_of(features_NE: Doubles, strength: float) -> float:
        def of_fold(rows: tuple[Rows, Rows]) -> float:
            train, test = rows
            of_train = features_NE[train], target_NK[train], weight_N[train]
            layer = _fit(*of_train, strength, multi_label)
            return _log_loss(features_NE[test], layer, target_NK[test], weight_N[test], multi_label)

        return float(np.mean(list(in_order(of_fold, parts, num_cores_here()))))

    guess = loss_of(np.zeros((len(x_NE), 1)), 1.0)
    losses: dict[float, float] = {}
    for strength in STRENGTHS:
        losses[strength] = loss_of(x_NE, strength)
        # The weaker the penalty, the longer the solver takes: past the best one there is no need.
        # Under strong ones the loss is that of a guess, and rises and falls with the folds alone.
        best = min(losses.values())
        if best < _CLEARLY_BETTER * guess and losses[strength] > best:
            break
    return losses


def _fit(
    x_NE: Doubles,
    target_NK: npt.NDArray[np.bool_],
    weight_N: npt.NDArray[np.float32],
    strength: float,
    multi_label: bool,
) -> tuple[Doubles, Doubles]:
    if multi_label:
        rows = [_fit_one(x_NE, of_N, weight_N, strength) for of_N in target_NK.T]
        return np.stack([w for w, _ in rows]), np.array([b for _, b in rows])
    label_N = target_NK.argmax(axis=1)
    there = np.unique(label_N)
    weight_KE = np.zeros((target_NK.shape[1], x_NE.shape[1]))
    bias_K = np.zeros(target_NK.shape[1])
    if len(there) > 1:
        model = _solve(x_NE, label_N, weight_N, strength)
        coef, intercept = model.coef_, model.intercept_
        if len(there) == 2:  # one row for the odds of the two
            coef = np.concatenate([-coef, coef]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        weight_KE[there], bias_K[there] = coef, intercept
    absent = np.setdiff1d(np.arange(len(bias_K)), there)
    bias_K[absent] = bias_K[there].min() - _ABSENT_LOGIT
    return weight_KE, bias_K


def _fit_one(
    x_NE: Doubles,
    is_there_N: npt.NDArray[np.bool_],
    weight_N: npt.NDArray[np.float32],
    strength: float,
) -> tuple[Doubles, float]:
    if is_there_N.all() or not is_there_N.any():
        return np.zeros(x_NE.shape[1]), _ABSENT_LOGIT if is_there_N.all() else -_ABSENT_LOGIT
    model = _solve(x_NE, is_there_N, weight_N, strength)
    return model.coef_[0], float(model.intercept_[0])


def _solve(
    x_NE: Doubles, label_N: npt.NDArray[Any], weight_N: npt.NDArray[np.float32], strength: float
) -> Any:  # noqa: ANN401 - scikit-learn is untyped
    model = LogisticRegression(C=strength, max_iter=_MAX_STEPS)
    return model.fit(x_NE, label_N, sample_weight=weight_N)


def _log_loss(
    x_NE: Doubles,
    layer: tuple[Doubles, Doubles],
    target_NK: npt.NDArray[np.bool_],
    weight_N: npt.NDArray[np.float32],
    multi_label: bool,
) -> float:
    weight_KE, bias_K = layer
    logits_NK = x_NE @ weight_KE.T + bias_K
    if multi_label:
        odds_NK = np.where(target_NK, logits_NK, -logits_NK)
        loss_N = np.logaddexp(0, -odds_NK).mean(axis=1)
    else:
        top_N1 = logits_NK.max(axis=1, keepdims=True)
        log_sum_N = np.log(np.exp(logits_NK - top_N1).sum(axis=1)) + top_N1[:, 0]
        loss_N = log_sum_N - logits_NK[np.arange(len(logits_NK)), target_NK.argmax(axis=1)]
    return float(np.average(np.minimum(loss_N, -np.log(_LEAST_PROB)), weights=weight_N))
