"""What decides the weights of a training, as one short digest.

In: plain values and the samples. Out: a fingerprint, which names the run's folder. Invariant: two
trainings with the same fingerprint train the same weights of the same versions of the same images,
so one may continue where the other ended. Where and how fast it runs, and by which version of the
decoders, is left out.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from imgcls.data.dataset import Sample
from imgcls.data.label_manifest import is_manifest
from imgcls.errors import ConfigError
from imgcls.storage.access import head_many
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import ObjectInfo, exists, list_entries, read
from imgcls.storage.uri import is_local, join
from imgcls.training.train_plan import RUN_RECORD

_DIGITS: Final = 16

log = logging.getLogger(__name__)


def digest(values: Mapping[str, Any]) -> str:
    """Return the fingerprint of values that decide weights."""
    canonical = json.dumps(values, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGITS]


def choose_fingerprint(
    values: Mapping[str, Any],
    image_versions: str,
    run_uri: Callable[[str], str],
    *,
    typed_weights: str,
) -> str:
    """Return the fingerprint of these values, or that of an unfinished run of an earlier imgcls.

    Args:
        values: what decides the weights, but for the images themselves.
        image_versions: see `read_versions`.
        run_uri: gives the folder of a fingerprint.
        typed_weights: --weights as 27535e0 counted it; "" where that is the same.
    """
    here = digest({**values, "image_versions": image_versions})
    if exists(join(run_uri(here), RUN_RECORD)):
        return here
    as_typed = {**values, "weights": typed_weights} if typed_weights else values
    # Of a version that did not look at the images; and, before, took --weights as it was typed.
    for earlier in {digest(values): None, digest(as_typed): None}:
        uri = join(run_uri(earlier), RUN_RECORD)
        if not exists(uri):
            continue
        noted = parse_object(read(uri), uri, ConfigError).get("image_versions", image_versions)
        if noted == image_versions:
            return earlier
        log.warning("%s is a run over other versions of these images: it is left as it is", uri)
    return here


def read_versions(data: str, samples: Iterable[Sample]) -> str:
    """Return one digest of the versions of all images: it changes when one is replaced.

    A folder tree is listed once more, for a manifest each image is asked for; an image in a
    container has the version of the container that was listed. An image that is not there, or may
    not be looked at, has the version "".
    """
    samples = list(samples)
    uris = sorted(sample.uri for sample in samples)
    loose = sorted(sample.uri for sample in samples if sample.member is None)
    found: Iterable[object] = ()
    if loose:
        found = head_many(loose) if is_manifest(data) else list_entries(data)
    etags = {entry.uri: entry.etag for entry in found if isinstance(entry, ObjectInfo)}
    etags |= {s.uri: s.member.container.etag for s in samples if s.member is not None}
    lines = (f"{uri} {_version(uri, etags.get(uri, ''))}\n" for uri in uris)
    hashed = hashlib.sha256()
    for line in lines:
        hashed.update(line.encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def _version(uri: str, etag: str) -> str:
    """Return an etag without the inode, which a backup that was restored does not keep."""
    return "-".join(etag.split("-")[:2]) if is_local(uri) else etag
