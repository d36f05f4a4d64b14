"""`imgcls doctor --data`: read -> look -> compare -> page and manifest.

In: labelled data. Out: doctor.html, and labels.csv, all images with the suspects first, for a
person to correct and to train from. Invariant: the data stay as they are; what was not looked at is
said.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.config.labelling import LabelDoctorOptions
from imgcls.config.source_options import ListingOptions
from imgcls.data.dataset import Dataset, read_dataset
from imgcls.data.label_manifest import Roles
from imgcls.errors import ConfigError
from imgcls.evaluation.embed_samples import embed_samples
from imgcls.inert import spreadsheet
from imgcls.labelling.doctor.look import Looked, look_at
from imgcls.labelling.doctor.page import render_doctor
from imgcls.labelling.doctor.suspects import (
    POOR,
    Suspect,
    find_duplicates,
    find_label_issues,
    find_poor_pictures,
    overlapping_classes,
)
from imgcls.logs import tell
from imgcls.storage.objects import put
from imgcls.storage.uri import join
from imgcls.training.head.solver import out_of_fold_probs

PAGE: Final = "doctor.html"
MANIFEST: Final = "labels.csv"
_SEED: Final = 0
# Of each class: fewer give no fold anything to learn from.
_LEAST_OF_A_CLASS: Final = 5

log = logging.getLogger(__name__)


def look_through(config: LabelDoctorOptions) -> dict[str, Any]:
    """Look through labelled data.

    Returns:
        data, num_images, num_unreadable, num_suspects, by_kind, overlapping (pairs of classes with
        how many images of the first look like the second), features (what told images apart), page,
        manifest, lines.

    Raises:
        ConfigError: too few images, or cleanlab is missing.
        SourceError: the data cannot be read.
    """
    dataset = read_dataset(
        config.data,
        val_fraction=0.0,
        test_fraction=0.0,
        seed=_SEED,
        roles=Roles.parse(group=config.group, label=config.label),
        options=ListingOptions(also=config.also),
        may_lack_labels=True,
    )
    looked = look_at(dataset.samples, config.num_decoders)
    if not looked.samples:
        raise ConfigError(f"{config.data}: not one image can be read")
    names = dataset.class_names.names
    label_N = np.array([sample.label for sample in looked.samples], np.int64)
    _refuse_few(label_N, names)
    features_NE, by = _features(config, looked)
    groups = [
        sample.group or digest
        for sample, digest in zip(looked.samples, looked.digests, strict=True)
    ]
    _, group_N = np.unique(groups, return_inverse=True)
    target_NK = np.eye(len(names), dtype=bool)[label_N]
    probs_NK = out_of_fold_probs(features_NE, target_NK, group_N, _SEED)
    suspects = [
        *find_label_issues(label_N, probs_NK, names),
        *find_duplicates(looked),
        *find_poor_pictures(looked),
    ]
    overlapping = overlapping_classes(label_N, probs_NK, names)
    accuracy = float(np.mean(probs_NK.argmax(axis=1) == label_N))
    lines = _lines(config, dataset, looked, suspects, by, accuracy)
    page, manifest = join(config.to, PAGE), join(config.to, MANIFEST)
    put(manifest, _manifest(looked, suspects), is_private=True)
    html = render_doctor(config.data, looked, suspects, overlapping, lines)
    put(page, html.encode(), is_private=True)
    for line in lines:
        tell(line)
    return {
        "data": config.data,
        "num_images": len(looked.samples),
        "num_unreadable": len(looked.unreadable),
        "num_suspects": len({suspect.index for suspect in suspects}),
        "by_kind": dict(Counter(suspect.kind for suspect in suspects)),
        "overlapping": overlapping,
        "features": by,
        "out_of_fold_accuracy": accuracy,
        "page": page,
        "manifest": manifest,
        "lines": [*lines, f"the page: {page}", f"the manifest to correct: {manifest}"],
    }


def _refuse_few(label_N: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    count_K = np.bincount(label_N, minlength=len(names))
    few = [
        f"{name} ({count})"
        for name, count in zip(names, count_K, strict=True)
        if 0 < count < _LEAST_OF_A_CLASS
    ]
    if few:
        raise ConfigError(
            f"too few images to say anything about their labels: {', '.join(few)}; needed are "
            f"{_LEAST_OF_A_CLASS} of each class"
        )


def _features(config: LabelDoctorOptions, looked: Looked) -> tuple[npt.NDArray[np.float32], str]:
    """Return what tells images apart, and what that is in words."""
    if not config.model:
        log.warning(
            "no --model: images are told apart by the pixels of a small picture, which finds less "
            "than the features of a network"
        )
        return looked.pixels_NE, "pixels of a small picture"
    return embed_samples(config.model, looked.samples, config.num_decoders), config.model


def _lines(
    config: LabelDoctorOptions,
    dataset: Dataset,
    looked: Looked,
    suspects: list[Suspect],
    by: str,
    accuracy: float,
) -> list[str]:
    count = Counter(suspect.kind for suspect in suspects)
    found = [
        (count["label"], "label to check", "labels to check"),
        (count["conflict"], "picture with two labels", "pictures with two labels"),
        (count["duplicate"] + count["near-duplicate"], "copy", "copies"),
        (sum(count[kind] for kind in POOR), "poor picture", "poor pictures"),
        (count["size"], "odd size", "odd sizes"),
    ]
    words = [f"{number:,} {one if number == 1 else many}" for number, one, many in found if number]
    lines = [
        f"{len(looked.samples):,} images: {', '.join(words) or 'nothing to check'}",
        f"told apart by {by}: of images that it had not seen, a simple model named "
        f"{accuracy:.0%} as they are labelled",
    ]
    if accuracy < 1.5 / max(2, len(dataset.class_names.names)):
        lines.append(
            "that is little: most of what it calls wrong may be right; a --model of your own finds "
            "more"
        )
    if looked.unreadable:
        sample, reason = looked.unreadable[0]
        lines.append(f"{len(looked.unreadable)} could not be read, such as {sample.key}: {reason}")
    if dataset.left_out.unlabelled:
        lines.append(f"{len(dataset.left_out.unlabelled)} rows have no label")
    return lines


def _manifest(looked: Looked, suspects: list[Suspect]) -> bytes:
    """Return all images as a manifest for training, those to look at first."""
    by_index: dict[int, list[Suspect]] = {}
    for suspect in suspects:
        by_index.setdefault(suspect.index, []).append(suspect)
    lines = [["uri", "label", "group", "suspect", "suggested", "reason"]]
    order = [*by_index, *(i for i in range(len(looked.samples)) if i not in by_index)]
    for index in order:
        sample, of = looked.samples[index], by_index.get(index, [])
        lines.append([
            sample.uri,
            sample.class_name,
            sample.group,
            ", ".join(suspect.kind for suspect in of),
            next((suspect.suggested for suspect in of if suspect.suggested), ""),
            "; ".join(suspect.reason for suspect in of),
        ])  # fmt: skip
    return spreadsheet(lines)
