"""Every metric, once: what it is, with its interval.

In: labels, what was predicted, probabilities. Out: numbers of weighted images: weights of one give
the value, those of a bootstrap draw give one more of which the interval is made. Invariant: nothing
here warns; a number that is not defined is NaN.

One label per image is the case of sets of one. A label set is kept as its (image, class) pairs, so
that a thousand classes cost no more than the labels that there are. A metric is a line in one of
the measures: [R] is a number of all classes, [R,K] goes by class (`IN_TABLE` says which into the
table). HEADLINES says which ones people see, where, and which value is the best.

Shape legend: B image, K class, P (image, class) pair, R draw.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.data.class_names import ClassNames
from imgcls.metrics.bootstrap import Measure
from imgcls.metrics.top_classes import Bools, Doubles, Floats, Ints, top_label

THRESHOLD: Final = 0.5  # from which on a class is predicted, of several labels without a threshold
# Equal-width bins of confidence; Guo et al. 2017, "On Calibration of Modern Neural Networks".
NUM_ECE_BINS: Final = 15
TOP_K: Final = 5
IN_TABLE: Final = ("precision", "recall", "f1", "support", "num_predicted")


@dataclass(frozen=True, slots=True)
class Headline:
    """How people see a metric; one that is not in HEADLINES is in bundle.json alone."""

    name: str
    best: int = 1
    limits: tuple[float, float] | None = (0.0, 1.0)
    """What its interval is cut at; None where it has no upper limit."""
    words: str = ""
    """What the name stands for, where it is not a word."""
    in_card: bool = True
    in_list: bool = False
    """Also in `imgcls models`."""
    of_slices: bool = False
    """Also of each slice."""
    of_all_images: bool = False
    """A share of all images; others hang on the class with the fewest."""


HEADLINES: Final = (
    Headline("accuracy", in_list=True, of_all_images=True),
    Headline("subset_accuracy", in_card=False, of_all_images=True),
    Headline("top5_accuracy", of_all_images=True),
    Headline("balanced_accuracy", in_list=True, of_slices=True),
    Headline("hamming_loss", best=0, in_card=False, of_slices=True, of_all_images=True),
    Headline("macro_recall", in_card=False, of_slices=True),
    Headline("macro_f1", of_slices=True),
    Headline("weighted_f1"),
    Headline("micro_f1"),
    Headline("auroc_macro", in_list=True),
    Headline("average_precision_macro"),
    Headline("log_loss", best=0, limits=None),
    Headline("ece", best=0, words="expected calibration error", of_all_images=True),
    Headline("brier", best=0, limits=(0.0, 2.0), of_all_images=True),
)


def about_best() -> str:
    """Return a sentence that says which values of the metrics of a card are good."""
    names = [
        f"{each.name} ({each.words})" if each.words else each.name
        for each in HEADLINES
        if each.in_card and each.best == 0
    ]
    return f"1 is best, but for {', '.join(names[:-1])} and {names[-1]}, of which 0 is best."


def headline_of(name: str) -> Headline:
    """Return the line of a metric; of one that is not in the table what most are."""
    of_first = name.startswith("top") and name.endswith("_accuracy")
    usual = Headline(name, of_all_images=of_first)
    return next((each for each in HEADLINES if each.name == name), usual)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their labels and what a model said of them.

    `probs_BK` is finite, None where it is not known; of one label per image its rows sum to 1.
    """

    target_BK: Bools
    predicted_BK: Bools
    class_names: ClassNames
    multi_label: bool
    probs_BK: Floats | None = None

    def __post_init__(self) -> None:
        shape = (len(self.target_BK), len(self.class_names))
        assert len(self.target_BK) > 0, "no images to measure"
        assert self.target_BK.shape == self.predicted_BK.shape == shape
        if self.probs_BK is not None:
            assert self.probs_BK.shape == shape, f"probs of shape {self.probs_BK.shape}"
            assert np.isfinite(self.probs_BK).all(), "probabilities must be finite"

    @property
    def label_B(self) -> Ints:
        """The only label of each image."""
        assert not self.multi_label, "such images have any number of labels"
        label_B: Ints = self.target_BK.argmax(axis=1)
        return label_B

    def only(self, is_inside_B: Bools) -> "Labelled":
        """Return some of the images, without their probabilities."""
        target_BK, predicted_BK = self.target_BK[is_inside_B], self.predicted_BK[is_inside_B]
        return Labelled(target_BK, predicted_BK, self.class_names, self.multi_label)


