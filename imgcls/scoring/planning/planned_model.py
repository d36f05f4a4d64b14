"""The model of a run, by name and digest.

In: a reference. Out: where its bundle lies, and what of it decides rows. Invariant: found without
reading the weights; whoever scores reads the bundle whole, and is refused a damaged one.
"""

import hashlib
import logging
from dataclasses import dataclass

from imgcls.image.spec import DecodeSpec, PreprocessSpec, spec_digest
from imgcls.image.versions import describe_moved
from imgcls.model.bundle_files import FACTS, parse_facts, parse_sums, read_file, read_sums
from imgcls.model.registry import resolve
from imgcls.storage.uri import join

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedModel:
    """The model of a run, as it was when the run was planned."""

    reference: str
    uri: str
    digest: str
    spec_digest: str


def name_model(reference: str) -> PlannedModel:
    """Resolve a reference and read what its bundle says of itself.

    Raises:
        ConfigError: there is no such model.
        BundleError: there is no complete bundle, or bundle.json is not what was saved.
    """
    uri = resolve(reference)
    sums = read_sums(uri)
    facts = parse_facts(read_file(uri, FACTS, parse_sums(sums, uri)[FACTS]), join(uri, FACTS))
    decode_spec = DecodeSpec.from_dict(facts["decode_spec"])
    moved = decode_spec.moved_formats()
    if moved:
        log.warning("%s: %s", reference, describe_moved(moved))
    digest = spec_digest(decode_spec, PreprocessSpec.from_dict(facts["preprocess_spec"]))
    return PlannedModel(reference, uri, hashlib.sha256(sums).hexdigest(), digest)
