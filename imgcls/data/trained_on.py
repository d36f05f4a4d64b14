"""Which images a model has learnt from, as far as its bundle can say.

In: the samples of a training; later, those of an evaluation. Out: a file of the bundle with the
lowest hashes of their keys; whether DATA is what the model was trained on. Invariant: of the keys
whose hash is not above the highest one kept, each is known for certain to be in or out.

The lowest hashes are a sample that two sets draw alike (bottom-k sketch, Cohen and Kaplan 2007): up
to MAX_HASHES images it is the whole set.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imgcls.config.models import EvaluateConfig
from imgcls.config.paths import canonical_value
from imgcls.data.dataset import Dataset, Sample
from imgcls.data.splits.draw import hash_of
from imgcls.errors import BundleError, ConfigError
from imgcls.storage.json_text import parse_object

TRAINED_ON = "trained_on.json"
MAX_HASHES = 4096

_log = logging.getLogger(__name__)


def write_trained_on(samples: Iterable[Sample]) -> bytes:
    """Return the file for the images that decided the weights: those of train and val."""
    hashes = sorted({hash_of(s.key) for s in samples if s.split in ("train", "val")})
    kept = hashes[:MAX_HASHES]
    return json.dumps({"num_images": len(hashes), "lowest_hashes_of_keys": kept}).encode()


def count_trained_on(attachments: Mapping[str, bytes], samples: Sequence[Sample]) -> float | None:
    """Return the share of images that a model has learnt from by their keys; None if not known.

    Raises:
        BundleError: the bundle's file is not one of ours.
    """
    known = [one for one in learnt_from(attachments, [s.key for s in samples]) if one is not None]
    if TRAINED_ON not in attachments or not samples:
        return None
    return sum(known) / len(known) if known else 0.0


def learnt_from(attachments: Mapping[str, bytes], keys: Sequence[str]) -> list[bool | None]:
    """Tell of each key whether it is one of a training; None where that is not known.

    Raises:
        BundleError: the bundle's file is not one of ours.
    """
    if TRAINED_ON not in attachments:
        return [None] * len(keys)
    facts = parse_object(attachments[TRAINED_ON], TRAINED_ON, BundleError)
    try:
        kept = set(map(str, facts["lowest_hashes_of_keys"]))
        is_whole = int(facts["num_images"]) <= len(kept)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{TRAINED_ON} is not a list of what a model was trained on") from error
    highest = max(kept, default="")
    return [h in kept if is_whole or h <= highest else None for h in map(hash_of, keys)]


def choose_split(
    data: str, dataset: Dataset, training: Mapping[str, Any], share: float | None
) -> str:
    """Return what to measure of DATA where nobody says: its test split, or all of it.

    All of it, where DATA names no splits and is not what the model was trained on: then there is no
    image that the model has seen, and every one tells something.

    Args:
        data: DATA, canonical.
        dataset: Read as the training read its own.
        training: What the bundle says of the training.
        share: See `count_trained_on`.
    """
    if dataset.names_splits:
        return "test"
    trained_data = str(training.get("config", {}).get("data", ""))
    is_same_place = bool(trained_data) and _canonical(trained_data) == data
    num_images, num_test = len(dataset.samples), len(dataset.of_split("test"))
    if is_same_place or share:
        reason = (
            "the model was trained on this data"
            if is_same_place
            else f"{share:.0%} of its images are called like those of the training"
        )
        _log.warning(
            "measuring the %d of %d images of %s that the training kept apart (--split test): %s. "
            "--split all measures every image",
            num_test, num_images, data, reason,
        )  # fmt: skip
        return "test"
    _log.info("measuring all %d images of %s: it is not the data of the training", num_images, data)
    if share is None:
        _log.warning(
            "the bundle does not say which images it was trained on: whether some of these were "
            "among them was not checked"
        )
    return "all"


def _canonical(recorded: str) -> str:
    """Return a place that a training of any version noted down, seen from this folder."""
    try:
        return canonical_value(EvaluateConfig, "data", recorded)
    except ConfigError:
        return recorded
