"""Find what two splits share: a group, the same bytes, or nearly the same picture.

In: samples with their splits; digests or pixels of their images. Out: `Leak`s, each a pair of
images on two sides. Invariant: only pairs across splits are leaks; duplicates within a split only
weigh more.

A near-duplicate is a pair whose 64-bit DCT hashes differ in at most 3 bits and whose 16x16
thumbnails correlate by 0.995 or more. Of the 1.6 million pairs of the 1,797 digits of scikit-learn
3 pass the first test, 1 the second, none both. Copies at JPEG quality 20, of half the size, blurred
or brighter are found; copies cropped by 2 % or more are not. A camera that always sees the same
background gives pictures that all look alike: there, trust the bytes and the groups.

Shape legend: B image, C channel, H = W pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.errors import SourceError
from imgcls.model.dataset import Sample

_DCT_SIDE = 32
_KEPT_SIDE = 8
_THUMB_SIDE = 16
_MAX_HASH_DISTANCE = 3
# Hashes within 3 bits agree in at least one of 4 bands (pigeonhole).
_NUM_BANDS = _MAX_HASH_DISTANCE + 1
_MIN_CORRELATION = 0.995
# Below this standard deviation, of 0..255, a thumbnail shows nothing that could be recognised.
_MIN_CONTRAST = 2.0
_MAX_LEAKS = 1000
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class Leak:
    """Two images that should not lie on two sides of a split, and what they share."""

    kind: str  # "group", "bytes" or "near-duplicate"
    uri: str
    split: str
    other_uri: str
    other_split: str


@dataclass(frozen=True)
class Fingerprints:
    """Of each image a hash, uint64 [B], and a thumbnail, uint8 [B,256]."""

    hash_B: npt.NDArray[np.uint64]
    thumb_BT: npt.NDArray[np.uint8]


def fingerprint(x_BCHW: Tensor) -> Fingerprints:
    """Compute hashes and thumbnails of preprocessed pixels, uint8 [B,C,H,W] of any size."""
    gray_B1HW = x_BCHW.float().mean(dim=1, keepdim=True)
    small = F.adaptive_avg_pool2d(gray_B1HW, _DCT_SIDE).squeeze(1).double().numpy()
    frequencies = np.arange(_KEPT_SIDE)[:, None]
    positions = np.arange(_DCT_SIDE)[None] + 0.5
    dct = np.cos(np.pi / _DCT_SIDE * frequencies * positions)
    low = (dct @ small @ dct.T).reshape(len(small), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    hash_B = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    thumbs = F.adaptive_avg_pool2d(gray_B1HW, _THUMB_SIDE).round().to(torch.uint8)
    return Fingerprints(hash_B, thumbs.flatten(1).numpy())


def find_shared(samples: Sequence[Sample], values: Sequence[str], kind: str) -> list[Leak]:
    """Return a pair per value and pair of splits that have it: groups, or digests of the bytes.

    Args:
        samples: The images, with their splits.
        values: What each image must not share across splits; "" is never shared.
        kind: What the values are, for the leak.
    """
    first: dict[str, dict[str, Sample]] = {}
    leaks = []
    for sample, value in zip(samples, values, strict=True):
        by_split = first.setdefault(value, {}) if value else {}
        if sample.split not in by_split:
            leaks += [_leak(kind, other, sample) for other in by_split.values()]
            by_split[sample.split] = sample
    return leaks


def find_near_duplicates(samples: Sequence[Sample], fingerprints: Fingerprints) -> list[Leak]:
    """Return pairs that look the same across splits, at most the first thousand.

    Args:
        samples: The images, with their splits.
        fingerprints: Of the same images, in the same order.
    """
    split_B = np.unique([sample.split for sample in samples], return_inverse=True)[1]
    thumb_BT = fingerprints.thumb_BT.astype(np.float32)
    thumb_BT -= thumb_BT.mean(axis=1, keepdims=True)
    contrast_B = thumb_BT.std(axis=1)
    thumb_BT /= np.maximum(contrast_B, 1e-6)[:, None]
    usable = np.flatnonzero(contrast_B >= _MIN_CONTRAST)
    found: dict[tuple[int, int], Leak] = {}
    for image, others in _candidates(fingerprints.hash_B, usable):
        others = others[split_B[others] != split_B[image]]
        differing = np.bitwise_count(fingerprints.hash_B[others] ^ fingerprints.hash_B[image])
        others = others[differing <= _MAX_HASH_DISTANCE]
        correlation = thumb_BT[others] @ thumb_BT[image] / thumb_BT.shape[1]
        for other in others[correlation >= _MIN_CORRELATION].tolist():
            pair = (min(image, other), max(image, other))
            found[pair] = _leak("near-duplicate", samples[pair[0]], samples[pair[1]])
        if len(found) >= _MAX_LEAKS:
            break
    return [found[pair] for pair in sorted(found)]


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Stop before a model is measured on what it was trained on.

    Raises:
        SourceError: there are leaks; names the first few.
    """
    if not leaks:
        return
    counts = {kind: sum(leak.kind == kind for leak in leaks) for kind in _kinds(leaks)}
    shown = "; ".join(
        f"{leak.uri} ({leak.split}) and {leak.other_uri} ({leak.other_split}): {leak.kind}"
        for leak in leaks[:_NUM_NAMED]
    )
    raise SourceError(
        f"the splits share images, {', '.join(f'{n} by {kind}' for kind, n in counts.items())}: "
        f"{shown}. Remove them, keep them together by a group column, or --allow-leaks"
    )


def _candidates(
    hash_B: npt.NDArray[np.uint64], usable: npt.NDArray[np.intp]
) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield each image with those after it that have a band of bits in common."""
    width = np.uint64(64 // _NUM_BANDS)
    for band in range(_NUM_BANDS):
        mask = (np.uint64(1) << width) - np.uint64(1)
        value_B = (hash_B[usable] >> (np.uint64(band) * width)) & mask
        order = np.argsort(value_B, kind="stable")
        starts = np.flatnonzero(np.diff(value_B[order], prepend=value_B[order[:1]] ^ mask))
        for bucket in np.split(usable[order], starts[1:] if len(starts) else []):
            for position in range(len(bucket) - 1):
                yield int(bucket[position]), bucket[position + 1 :]


def _kinds(leaks: Sequence[Leak]) -> list[str]:
    return sorted({leak.kind for leak in leaks})


def _leak(kind: str, sample: Sample, other: Sample) -> Leak:
    return Leak(kind, sample.uri, sample.split, other.uri, other.split)