def sets_of(labels_B: list[tuple[int, ...]], num_classes: int) -> Bools:
    """Return True [B,K] for each class that is in an image's set."""
    target_BK = np.zeros((len(labels_B), num_classes), bool)
    for row, labels in enumerate(labels_B):
        target_BK[row, list(labels)] = True
    return target_BK


def one_hot(label_B: Ints, num_classes: int) -> Bools:
    """Return the label sets [B,K] of images with one label each."""
    return sets_of([(int(label),) for label in label_B], num_classes)


def cheap_measures(data: Labelled) -> list[Measure]:
    """Return those whose cost per draw is that of the images."""
    if data.probs_BK is None:
        return [SetMeasure(data)]
    if data.multi_label:
        return [SetMeasure(data), _PairScoreMeasure(data.target_BK, data.probs_BK)]
    return [SetMeasure(data), _ScoreMeasure(data.label_B, data.probs_BK)]


def ratio(part: Any, whole: Any) -> Any:  # noqa: ANN401  (numbers or arrays of them)
    """Divide, giving NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


def mean_defined(values_RK: Doubles) -> Doubles:
    """Average each row over what is defined; NaN where nothing is."""
    is_defined_RK = np.isfinite(values_RK)
    sum_R = np.where(is_defined_RK, values_RK, 0.0).sum(axis=1)
    return np.asarray(ratio(sum_R, is_defined_RK.sum(axis=1)))


class SetMeasure:
    """All that follows from the hits, the predictions and the images of each class.

    Macro averages run over the classes for which the number is defined: recall where the class has
    images, precision where it was predicted, F1 where either is so. Balanced accuracy is the mean
    recall; micro takes every (image, class) pair as one decision. Of several labels accuracy is the
    share of images with every class right.
    """

    def __init__(self, data: Labelled) -> None:
        self._num_classes = len(data.class_names)
        self._multi_label = data.multi_label
        self._pairs = [
            np.nonzero(sets_BK)
            for sets_BK in (
                data.target_BK & data.predicted_BK,
                data.target_BK,
                data.predicted_BK,
            )
        ]
        self._num_wrong_B = (data.target_BK != data.predicted_BK).sum(axis=1).astype(np.float64)
        self._is_right_B = (self._num_wrong_B == 0).astype(np.float64)

    def __call__(self, weight_RB: Doubles) -> dict[str, Doubles]:
        """Return the numbers of weighted images."""
        hits_RK, support_RK, predicted_RK = (self._count(weight_RB, *p) for p in self._pairs)
        total_R = weight_RB.sum(axis=1)
        recall_RK, precision_RK = ratio(hits_RK, support_RK), ratio(hits_RK, predicted_RK)
        f1_RK = ratio(2 * hits_RK, support_RK + predicted_RK)
        accuracy_R = (weight_RB * self._is_right_B).sum(axis=1) / total_R
        numbers = {
            "accuracy": accuracy_R,
            "macro_precision": mean_defined(precision_RK),
            "macro_recall": mean_defined(recall_RK),
            "macro_f1": mean_defined(f1_RK),
            "precision": precision_RK,
            "recall": recall_RK,
            "f1": f1_RK,
        }
        if not self._multi_label:
            return numbers | {
                "balanced_accuracy": numbers["macro_recall"],
                "weighted_f1": (np.nan_to_num(f1_RK) * support_RK).sum(axis=1) / total_R,
            }
        hits_R, support_R, predicted_R = (
            each.sum(axis=1) for each in (hits_RK, support_RK, predicted_RK)
        )
        wrong_R = (weight_RB * self._num_wrong_B).sum(axis=1) / total_R
        return numbers | {
            "subset_accuracy": accuracy_R,
            "hamming_loss": wrong_R / self._num_classes,
            "micro_precision": ratio(hits_R, predicted_R),
            "micro_recall": ratio(hits_R, support_R),
            "micro_f1": ratio(2 * hits_R, support_R + predicted_R),
        }

    def _count(
        self, weight_RB: Doubles, row_P: npt.NDArray[Any], class_P: npt.NDArray[Any]
    ) -> Doubles:
        """Add up the weights of the pairs of each class."""
        num_draws = len(weight_RB)
        cell_RP = class_P + self._num_classes * np.arange(num_draws)[:, None]
        flat = np.bincount(
            cell_RP.ravel(), weight_RB[:, row_P].ravel(), num_draws * self._num_classes
        )
        return flat.astype(np.float64).reshape(num_draws, self._num_classes)


class _ScoreMeasure:
    """Averages over the images: top-5, Brier and log loss; and the calibration error."""

    def __init__(self, label_B: Ints, probs_BK: Floats) -> None:
        num_classes = probs_BK.shape[1]
        # float32 rows sum to 1 within 1e-6 only.
        probs_BK = probs_BK.astype(np.float64)
        probs_BK = probs_BK / probs_BK.sum(axis=1, keepdims=True)
        own_B = probs_BK[np.arange(len(label_B)), label_B]
        self._top_name = f"top{min(TOP_K, num_classes)}_accuracy"
        is_top_B = (probs_BK > own_B[:, None]).sum(axis=1) < TOP_K
        # Summed over the classes, so 0..2, as Brier (1950) has it.
        brier_B = ((probs_BK - np.eye(num_classes)[label_B]) ** 2).sum(axis=1)
        loss_B = 0.0 - np.log(np.maximum(own_B, np.finfo(np.float64).eps))
        self._value_B3 = np.stack([is_top_B, brier_B, loss_B], axis=1)
        confidence_B = probs_BK.max(axis=1)
        # The gap of a bin is the sum over its images of correct minus confidence.
        gap_B = (top_label(probs_BK) == label_B) - confidence_B
        bin_B = np.minimum((confidence_B * NUM_ECE_BINS).astype(np.int64), NUM_ECE_BINS - 1)
        self._gap_BE = gap_B[:, None] * np.eye(NUM_ECE_BINS)[bin_B]

    def __call__(self, weight_RB: Doubles) -> dict[str, Doubles]:
        total_R = weight_RB.sum(axis=1)
        mean_R3 = weight_RB @ self._value_B3 / total_R[:, None]
        return {
            self._top_name: mean_R3[:, 0],
            "brier": mean_R3[:, 1],
            "log_loss": mean_R3[:, 2],
            "ece": np.abs(weight_RB @ self._gap_BE).sum(axis=1) / total_R,
        }


class _PairScoreMeasure:
    """The Brier score of classes by themselves: the mean over images and classes."""

    def __init__(self, target_BK: Bools, probs_BK: Floats) -> None:
        self._error_BK = (probs_BK.astype(np.float64) - target_BK) ** 2

    def __call__(self, weight_RB: Doubles) -> dict[str, Doubles]:
        mean_RK = weight_RB @ self._error_BK / weight_RB.sum(axis=1, keepdims=True)
        return {"brier": mean_RK.mean(axis=1), "brier_per_class": mean_RK}


class RankingMeasure:
    """AUROC and average precision, each class against the rest, and their means."""

    def __init__(self, target_BK: Bools, probs_BK: Floats) -> None:
        num_classes = target_BK.shape[1]
        self._classes = [Ranking(target_BK[:, k], probs_BK[:, k]) for k in range(num_classes)]

    def __call__(self, weight_RB: Doubles) -> dict[str, Doubles]:
        """Return the numbers of weighted images."""
        both_KR = [ranking(weight_RB) for ranking in self._classes]
        auroc_RK, ap_RK = (np.stack(values, axis=1) for values in zip(*both_KR, strict=True))
        return {
            "auroc": auroc_RK,
            "auroc_macro": mean_defined(auroc_RK),
            "average_precision": ap_RK,
            "average_precision_macro": mean_defined(ap_RK),
        }


class MicroRankingMeasure:
    """AUROC and average precision of all (image, class) pairs together."""

    def __init__(self, target_BK: Bools, probs_BK: Floats) -> None:
        self._pairs = Ranking(target_BK.reshape(-1), probs_BK.reshape(-1))
        self._num_classes = target_BK.shape[1]

    def __call__(self, weight_RB: Doubles) -> dict[str, Doubles]:
        """Return the numbers of weighted images."""
        auroc_R, ap_R = self._pairs(np.repeat(weight_RB, self._num_classes, axis=1))
        return {"auroc_micro": auroc_R, "average_precision_micro": ap_R}


class Ranking:
    """The images in falling order of one class's probability; equal ones form a step."""

    def __init__(self, positive_B: Bools, score_B: Floats) -> None:
        self._order = np.argsort(-score_B, kind="stable")
        self._positive = positive_B[self._order]
        sorted_score = score_B[self._order]
        self._step_starts = np.flatnonzero(np.r_[True, sorted_score[1:] != sorted_score[:-1]])

    def __call__(self, weight_RB: Doubles) -> tuple[Doubles, Doubles]:
        """Return AUROC and average precision [R] of weighted images, NaN without both kinds."""
        weight = weight_RB[..., self._order]
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
        return ratio(auroc, num_positive * num_negative), ratio(ap, num_positive)
