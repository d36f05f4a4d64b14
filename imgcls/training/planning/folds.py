"""Folds: every image is measured by a model that has not seen it, for sets too small to hold out.

In: a plan whose training split is everything. Out: one plan per fold. Invariant: a group lies in
one fold, whole; each fold trains on the others, in a folder of its own, and is found there again.
"""

from dataclasses import replace

from imgcls.data.splits.folds import grouped_folds
from imgcls.errors import ConfigError, SourceError
from imgcls.training.train_plan import TrainPlan

MIN_FOLDS = 2


def fold_plans(plan: TrainPlan) -> list[TrainPlan]:
    """Return the plan of each fold: the others are its training split, its own images its test.

    There is no validation split: images that chose an epoch would not be unseen. So each fold keeps
    its last epoch, as the final model does.

    Raises:
        ConfigError: fewer groups than folds.
    """
    samples, num_folds = plan.splits["train"], plan.config.folds
    try:
        fold_of = grouped_folds(
            [sample.group or sample.key for sample in samples],
            [sample.labels for sample in samples],
            num_folds,
            plan.config.seed,
        )
    except SourceError as error:
        raise ConfigError(f"--folds {num_folds}: {error}") from error
    plans = []
    for fold in range(num_folds):
        pairs = list(zip(samples, fold_of, strict=True))
        splits = {
            "train": [sample for sample, of_sample in pairs if of_sample != fold],
            "val": [],
            "test": [sample for sample, of_sample in pairs if of_sample == fold],
        }
        name = f"{fold + 1} of {num_folds}"
        fingerprint = f"{plan.fingerprint}-fold{fold + 1}of{num_folds}"
        plans.append(replace(plan, splits=splits, fingerprint=fingerprint, fold=name))
    return plans
