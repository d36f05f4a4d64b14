"""The model of a run, by name and digest.

In: a reference. Out: where its bundle lies, and what of it decides rows. Invariant: found without
reading the weights; whoever scores reads the bundle whole, and is refused a damaged one.
"""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ConfigError, ImgclsError
from imgcls.image.spec import DecodeSpec, PreprocessSpec, spec_digest
from imgcls.image.versions import describe_moved
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.units import UnitCalibration, positive_of, unit_rule
from imgcls.model.bundle_files import (
    FACTS,
    REFERENCE,
    calibration_digest,
    network_digest,
    parse_facts,
    parse_sums,
    read_file,
    read_sums,
    refuse_backbone,
    why_no_int8,
)
from imgcls.model.registry import resolve
from imgcls.runs.plan import ModelDigests
from imgcls.runs.published import Manifest
from imgcls.storage.uri import join

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedModel:
    """The model of a run, as it was when the run was planned."""

    reference: str
    uri: str
    digests: ModelDigests
    why_no_int8: str = ""
    """Why it cannot be run in int8, "" if it can."""

    @property
    def digest(self) -> str:
        """Of the whole bundle."""
        return self.digests.model

    @property
    def spec_digest(self) -> str:
        """Of its decode and preprocess spec."""
        return self.digests.spec


def name_model(reference: str) -> PlannedModel:
    """Resolve a reference and read what its bundle says of itself.

    Raises:
        ConfigError: there is no such model, or it is a backbone, which gives no classes.
        BundleError: there is no complete bundle, or bundle.json is not what was saved.
    """
    uri = resolve(reference)
    digests, decode_spec, why_not, is_backbone = _read_digests(uri)
    refuse_backbone(is_backbone, reference, "score")
    moved = decode_spec.moved_formats()
    if moved:
        log.warning("%s: %s", reference, describe_moved(moved))
    return PlannedModel(reference, uri, digests, why_not)


def check_model(config: ScoreConfig, model: PlannedModel) -> None:
    """Refuse flags that ask what a model cannot give, before anything is planned or written.

    Raises:
        ConfigError: names the flag, and says what to do.
    """
    sha256_by_name, facts = _read_facts(model.uri)
    if config.write_tiles and facts["preprocess_spec"].get("fit") != "tiles":
        raise ConfigError(
            f"--write-tiles: {config.model} looks at a picture as a whole; only a model that was "
            "trained with --fit tiles has tiles"
        )
    if config.unit:
        _check_unit_rule(config, facts)
    if config.review_unfamiliar:
        _check_can_review(model.reference, facts, has_reference=REFERENCE in sha256_by_name)
    if config.precision == "int8" and model.why_no_int8:
        raise ConfigError(
            f"--precision int8: {model.reference} {model.why_no_int8}. Make a version that has "
            f"one, once: imgcls quantize --model {model.reference} --data IMAGES; or take "
            "--precision auto"
        )


def _check_unit_rule(config: ScoreConfig, facts: dict[str, Any]) -> None:
    """Refuse a rule that the model's thresholds per unit are not for; say where it has none."""
    of_images = facts["calibration"]
    rule = unit_rule(
        config.unit_rule,
        UnitCalibration.of(facts["unit_calibration"]),
        facts["class_names"],
        positive_classes=positive_of(Calibration.from_dict(of_images) if of_images else None),
        background_class=facts["background_class"],
        multi_label=facts["multi_label"],
    )
    if rule.calibration is None or not rule.calibration.operating_points:
        log.warning(
            "%s has no threshold for units: their column decision stays empty. Fit one: imgcls "
            "calibrate --model %s --data LABELLED --unit %s --positive-class NAME --target-recall "
            "0.95",
            config.model, config.model, config.unit,
        )  # fmt: skip


def _check_can_review(reference: str, facts: dict[str, Any], *, has_reference: bool) -> None:
    """Refuse --review-unfamiliar for a model that decides nothing, or knows no pictures."""
    if not (facts["calibration"] or {}).get("operating_points"):
        raise ConfigError(
            f"--review-unfamiliar: {reference} has no thresholds, so there is no decision to send "
            "to review; leave it out (the column unfamiliar is there without it)"
        )
    if not has_reference:
        raise ConfigError(
            f"--review-unfamiliar: {reference} has no reference, so nobody can tell what is "
            f"unfamiliar. Make a version that has one: imgcls reference --model {reference} "
            "--source IMAGES"
        )


def digests_of_published(manifest: Manifest) -> ModelDigests:
    """Return the digests of the model of a published run.

    A manifest of a version that knew no network digest names its bundle: if that is still there,
    and still the same, it says.
    """
    if manifest.network_digest:
        return manifest.digests
    try:
        digests, *_ = _read_digests(manifest.model_uri)
    except ImgclsError as error:
        log.info("run %s: its model cannot be compared (%s)", manifest.run_id, error)
        return manifest.digests
    return digests if digests.model == manifest.model_digest else manifest.digests


def _read_facts(uri: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the sha256 of each file of a bundle, and what its bundle.json holds."""
    sha256_by_name = parse_sums(read_sums(uri), uri)
    return sha256_by_name, parse_facts(
        read_file(uri, FACTS, sha256_by_name[FACTS]), join(uri, FACTS)
    )


def _read_digests(uri: str) -> tuple[ModelDigests, DecodeSpec, str, bool]:
    sums = read_sums(uri)
    sha256_by_name = parse_sums(sums, uri)
    facts = parse_facts(read_file(uri, FACTS, sha256_by_name[FACTS]), join(uri, FACTS))
    decode_spec = DecodeSpec.from_dict(facts["decode_spec"])
    digests = ModelDigests(
        model=hashlib.sha256(sums).hexdigest(),
        spec=spec_digest(decode_spec, PreprocessSpec.from_dict(facts["preprocess_spec"])),
        network=network_digest(sha256_by_name, facts),
        calibration=calibration_digest(facts),
    )
    why_not = why_no_int8(sha256_by_name, facts)
    return digests, decode_spec, why_not, facts["is_backbone"]
