"""Thresholds and temperature of a model, fitted on labelled images of a site: `imgcls calibrate`.

In: MODEL, DATA, targets. Out: the next version: the same network, with another calibration, the
numbers of this data, and a verdict on it. Invariants: the weights stay to the bit, so that a night
after it scores nothing again; no image that the model was trained on chooses a threshold; where
DATA names a test split, it decides nothing and gives the numbers.

Where DATA is of one piece, its images choose the threshold and measure it, too, and the verdict
says so.
"""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any, Final

import numpy as np

from imgcls.config.models import CalibrateConfig
from imgcls.data.dataset import Dataset, Sample, describe_classes
from imgcls.data.trained_on import count_trained_on
from imgcls.errors import ConfigError
from imgcls.evaluation.labelled_data import read_labelled
from imgcls.evaluation.of_units import (
    collect_units,
    fit_units,
    measure_units,
    rule_to_fit,
)
from imgcls.evaluation.predict_samples import Predicted, RunFlags, predict_samples
from imgcls.logs import tell
from imgcls.metrics.calibration import Calibration, fit_calibration
from imgcls.metrics.measures import sets_of
from imgcls.metrics.operating_targets import (
    check_operating_points,
    operating_targets,
    positive_classes,
)
from imgcls.metrics.units import UnitCalibration
from imgcls.metrics.verdict import Prior, Verdict, judge
from imgcls.model.bundle import Bundle, read_bundle
from imgcls.model.registry import register, resolve

# What the numbers of the new version are called, beside those of its training.
FITTED, TESTED = "calibration", "site test"
_FROM_TRAINING: Final = (".png",)  # pictures of thresholds and numbers that no longer hold

_log = logging.getLogger(__name__)


def calibrate(config: CalibrateConfig) -> dict[str, Any]:
    """Fit a model's calibration on DATA and register it as the next version.

    Returns:
        verdict, model (REGISTRY/NAME@v<N>), uri, version, digest, calibrated_from (the digest of
        MODEL), num_fitted, num_measured, temperature, operating_points, accuracy, backend,
        precision.

    Raises:
        ConfigError: unusable flags or data, data of the training alone, or a target that these
            images could not show.
    """
    registry, name = _place(config)
    operating_targets(config)  # what is wrong with the flags is said before anything is read
    bundle = read_bundle(resolve(config.model))
    dataset, fit, test = _choose(config, bundle)
    for line in describe_classes(dataset):
        _log.info("  %s", line)
    check_operating_points(config, bundle.class_names, fit)
    predicted = {FITTED: predict_samples(bundle, fit, RunFlags.of(config))}
    if test:
        predicted[TESTED] = predict_samples(bundle, test, RunFlags.of(config))
    samples = {FITTED: fit, TESTED: test}
    # Only now it is known which images give no pixels.
    without = {fit[failure.index].uri for failure in predicted[FITTED].found.failures}
    check_operating_points(config, bundle.class_names, fit, without)
    calibration = _fit(config, bundle, fit, predicted[FITTED])
    metrics = {
        split: _measure(bundle, samples[split], of_split, calibration)
        for split, of_split in predicted.items()
    }
    judged = TESTED if test else FITTED
    judged_units = dict[str, Any]()
    if config.unit:
        bundle, judged_units = _with_units(config, bundle, samples, predicted, judged)
        metrics[judged]["units"] = judged_units
    verdict = _judge(bundle, samples, judged, predicted[judged], metrics[judged], calibration)
    made = register(registry, name, _with(bundle, calibration, metrics, verdict, config))
    for line in verdict.lines():
        tell(line)
    return {
        "verdict": verdict.to_dict(),
        "model": made.reference,
        "uri": made.uri,
        "version": made.version,
        "digest": made.digest,
        "calibrated_from": bundle.digest,
        "num_fitted": len(fit),
        "num_measured": len(samples[judged]),
        "temperature": calibration.temperature,
        "operating_points": calibration.to_dict()["operating_points"],
        "unit_calibration": bundle.unit_calibration,
        "units": judged_units,
        "accuracy": metrics[judged]["accuracy"],
        "backend": predicted[judged].backend,
        "precision": predicted[judged].precision,
    }


def _place(config: CalibrateConfig) -> tuple[str, str]:
    """Return the registry and the name of the new version."""
    folder, _, last = config.model.rpartition("/")
    named, at, _ = last.partition("@")
    registry = config.registry or (folder or "." if at else "")
    name = config.name or (named if at else "")
    if not registry or not name:
        raise ConfigError(
            f"--model {config.model} is not of a registry: say with --registry and --name where "
            "the calibrated version goes"
        )
    return registry, name


