"""The model of a run, by name and digest.

In: a reference. Out: where its bundle lies, and what of it decides rows. Invariant: found without
reading the weights; whoever scores reads the bundle whole, and is refused a damaged one.
"""

import hashlib
import logging
from dataclasses import dataclass

from imgcls.errors import ConfigError, ImgclsError
from imgcls.image.spec import DecodeSpec, PreprocessSpec, spec_digest
from imgcls.image.versions import describe_moved
from imgcls.model.bundle_files import (
    FACTS,
    REFERENCE,
    calibration_digest,
    network_digest,
    parse_facts,
    parse_sums,
    read_file,
    read_sums,
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
        ConfigError: there is no such model.
        BundleError: there is no complete bundle, or bundle.json is not what was saved.
    """
    uri = resolve(reference)
    digests, decode_spec, why_not = _read_digests(uri)
    moved = decode_spec.moved_formats()
    if moved:
        log.warning("%s: %s", reference, describe_moved(moved))
    return PlannedModel(reference, uri, digests, why_not)


def check_has_int8(model: PlannedModel) -> None:
    """Refuse --precision int8 for a model without such a network, before anything is planned.

    Raises:
        ConfigError: it has none; says how to make it.
    """
    if model.why_no_int8:
        raise ConfigError(
            f"--precision int8: {model.reference} {model.why_no_int8}. Make a version that has "
            f"one, once: imgcls quantize --model {model.reference} --data IMAGES; or take "
            "--precision auto"
        )


def check_can_review(reference: str, uri: str) -> None:
    """Refuse --review-unfamiliar for a model that decides nothing, or knows no pictures.

    Raises:
        ConfigError: it is one; says what to do.
    """
    sha256_by_name = parse_sums(read_sums(uri), uri)
    facts = parse_facts(read_file(uri, FACTS, sha256_by_name[FACTS]), join(uri, FACTS))
    if not (facts["calibration"] or {}).get("operating_points"):
        raise ConfigError(
            f"--review-unfamiliar: {reference} has no thresholds, so there is no decision to send "
            "to review; leave it out (the column unfamiliar is there without it)"
        )
    if REFERENCE not in sha256_by_name:
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


def _read_digests(uri: str) -> tuple[ModelDigests, DecodeSpec, str]:
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
    return digests, decode_spec, why_no_int8(sha256_by_name, facts)
