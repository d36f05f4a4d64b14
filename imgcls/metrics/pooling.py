"""Several instances, one answer: tiles of a picture, frames of a file, images of a study.

In: the probabilities (or logits) of the instances. Out: those of the sample. Invariants: training
and scoring pool by the same formula; a sample of one instance keeps its numbers to the bit; where
the numbers of an instance sum to 1, those of the sample do, too.

Each class by itself (multi-label):

    max         the highest probability
    mean        the mean
    top3_mean   the mean of the three highest
    noisy_or    1 - product of (1 - p): some instance shows it, were the instances independent

Of several classes that exclude each other one may be the *background*: what a sample is where no
instance says otherwise (good, normal). A hundred good tiles are no vote against one scratch, so the
instances are ordered by how little background they are:

    max         the instance with the least background; all of its probabilities
    mean        the mean
    top3_mean   the mean of the three instances with the least background
    noisy_or    background: the product over the instances; the other classes share what is left
                in proportion to their own noisy-or

Without a background a class is pooled as if by itself, and the sum is brought back to 1: right
where any instance may say what the sample shows, wrong where most say "nothing here"; name a
background there.

Gradient of the torch form: `max` reaches one instance, `top3_mean` three, `mean` and `noisy_or`
all; of `noisy_or` mostly those that are likely already.

Shape legend: I instance, K class, S sample, N most instances of a sample.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Pooling = Literal["max", "mean", "top3_mean", "noisy_or"]
POOLINGS: Final[tuple[Pooling, ...]] = get_args(Pooling)

# What people call the class of a picture that shows nothing; compared in small letters.
_BACKGROUND_NAMES: Final = frozenset(
    ["background", "good", "healthy", "negative", "no_finding", "none", "normal", "ok", "pass"]
)
_NUM_TOP: Final = 3
_TINY: Final = 1e-38  # the least float32 whose logarithm is exact enough
_FLAT: Final = 1e-6  # below it log(1 - exp(-x)) is log(x), within float32

Floats = npt.NDArray[np.floating[Any]]


def background_of(
    class_names: Sequence[str], positive_classes: Collection[str] = (), *, multi_label: bool
) -> int | None:
    """Return the label that pooling takes as background, None where no class is known to be it.

    Args:
        class_names: The K classes.
        positive_classes: Those that must be found: one class left over is the background.
        multi_label: Each class is by itself: there is no background.
    """
    if multi_label:
        return None
    others = [name for name in class_names if name not in positive_classes]
    if positive_classes and len(others) == 1:
        return class_names.index(others[0])
    named = [name for name in others if name.lower() in _BACKGROUND_NAMES]
    return class_names.index(named[0]) if len(named) == 1 else None


def pool(
    probs_IK: Floats, rule: Pooling, *, multi_label: bool, background: int | None = None
) -> Floats:
    """Return the probabilities [K] of one sample, dtype kept.

    Args:
        probs_IK: Of its instances, at least one, 0..1.
        rule: See above.
        multi_label: Each class has a probability of its own; else rows sum to 1.
        background: Label of the background, of classes that exclude each other.
    """
    assert len(probs_IK) > 0, "a sample has at least one instance"
    if len(probs_IK) == 1:
        only_K: Floats = probs_IK[0]
        return only_K
    p_IK = probs_IK.astype(np.float64)
    if multi_label or background is None:
        pooled_K = _each(p_IK, rule)
        pooled_K = pooled_K if multi_label else pooled_K / max(pooled_K.sum(), _TINY)
    elif rule == "noisy_or":
        rest_K = _each(p_IK, rule)
        rest_K[background] = 0.0
        background_prob = p_IK[:, background].prod()
        pooled_K = rest_K * (1.0 - background_prob) / max(rest_K.sum(), _TINY)
        pooled_K[background] = background_prob
    else:
        num = {"max": 1, "mean": len(p_IK), "top3_mean": _NUM_TOP}[rule]
        loudness_I2 = loudness(p_IK, multi_label=False, background=background)
        first = _loudest_first(loudness_I2)[:num]
        pooled_K = p_IK[first].mean(axis=0)
    return pooled_K.astype(probs_IK.dtype)


def pool_samples(
    probs_IK: Floats,
    sample_I: npt.NDArray[np.integer[Any]],
    rule: Pooling,
    *,
    multi_label: bool,
    background: int | None = None,
) -> Floats:
    """Return the probabilities [S,K] of samples 0..S-1, each of which has an instance.

    Args:
        probs_IK: Of the instances, in any order.
        sample_I: The sample of each.
        rule: As for `pool`, like what follows.
        multi_label: As for `pool`.
        background: As for `pool`.
    """
    rows_S = _rows_by_sample(sample_I)
    pooled = [
        pool(probs_IK[rows], rule, multi_label=multi_label, background=background)
        for rows in rows_S
    ]
    return np.stack(pooled) if pooled else probs_IK[:0]


def best_instance(probs_IK: Floats, *, multi_label: bool, background: int | None = None) -> int:
    """Return the row that speaks loudest: the least background, else the highest probability.

    It is the instance that `max` takes, and the place that a row of a picture points to under every
    rule. The first of equal ones.
    """
    return int(
        _loudest_first(loudness(probs_IK, multi_label=multi_label, background=background))[0]
    )


def loudness(
    probs_IK: Floats, *, multi_label: bool, background: int | None = None
) -> npt.NDArray[np.float64]:
    """Return how loud each instance speaks, [I,2]: the second number decides between equal first.

    With a background: how little of it there is; where a model is so sure of it that this is the
    same in every digit, the other classes tell. Else the highest probability.
    """
    p_IK = probs_IK.astype(np.float64)
    if multi_label or background is None:
        highest_I = p_IK.max(axis=1)
        return np.stack([highest_I, np.zeros_like(highest_I)], axis=1)
    others_I = np.delete(p_IK, background, axis=1).sum(axis=1)
    return np.stack([-p_IK[:, background], others_I], axis=1)


def pool_logits(
    logits_IK: "Tensor",
    sample_I: npt.NDArray[np.integer[Any]],
    rule: Pooling,
    *,
    multi_label: bool,
    background: int | None = None,
) -> "Tensor":
    """Return logits [S,K] whose sigmoid or softmax is what `pool_samples` gives; with gradient.

    All is computed as logarithms, so that nothing overflows or loses its gradient.

    Args:
        logits_IK: Of the instances, on any device.
        sample_I: The sample of each, 0..S-1, on the CPU: the device is never waited for.
        rule: As for `pool`, like what follows.
        multi_label: As for `pool`.
        background: As for `pool`.
    """
    import torch

    rows_SN, is_real_SN = _padded(sample_I)
    rows = torch.from_numpy(rows_SN).to(logits_IK.device)
    is_real_SN1 = torch.from_numpy(is_real_SN)[..., None].to(logits_IK.device)
    if multi_label:
        yes_SNK = torch.nn.functional.logsigmoid(logits_IK)[rows]
        no_SNK = torch.nn.functional.logsigmoid(-logits_IK)[rows]
        return _log_each(yes_SNK, no_SNK, is_real_SN1, rule)
    log_IK = logits_IK.log_softmax(dim=1)
    log_SNK = log_IK[rows]
    # log(1 - p_k) is the logarithm of the other classes' sum.
    others_SNK = _log_sum_of_others(log_IK)[rows]
    if background is None:
        logit_SK = _log_each(log_SNK, others_SNK, is_real_SN1, rule)
        return torch.nn.functional.logsigmoid(logit_SK).log_softmax(dim=1)
    if rule == "noisy_or":
        some_SK = torch.nn.functional.logsigmoid(_log_each(log_SNK, others_SNK, is_real_SN1, rule))
        is_background_K = torch.arange(log_IK.shape[1], device=log_IK.device) == background
        share_SK = some_SK.masked_fill(is_background_K, -torch.inf).log_softmax(dim=1)
        none_S1 = log_SNK[..., background].masked_fill(~is_real_SN1[..., 0], 0.0).sum(1)[:, None]
        yes_S1 = _log_not(none_S1, _log_sum(others_SNK[..., background, None], is_real_SN1))
        return torch.where(is_background_K, none_S1, yes_S1 + share_SK)
    if rule == "mean":
        return _log_mean(log_SNK, is_real_SN1)
    num = min(1 if rule == "max" else _NUM_TOP, log_SNK.shape[1])
    order_SN = log_SNK[..., background].masked_fill(~is_real_SN1[..., 0], torch.inf)
    first_SN1 = order_SN.argsort(dim=1, stable=True)[:, :num, None]
    chosen = log_SNK.gather(1, first_SN1.expand(-1, -1, log_SNK.shape[2]))
    return _log_mean(chosen, is_real_SN1.gather(1, first_SN1))


def _loudest_first(loudness_I2: npt.NDArray[np.float64]) -> npt.NDArray[np.integer[Any]]:
    """Return the instances in order, the first of equal ones first."""
    return np.lexsort((-loudness_I2[:, 1], -loudness_I2[:, 0]))


def _each(p_IK: npt.NDArray[np.float64], rule: Pooling) -> npt.NDArray[np.float64]:
    """Pool float64 [I,K] class by class."""
    if rule == "noisy_or":
        # As logarithms: 1 - (1 - 1e-20) would be 0.
        with np.errstate(divide="ignore"):
            return np.asarray(-np.expm1(np.log1p(-p_IK).sum(axis=0)))
    if rule == "top3_mean":
        p_IK = np.sort(p_IK, axis=0)[-_NUM_TOP:]
    return np.asarray(p_IK.max(axis=0) if rule == "max" else p_IK.mean(axis=0))


def _rows_by_sample(sample_I: npt.NDArray[np.integer[Any]]) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each sample, in their order."""
    order = np.argsort(sample_I, kind="stable")
    counts = np.bincount(sample_I) if len(sample_I) else np.zeros(0, np.int64)
    assert (counts > 0).all(), "every sample from 0 on has an instance"
    return np.split(order, np.cumsum(counts)[:-1]) if len(counts) else []


