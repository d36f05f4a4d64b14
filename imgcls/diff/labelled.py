"""The labels of images that two models are compared on, and which of these neither has learnt from.

In: labelled data, two bundles. Out: per image its label, group and slice, and whether both models
are strangers to it. Invariant: an image counts as unseen only where that is known: from the keys
that a bundle kept of its training, or from the split that is the same as then.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from imgcls.config.models import DiffConfig, EvaluateConfig, MeasureOptions
from imgcls.data.dataset import Dataset, Sample
from imgcls.data.trained_on import learnt_from
from imgcls.diff.pairs import SEPARATOR
from imgcls.evaluation.labelled_data import read_labelled
from imgcls.model.bundle import Bundle

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of an image."""

    answer: str
    """Its class, or classes joined by "|", as a row would say it."""
    group: str
    slice_name: str
    is_unseen: bool


def read_labels(config: DiffConfig, bundles: Sequence[Bundle]) -> dict[str, Label]:
    """Return the labels of DATA by uri.

    Args:
        config: Names the data.
        bundles: Both models; the classes are those of the second.
    """
    flags = {each.name: getattr(config, each.name) for each in fields(MeasureOptions)}
    labelled = EvaluateConfig(data=config.data, **flags)
    datasets = [read_labelled(labelled, bundle, whole=False) for bundle in bundles]
    seen = [_seen_by(bundle, dataset) for bundle, dataset in zip(bundles, datasets, strict=True)]
    found = {}
    for sample in datasets[-1].samples:
        states = [of_model.get(sample.uri) for of_model in seen]
        found[sample.uri] = Label(
            _answer(sample, datasets[-1]), sample.group, sample.slice_name, states == [False, False]
        )
    num_unseen = sum(label.is_unseen for label in found.values())
    _log.info(
        "%d of %d labelled images are new to both models: the paired test is on these",
        num_unseen, len(found),
    )  # fmt: skip
    return found


def _answer(sample: Sample, dataset: Dataset) -> str:
    names = dataset.class_names.names
    return SEPARATOR.join(sorted(names[label] for label in sample.labels))


def _seen_by(bundle: Bundle, dataset: Dataset) -> Mapping[str, bool | None]:
    """Tell of each image whether a model has learnt from it; None where nobody knows."""
    is_same_split = dataset.split_digest == bundle.split_digest
    by_key = learnt_from(bundle.attachments, [sample.key for sample in dataset.samples])
    seen: dict[str, bool | None] = {}
    for sample, is_known in zip(dataset.samples, by_key, strict=True):
        of_split = sample.split in ("train", "val") if is_same_split else None
        seen[sample.uri] = of_split if is_known is None else is_known
    return seen
