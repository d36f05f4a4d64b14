"""Find what two splits share: a group, the same bytes, or nearly the same picture.

In: samples with their splits; digests or pixels of their images. Out: `Leak`s, each a pair of
images on two sides. Invariants: only pairs across splits are leaks; duplicates within a split only
weigh more. A search that ends early says so, for the model card.

A near-duplicate is a pair whose 64-bit DCT hashes differ in at most 4 bits and whose 16x16
thumbnails correlate by 0.995 or more. Of the 1.6 million pairs of the 1,797 digits of scikit-learn
57 pass the first test, 1 the second, none both. Copies at JPEG quality 20, of half the size,
blurred or brighter are found; copies cropped by 2 % or more are not. A camera that always sees the
same background gives pictures that all look alike: there, trust the bytes and the groups.

Shape legend: B image, C channel, H = W pixels.
"""

import csv
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.data.dataset import Sample
from imgcls.errors import SourceError
from imgcls.inert import from_csv, in_csv

_DCT_SIDE = 32
_KEPT_SIDE = 8
_THUMB_SIDE = 16
THUMB_BYTES = _THUMB_SIDE**2
_MAX_HASH_DISTANCE = 4
# Hashes within 4 bits agree in at least one of 5 bands (pigeonhole).
_NUM_BANDS = _MAX_HASH_DISTANCE + 1
_BAND_BITS = 13  # the last band has the 12 that are left
_BAND_MASK = np.uint64((1 << _BAND_BITS) - 1)
_MIN_CORRELATION = 0.995
# Below this standard deviation, of 0..255, a thumbnail shows nothing that could be recognised.
_MIN_CONTRAST = 2.0
_MAX_LEAKS = 1000
_NUM_NAMED = 5
# Pairs of hashes and of thumbnails beyond which comparing would take more than about a minute.
_MAX_TESTED = 20 * 10**9
_MAX_COMPARED = 20 * 10**6
_CHUNK = 1 << 16
CSV_COLUMNS = ("kind", "value", "uri", "split", "other_uri", "other_split")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leak:
    """Two images that should not lie on two sides of a split, and what they share."""

    kind: str  # "group", "bytes" or "near-duplicate"
    value: str  # what both have: the group, the digest; "" for near-duplicates
    uri: str
    split: str
    other_uri: str
    other_split: str


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """What comparing the splits came to: pairs by kind, and why there may be more; () for none."""

    counts: dict[str, int]
    incomplete_because: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return whether the check is complete, and if not why, as a bundle holds it."""
        because = list(self.incomplete_because)
        return {"complete": not because, "incomplete_because": because}


@dataclass(frozen=True)
class Fingerprints:
    """Of each image a hash, uint64 [B], and a thumbnail, uint8 [B,256]."""

    hash_B: npt.NDArray[np.uint64]
    thumb_BT: npt.NDArray[np.uint8]

    @staticmethod
    def join(parts: Iterable["Fingerprints"]) -> "Fingerprints":
        """Return those of all parts, one after the other; of none, no rows."""
        listed = list(parts)
        hashes = [np.zeros(0, np.uint64), *(part.hash_B for part in listed)]
        thumbs = [np.zeros((0, THUMB_BYTES), np.uint8), *(part.thumb_BT for part in listed)]
        return Fingerprints(np.concatenate(hashes), np.concatenate(thumbs))


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
            leaks += [_leak(kind, other, sample, value) for other in by_split.values()]
            by_split[sample.split] = sample
    return leaks


def find_near_duplicates(
    samples: Sequence[Sample],
    fingerprints: Fingerprints,
    on_gap: Callable[[str], None] = _log.warning,
) -> list[Leak]:
    """Return pairs that look the same across splits, at most the first thousand.

    Beside the fingerprints it needs 10 bytes per image and some 100 MB. Where so many images look
    alike that this would take minutes, it stops and says so.

    Args:
        samples: The images, with their splits.
        fingerprints: Of the same images, in the same order.
        on_gap: Told in words why not every pair was looked at.
    """
    side_B = np.unique([sample.split for sample in samples], return_inverse=True)[1].astype(np.int8)
    if side_B.max(initial=0) == 0:
        return []
    mean_B, contrast_B = _mean_and_contrast(fingerprints.thumb_BT)
    usable = np.flatnonzero(contrast_B >= _MIN_CONTRAST)
    found: list[tuple[int, int]] = []
    num_compared = 0
    for a_P, b_P in _alike(fingerprints.hash_B, side_B, usable, on_gap):
        num_compared += len(a_P)
        a_PT, b_PT = (fingerprints.thumb_BT[x].astype(np.float32) for x in (a_P, b_P))
        covariance_P = np.einsum("pt,pt->p", a_PT, b_PT) / a_PT.shape[1] - mean_B[a_P] * mean_B[b_P]
        is_same_P = covariance_P >= _MIN_CORRELATION * contrast_B[a_P] * contrast_B[b_P]
        found += zip(a_P[is_same_P].tolist(), b_P[is_same_P].tolist(), strict=True)
        if len(found) >= _MAX_LEAKS:
            on_gap(f"the search for near-duplicates stopped at {_MAX_LEAKS} pairs found")
            break
        if num_compared > _MAX_COMPARED:
            on_gap(
                f"the search for near-duplicates stopped after {num_compared} pairs of pictures "
                "compared: most look alike"
            )
            break
    return [_leak("near-duplicate", samples[a], samples[b]) for a, b in sorted(found)[:_MAX_LEAKS]]


def count_leaks(leaks: Sequence[Leak]) -> dict[str, int]:
    """Return the number of leaks of each kind."""
    return dict(sorted(Counter(leak.kind for leak in leaks).items()))


def describe_leaks(leaks: Sequence[Leak]) -> str:
    """Return the counts and the first few pairs, for a message."""
    counts = ", ".join(f"{count} by {kind}" for kind, count in count_leaks(leaks).items())
    shown = "; ".join(
        f"{leak.uri} ({leak.split}) and {leak.other_uri} ({leak.other_split}): {leak.kind}"
        + (f" {leak.value!r}" if leak.kind == "group" else "")
        for leak in leaks[:_NUM_NAMED]
    )
    return f"the splits share images, {counts}: {shown}"


def refuse_leaks(leaks: Sequence[Leak], listed_in: str = "") -> None:
    """Stop before a model is measured on what it was trained on.

    Args:
        leaks: What was found.
        listed_in: The file with all of them.

    Raises:
        SourceError: there are leaks; names the first few and the ways out.
    """
    if not leaks:
        return
    all_in = f", all in {listed_in}" if listed_in else ""
    kinds = {leak.kind for leak in leaks}
    camera = (
        "; where a fixed camera makes all pictures look alike, near-duplicates say little: look at "
        "some pairs first"
        if "near-duplicate" in kinds
        else ""
    )
    raise SourceError(
        f"{describe_leaks(leaks)}{all_in}. Remove one of each pair, or keep what belongs together "
        "on one side by a group column (patient, lot, camera), or train on them all the same with "
        f"--allow-leaks{camera}"
    )


def leaks_to_csv(leaks: Sequence[Leak]) -> bytes:
    """Return a table of leaks with a header, UTF-8."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(map(in_csv, astuple(leak)) for leak in leaks)
    return text.getvalue().encode("utf-8", "surrogatepass")