def _choose(config: CalibrateConfig, bundle: Bundle) -> tuple[Dataset, list[Sample], list[Sample]]:
    """Return DATA, the images that fit, and those that measure; none where the first do both."""
    dataset = read_labelled(config, bundle, whole=False)
    if dataset.names_splits:
        return dataset, dataset.of_split("val"), dataset.of_split("test")
    if count_trained_on(bundle.attachments, dataset.samples):
        _log.warning(
            "the model was trained on images of %s: thresholds are chosen on those that its "
            "training kept for validation, and measured on its test split",
            config.data,
        )
        return dataset, dataset.of_split("val"), dataset.of_split("test")
    whole = read_labelled(config, bundle, whole=True)
    return whole, list(whole.samples), []


def _fit(
    config: CalibrateConfig, bundle: Bundle, fit: list[Sample], predicted: Predicted
) -> Calibration:
    if not len(predicted.found.index_B):
        raise ConfigError(f"none of {len(fit)} images of {config.data} has a prediction")
    names = bundle.class_names
    used = [fit[index] for index in predicted.found.index_B.tolist()]
    return fit_calibration(
        predicted.found.probs_BK,
        sets_of([sample.labels for sample in used], len(names)),
        names,
        multi_label=bundle.multi_label,
        unit_B=[sample.group or sample.unit or sample.uri for sample in used],
        targets=operating_targets(config, names),
    )


def _with_units(
    config: CalibrateConfig,
    bundle: Bundle,
    samples: dict[str, list[Sample]],
    predicted: dict[str, Predicted],
    judged: str,
) -> tuple[Bundle, dict[str, Any]]:
    """Return the bundle with thresholds per unit, and what they achieve on the images judged.

    They are fitted on what pooling makes of the images of a unit.
    """
    rule = rule_to_fit(config.unit_rule, bundle, positive_classes(config, bundle.class_names))
    units = {
        split: collect_units(found, samples[split], rule) for split, found in predicted.items()
    }
    targets = operating_targets(config, bundle.class_names)
    fitted = fit_units(units[FITTED], rule, config.unit, bundle, targets)
    measured = measure_units(units[judged], rule, fitted.calibration, bundle)
    return replace(bundle, unit_calibration=fitted.to_dict()), measured


def _measure(
    bundle: Bundle, samples: list[Sample], predicted: Predicted, calibration: Calibration
) -> dict[str, Any]:
    outcomes = predicted.outcomes(samples, bundle, calibration)
    probs_BK = predicted.found.probs_BK
    metrics = outcomes.result(bundle.class_names, probs_BK)
    after = outcomes.calibrated(calibration, bundle.class_names, probs_BK)
    return metrics | {"calibrated": after}


def _judge(
    bundle: Bundle,
    samples: dict[str, list[Sample]],
    judged: str,
    predicted: Predicted,
    metrics: dict[str, Any],
    calibration: Calibration,
) -> Verdict:
    counts = Counter(label for sample in samples[FITTED] for label in sample.labels)
    prior = Prior(
        np.array([counts[k] for k in range(len(bundle.class_names))]), len(samples[FITTED])
    )
    beware = []
    if judged == FITTED:
        beware.append(
            "the thresholds were chosen on these very images, so what they find and lose is a "
            "little too good; measure the new version on others with `imgcls evaluate`."
        )
    outcomes = predicted.outcomes(samples[judged], bundle, calibration)
    points = calibration.operating_points
    return judge(judged, outcomes, bundle.class_names, prior, metrics, points, beware)


def _with(
    bundle: Bundle,
    calibration: Calibration,
    metrics: dict[str, Any],
    verdict: Verdict,
    config: CalibrateConfig,
) -> Bundle:
    """Return the bundle with another calibration, and the numbers of the data that gave it."""
    # What the old thresholds achieved is not true of the new ones.
    trained = {
        split: {name: value for name, value in numbers.items() if name != "calibrated"}
        for split, numbers in bundle.metrics.items()
        if split not in (FITTED, TESTED)
    }
    facts: dict[str, Any] = {
        "from_digest": bundle.digest,
        "positive_class": config.positive_class,
        "target_recall": config.target_recall,
        "target_specificity": config.target_specificity,
        "num_images": {split: numbers["num_images"] for split, numbers in metrics.items()},
    }
    if (units := UnitCalibration.of(bundle.unit_calibration)) is not None and config.unit:
        points = {p.threshold_id: p.threshold for p in units.calibration.operating_points}
        facts["unit"] = {
            "key": units.key,
            "rule": units.rule,
            "num_units": units.num_units,
            "thresholds": points,
        }
    training = {k: v for k, v in bundle.training.items() if k != "no_operating_point"}
    return replace(
        bundle,
        calibration=calibration.to_dict(),
        metrics=metrics | trained,
        verdict=verdict.to_dict(),
        training=training | {"calibrated_on": facts},
        attachments={
            name: data
            for name, data in bundle.attachments.items()
            if not name.endswith(_FROM_TRAINING)
        },
    )