def _padded(
    sample_I: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the rows of each sample [S,N], and which of them are real; the others are row 0."""
    rows_S = _rows_by_sample(sample_I)
    shape = (len(rows_S), max(map(len, rows_S), default=0))
    rows_SN, is_real_SN = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for sample, rows in enumerate(rows_S):
        rows_SN[sample, : len(rows)] = rows
        is_real_SN[sample, : len(rows)] = True
    return rows_SN, is_real_SN


def _log_each(
    yes_SNK: "Tensor", no_SNK: "Tensor", is_real_SN1: "Tensor", rule: Pooling
) -> "Tensor":
    """Return the logit [S,K] of each class by itself, from log p and log(1 - p)."""
    import torch

    if rule == "noisy_or":
        none_SK = no_SNK.masked_fill(~is_real_SN1, 0.0).sum(dim=1)
        return _log_not(none_SK, _log_sum(yes_SNK, is_real_SN1)) - none_SK
    if rule == "mean":
        return _log_mean(yes_SNK, is_real_SN1) - _log_mean(no_SNK, is_real_SN1)
    num = min(1 if rule == "max" else _NUM_TOP, yes_SNK.shape[1])
    top_SnK, first_SnK = yes_SNK.masked_fill(~is_real_SN1, -torch.inf).topk(num, dim=1)
    is_real_SnK = is_real_SN1.expand_as(yes_SNK).gather(1, first_SnK)
    return _log_mean(top_SnK, is_real_SnK) - _log_mean(no_SNK.gather(1, first_SnK), is_real_SnK)


def _log_sum(log_SNK: "Tensor", is_real: "Tensor") -> "Tensor":
    import torch

    return log_SNK.masked_fill(~is_real, -torch.inf).logsumexp(dim=1)


def _log_mean(log_SNK: "Tensor", is_real: "Tensor") -> "Tensor":
    return _log_sum(log_SNK, is_real) - is_real.sum(dim=1).log()


def _log_not(log_none: "Tensor", log_sum: "Tensor") -> "Tensor":
    """Return log(1 - exp(log_none)); where that is tiny it is the sum of the probabilities."""
    import torch

    is_flat = log_none > -_FLAT
    steep = torch.where(is_flat, -_FLAT, log_none)
    return torch.where(is_flat, log_sum, (-torch.expm1(steep)).log())


def _log_sum_of_others(log_IK: "Tensor") -> "Tensor":
    """Return log(1 - p) per class; of the likeliest by adding up the others: nothing is lost."""
    import torch

    likeliest_I1 = log_IK.argmax(dim=1, keepdim=True)
    is_top_IK = torch.zeros_like(log_IK, dtype=torch.bool).scatter(1, likeliest_I1, value=True)
    of_top_I1 = log_IK.masked_fill(is_top_IK, -torch.inf).logsumexp(dim=1, keepdim=True)
    below = torch.log1p(-torch.where(is_top_IK, -1.0, log_IK).exp())
    return torch.where(is_top_IK, of_top_I1, below)