def leaks_from_csv(data: bytes) -> list[Leak]:
    """Read `leaks_to_csv`'s table."""
    lines = csv.reader(io.StringIO(data.decode("utf-8", "surrogatepass"), newline=""))
    return [Leak(*map(from_csv, line)) for line in lines if tuple(line) != CSV_COLUMNS]


def _mean_and_contrast(
    thumb_BT: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation of each thumbnail, 0..255, a chunk of them at a time."""
    mean_B, contrast_B = (np.empty(len(thumb_BT), np.float32) for _ in range(2))
    for start in range(0, len(thumb_BT), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        pixels = thumb_BT[chunk].astype(np.float32)
        mean_B[chunk], contrast_B[chunk] = pixels.mean(axis=1), pixels.std(axis=1)
    return mean_B, contrast_B


def _alike(
    hash_B: npt.NDArray[np.uint64],
    side_B: npt.NDArray[np.int8],
    usable: npt.NDArray[np.intp],
    on_gap: Callable[[str], None],
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Yield arrays of pairs across sides whose hashes differ in few bits, each pair once."""
    num_tested = 0
    for band in range(_NUM_BANDS):
        value_B = (hash_B[usable] >> np.uint64(band * _BAND_BITS)) & _BAND_MASK
        order = np.argsort(value_B, kind="stable")
        starts = np.flatnonzero(np.diff(value_B[order])) + 1
        for bucket in np.split(usable[order], starts):
            if (side_B[bucket] == side_B[bucket[:1]]).all():
                continue
            num_rows = max(1, _CHUNK * 16 // len(bucket))
            for start in range(0, len(bucket), num_rows):
                rows = bucket[start : start + num_rows]
                num_tested += len(rows) * len(bucket)
                yield from _pairs(hash_B, side_B, rows, bucket, band)
                if num_tested > _MAX_TESTED:
                    on_gap(
                        f"the search for near-duplicates stopped after {num_tested} pairs of "
                        "hashes compared: most look alike"
                    )
                    return


def _pairs(
    hash_B: npt.NDArray[np.uint64],
    side_B: npt.NDArray[np.int8],
    rows: npt.NDArray[np.intp],
    bucket: npt.NDArray[np.intp],
    band: int,
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Yield the pairs of rows with the rest of their bucket, some thousand at a time."""
    differing = hash_B[rows][:, None] ^ hash_B[bucket][None]
    is_pair = np.bitwise_count(differing) <= _MAX_HASH_DISTANCE
    is_pair &= side_B[rows][:, None] != side_B[bucket][None]
    is_pair &= rows[:, None] < bucket[None]
    a_P, b_P = np.nonzero(is_pair)
    differing_P = differing[a_P, b_P]
    is_new_P = np.ones(len(a_P), bool)
    for earlier in range(band):
        # A pair that agrees in an earlier band was found there.
        is_new_P &= (differing_P >> np.uint64(earlier * _BAND_BITS)) & _BAND_MASK != 0
    a_P, b_P = rows[a_P[is_new_P]], bucket[b_P[is_new_P]]
    for start in range(0, len(a_P), _CHUNK // 4):
        yield a_P[start : start + _CHUNK // 4], b_P[start : start + _CHUNK // 4]


def _leak(kind: str, sample: Sample, other: Sample, value: str = "") -> Leak:
    return Leak(kind, value, sample.uri, sample.split, other.uri, other.split)
