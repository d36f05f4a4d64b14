"""What a training comes to, for people: the verdict, and the pictures beside it.

In: what was measured. Out: a Verdict; PNG files of the scores for the bundle; a sheet of the worst
errors for the run's folder. Invariants: all of them speak of the same images, those of test, or of
val where there is no test; a picture that cannot be drawn costs no model.

Shape legend: B image, K class.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np

from imgcls.metrics.calibration import calibrated
from imgcls.metrics.measures import sets_of
from imgcls.metrics.pooling import background_of
from imgcls.metrics.top_classes import Doubles
from imgcls.metrics.verdict import Prior, Verdict, judge, not_measured
from imgcls.training.data.unit_loader import Loader
from imgcls.training.finish.errors_sheet import WrongImage, as_seen, draw_errors, worst_errors
from imgcls.training.finish.measure import Measured
from imgcls.training.finish.score_plots import ClassScores, histogram, roc_and_precision
from imgcls.training.train_plan import OUT_OF_FOLD, TrainPlan

ROC, SCORES, ERRORS = "roc.png", "scores.png", "worst_errors.png"
_MAX_SAID: Final = 3  # classes of a picture of several labels that the sheet names

log = logging.getLogger(__name__)


def reach_verdict(plan: TrainPlan, measured: Measured) -> Verdict:
    """Judge the model by the split that decided least."""
    split = measured.split
    if not split:
        return not_measured(
            "no image was held out, so nothing was measured; give --test-fraction, or measure it "
            "by `imgcls evaluate`"
        )
    beware = []
    if split == "val":
        beware.append(
            "there is no test split; val chose the weights and the threshold, so these numbers are "
            "a little too good."
        )
    if split == OUT_OF_FOLD:
        beware.append(
            f"these numbers are of {plan.config.folds} models, each trained without the images "
            "that measure it; the model itself was then trained on all, and was not measured."
        )
    if plan.config.unit:
        beware.append(
            f"the answers are of units by --unit {plan.config.unit}, several images with one label "
            "each; of a single image nothing was measured."
        )
    if measured.missing:
        beware.append(f"{measured.missing}.")
    calibration = measured.calibration
    return judge(
        split,
        measured.outcomes[split],
        plan.class_names,
        prior_of(plan),
        measured.metrics[split],
        calibration.operating_points if calibration is not None else (),
        beware,
        "unit" if plan.config.unit else "image",
    )


def prior_of(plan: TrainPlan) -> Prior:
    """Count the classes of the training split."""
    train = plan.learnt("train")
    counts = Counter(label for sample in train for label in sample.labels)
    return Prior(np.array([counts[k] for k in range(len(plan.class_names))]), len(train))


def draw_scores(plan: TrainPlan, measured: Measured, verdict: Verdict) -> dict[str, bytes]:
    """Return pictures of the scores, by file name; what cannot be drawn is left out, and logged."""
    if not measured.split:
        return {}
    classes = _class_scores(plan, measured, verdict)
    draw: dict[str, Callable[[], bytes]] = {}
    if any(scores.has_both for scores in classes):
        draw[ROC] = lambda: roc_and_precision(classes, measured.split)
    if len(classes) == 1 or classes[0].point is not None:
        draw[SCORES] = lambda: histogram(classes[0], measured.split)
    return {name: data for name, picture in draw.items() if (data := _drawn(name, picture))}


def draw_worst_errors(plan: TrainPlan, measured: Measured, loader: Loader) -> bytes:
    """Return the sheet of the worst errors of the split; nothing where there is none.

    Args:
        plan: The training's plan.
        measured: What was measured.
        loader: Of `measured.split`.
    """
    outcomes = measured.outcomes[measured.split]
    probs_BK = _probs(plan, measured)
    target_BK = outcomes.target_BK(len(plan.class_names))
    predicted_BK = sets_of(outcomes.predicted, len(plan.class_names))
    rows = worst_errors(target_BK, predicted_BK, probs_BK)
    if not rows:
        return b""

    def picture() -> bytes:
        index_B = measured.predicted[measured.split].index_B[rows]
        x_by_index = dict[int, np.ndarray]()
        for batch in loader.batches([index_B]):
            for sample, index in enumerate(batch.index_B.tolist()):
                if batch.weight_B[sample] > 0:
                    x_by_index[index] = as_seen(batch.x_BCHW[batch.rows_of(sample)].numpy())
        wrong = []
        for row, index in zip(rows, index_B.tolist(), strict=True):
            if index not in x_by_index:
                continue
            said = np.flatnonzero(predicted_BK[row])
            # Of several labels: how sure it was of the one that it decided wrongly.
            decisive = np.abs(target_BK[row] - probs_BK[row]).argmax()
            wrong.append(
                WrongImage(
                    name=loader.samples[index].uri,
                    x_CHW=x_by_index[index],
                    shows=_names(plan, np.flatnonzero(target_BK[row])),
                    said=_names(plan, said),
                    prob=float(probs_BK[row, said[0] if len(said) == 1 else decisive]),
                )
            )
        num_wrong = int((target_BK != predicted_BK).any(axis=1).sum())
        return draw_errors(wrong, num_wrong, len(target_BK), measured.split, plan.answered)

    return _drawn(ERRORS, picture)


def _class_scores(plan: TrainPlan, measured: Measured, verdict: Verdict) -> list[ClassScores]:
    """Return the scores of the class that is looked for; without one, of all classes."""
    names = plan.class_names.names
    outcomes, metrics = measured.outcomes[measured.split], measured.metrics[measured.split]
    target_BK, probs_BK = outcomes.target_BK(len(names)), _probs(plan, measured)
    points = measured.calibration.operating_points if measured.calibration is not None else ()
    is_two = len(names) == 2 and not plan.config.multi_label
    if points:
        chosen = [names.index(points[0].positive_class)]
    elif is_two:
        chosen = [_looked_for(plan)]
    else:
        chosen = list(range(len(names)))
    return [
        ClassScores(
            class_name=names[k],
            other_name=names[1 - k] if is_two else "",
            score_B=probs_BK[:, k],
            positive_B=target_BK[:, k],
            auroc=metrics["auroc"][names[k]],
            average_precision=metrics["average_precision"][names[k]],
            point=points[0] if points else None,
            counted=verdict.operating_points[0] if verdict.operating_points else None,
            answered=plan.answered,
        )
        for k in chosen
    ]


def _looked_for(plan: TrainPlan) -> int:
    """Return which of two classes is looked for: the one that is not "normal", or the rarer."""
    background = plan.recipe.background
    if background is None:
        background = background_of(plan.class_names.names, multi_label=False)
    if background is not None:
        return 1 - background
    return int(prior_of(plan).counts_K.argmin())


def _probs(plan: TrainPlan, measured: Measured) -> Doubles:
    """Return the probabilities of the split, calibrated where there is a calibration."""
    probs_BK = measured.predicted[measured.split].probs_BK
    temperature = measured.calibration.temperature if measured.calibration is not None else 1.0
    return calibrated(probs_BK, temperature, multi_label=plan.config.multi_label)


def _names(plan: TrainPlan, labels: np.ndarray) -> str:
    names = [plan.class_names.names[label] for label in labels[:_MAX_SAID]]
    return " and ".join(names) + (" ..." if len(labels) > _MAX_SAID else "") or "nothing"


def _drawn(name: str, picture: Callable[[], bytes]) -> bytes:
    try:
        return picture()
    except Exception:  # a picture is not a reason to lose the model
        log.warning("%s could not be drawn", name, exc_info=True)
        return b""
