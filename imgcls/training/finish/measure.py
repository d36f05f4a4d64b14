"""What the best weights are worth, measured by the code that will score with them.

In: a Predictor, loaders of val and test, a plan. Out: metrics per split, and the calibration.
Invariants: no image measured here has given a gradient; the calibration comes from val alone, and
the test split decided nothing. An operating point that cannot be fitted costs no model.

Shape legend: B image, N all images of a split, K classes.
"""

import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.image.decoders.pool import Crop, Decoded
from imgcls.inference.collect import Collected, NoPrediction, collect
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.predictor import Predictor
from imgcls.metrics.calibration import Calibration, fit_calibration
from imgcls.metrics.operating_targets import operating_targets, why_no_points
from imgcls.metrics.outcomes import Outcomes
from imgcls.metrics.pooling import pool_samples
from imgcls.training.data.unit_loader import Loader, why_bad
from imgcls.training.finish.out_of_fold import read_out_of_fold, samples_of
from imgcls.training.train_plan import OUT_OF_FOLD, TrainPlan

# Test decided nothing; images out of their fold chose the threshold, and val the epoch as well.
MOST_TRUSTED: Final = ("test", OUT_OF_FOLD, "val")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What val and test say, as far as there are any.

    Attributes:
        metrics: By split, with 95 % intervals, with `slices` where --slice-by names a column, and
            with what the calibration achieves under `calibrated`.
        calibration: None without val.
        missing: In words why operating points that were asked for are not there; "" if they are.
        outcomes: By split, the images with what became of them.
        predicted: By split, the probabilities of those with a prediction, in the order of outcomes.
    """

    metrics: dict[str, Any]
    calibration: Calibration | None
    missing: str
    outcomes: Mapping[str, Outcomes]
    predicted: Mapping[str, Collected]

    @property
    def split(self) -> str:
        """The split that decided least: the first of MOST_TRUSTED that there is, or else ""."""
        return next((split for split in MOST_TRUSTED if split in self.metrics), "")


def measure_splits(predictor: Predictor, loaders: dict[str, Loader], plan: TrainPlan) -> Measured:
    """Measure val and test, as far as there are any."""
    predicted: dict[str, Collected] = {
        split: _predict(predictor, loaders[split], plan)
        for split in ("val", "test")
        if split in loaders
    }
    of_folds: list[dict[str, Any]] = []
    if plan.config.folds:
        predicted[OUT_OF_FOLD], of_folds = read_out_of_fold(plan)
    fit_on = OUT_OF_FOLD if plan.config.folds else "val"
    missing = _why_no_points(plan, fit_on, predicted[fit_on]) if fit_on in predicted else ""
    if missing:
        log.warning("%s", missing)
    calibration = (
        _fit(plan, fit_on, predicted[fit_on], not missing) if fit_on in predicted else None
    )
    outcomes = {split: _outcomes(plan, split, p, calibration) for split, p in predicted.items()}
    metrics: dict[str, Any] = {
        split: _measure(plan, of_split, predicted[split], calibration)
        for split, of_split in outcomes.items()
    }
    if of_folds:
        metrics[OUT_OF_FOLD]["folds"] = of_folds
    for split, numbers in metrics.items():
        if reason := numbers["intervals"].get("no_interval_because"):
            log.warning("no intervals of %s: there are %s", split, reason)
    return Measured(metrics, calibration, missing, outcomes, predicted)


def _predict(predictor: Predictor, loader: Loader, plan: TrainPlan) -> Collected:
    uris = [sample.uri for sample in loader.samples]
    found = collect(decoded_images(loader, predictor.batch_size), predictor, uris)
    bad = [
        NoPrediction(index, image.status, image.reason) for index, image in why_bad(loader).items()
    ]
    found = replace(found, failures=[*found.failures, *bad])
    return _pooled(found, plan) if plan.config.unit else found


def _pooled(found: Collected, plan: TrainPlan) -> Collected:
    """Return one answer per unit, out of those of its images; it failed where all of them did."""
    assert plan.recipe.pooling, "units are pooled"
    index_S, sample_I = np.unique(found.index_B, return_inverse=True)
    probs_SK = pool_samples(
        found.probs_BK,
        sample_I,
        plan.recipe.pooling,
        multi_label=plan.recipe.multi_label,
        background=plan.recipe.background,
    )
    answered = set(index_S.tolist())
    failures = {each.index: each for each in found.failures if each.index not in answered}
    return Collected(index_S, probs_SK.astype(np.float32), failures=list(failures.values()))


def decoded_images(
    loader: Loader, batch_size: int, index_N: npt.NDArray[np.int64] | None = None
) -> Generator[Decoded]:
    """Yield the images of a split, from its cache where it has them; `loader.bad` has the rest.

    Args:
        loader: of the split.
        batch_size: images at a time.
        index_N: which of them; all by default.
    """
    if index_N is None:
        index_N = np.arange(len(loader.samples))
    steps = (index_N[i : i + batch_size] for i in range(0, len(index_N), batch_size))
    for batch in loader.batches(steps):
        for sample, index in enumerate(batch.index_B.tolist()):
            if batch.weight_B[sample] > 0:
                crops = [
                    Crop(x_CHW, 0, 0, None) for x_CHW in batch.x_BCHW[batch.rows_of(sample)].numpy()
                ]
                yield Decoded(index, None, crops)


def _why_no_points(plan: TrainPlan, split: str, predicted: Collected) -> str:
    """Return why no threshold can be chosen that the flags ask for; "" if it can be.

    `check_operating_points` has looked at this before the training; since then images may have gone
    bad, or the model may give no finite number for them.
    """
    if not operating_targets(plan.config):
        return ""
    of_split = samples_of(plan, split)
    samples = [of_split[index] for index in predicted.index_B.tolist()]
    why = why_no_points(plan.config, plan.class_names, samples)
    num_lost = len(of_split) - len(samples)
    return f"{why} ({num_lost} more gave no pixels or no finite number)" if why else ""


def _fit(plan: TrainPlan, split: str, predicted: Collected, has_points: bool) -> Calibration | None:
    if not len(predicted.index_B):
        return None
    outcomes = _outcomes(plan, split, predicted, None)
    targets = operating_targets(plan.config, plan.class_names) if has_points else []
    return fit_calibration(
        predicted.probs_BK,
        outcomes.target_BK(len(plan.class_names)),
        plan.class_names,
        multi_label=plan.config.multi_label,
        unit_B=outcomes.units,
        targets=targets,
    )


def _measure(
    plan: TrainPlan, outcomes: Outcomes, predicted: Collected, calibration: Calibration | None
) -> dict[str, Any]:
    metrics = outcomes.result(plan.class_names, predicted.probs_BK)
    if plan.config.unit:
        metrics["of_units"] = {"key": plan.config.unit, "rule": plan.recipe.pooling}
    if calibration is None:
        return metrics
    after = outcomes.calibrated(calibration, plan.class_names, predicted.probs_BK)
    return metrics | {"calibrated": after}


def _outcomes(
    plan: TrainPlan, split: str, predicted: Collected, calibration: Calibration | None
) -> Outcomes:
    outcomes = Outcomes(multi_label=plan.config.multi_label)
    samples = samples_of(plan, split)
    rule = DecisionRule(plan.class_names.names, calibration, plan.config.multi_label)
    labels_B = rule.labels(predicted.probs_BK)
    for index, labels in zip(predicted.index_B.tolist(), labels_B, strict=True):
        sample = samples[index]
        outcomes.add_ok(sample.labels, labels, sample.group or sample.uri, sample.slice_name)
    for failure in predicted.failures:
        uri = samples[failure.index].uri
        outcomes.add_failure(uri, failure.status, failure.reason)
    return outcomes
