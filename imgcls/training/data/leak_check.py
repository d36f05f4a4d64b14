"""Look at every image once before the first step: do the splits share any?

In: a plan, its loaders, this rank. Out: the leaks, listed in RUN/leaks.csv, and in leak_check.json
whether there may be more. Invariants: nothing is trained, measured or registered on splits that
share images, unless --allow-leaks; a start that is refused changes no file of an earlier run; each
image is read by one rank, and what it decoded stays in the cache, so with a cache the first epoch
has nothing left to read.

Memory, on each rank: 300 bytes per image of the data set, so 300 MB for a million.

Shape legend: B batch, C channel, N image, T pixels of a thumbnail, P image_px.
"""

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from imgcls.data.dataset import Sample
from imgcls.data.leaks import (
    Fingerprints,
    Leak,
    LeakCheck,
    count_leaks,
    describe_leaks,
    find_near_duplicates,
    find_shared,
    leaks_from_csv,
    leaks_to_csv,
    refuse_leaks,
)
from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.identity import pseudonyms
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inert import in_csv
from imgcls.metrics.operating_targets import check_operating_points
from imgcls.sources.located import request_for
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put, put_first, read
from imgcls.storage.uri import join
from imgcls.training.data.loader import SplitLoader
from imgcls.training.data.looks import DIGEST_BYTES, Looks, open_eyes
from imgcls.training.data.sampler import divide
from imgcls.training.data.unit_loader import Loader, images_of, why_bad
from imgcls.training.ranks.rank import Place
from imgcls.training.train_plan import TrainPlan

LEAKS, LEAK_CHECK, LABEL_CONFLICTS = "leaks.csv", "leak_check.json", "label_conflicts.csv"
_BATCH = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """What one rank knows of its images: their numbers, sha256 of the bytes, looks."""

    index_N: npt.NDArray[np.int64]
    digest_ND: npt.NDArray[np.uint8]
    looks: Fingerprints


@dataclass(frozen=True)
class _Found:
    """Leaks, in words why there may be more, and equal images of unlike labels."""

    leaks: list[Leak]
    gaps: tuple[str, ...]
    conflicts: tuple[tuple[Sample, Sample], ...] = ()


def check_groups(plan: TrainPlan) -> None:
    """Refuse groups that lie on two sides; reads no image.

    Raises:
        SourceError: there are such groups, and no --allow-leaks.
    """
    leaks = _shared_groups(plan.samples)
    if leaks and not plan.config.allow_leaks:
        refuse_leaks(leaks, _list_refused(plan, leaks))


def check_images(
    plan: TrainPlan, loaders: Mapping[str, Loader], place: Place, *, resumed: bool
) -> LeakCheck:
    """Compare the images of all splits; return the number of leaks by kind, and what may be missed.

    Args:
        plan: the training's plan.
        loaders: by split.
        place: this rank; each reads its share.
        resumed: an earlier attempt has trained already, and so has checked.

    Raises:
        SourceError: there are leaks, and no --allow-leaks; on every rank.
        BudgetExceededError: too many images give no pixels.
        ConfigError: those without pixels leave nothing to choose an operating point on.
    """
    known = _read_earlier(plan) if resumed and place.rank == 0 else None
    found: _Found | None = place.from_first(known)
    if found is None:
        found = _compare(plan, loaders, place)
    check = LeakCheck(count_leaks(found.leaks), found.gaps)
    if found.leaks and not plan.config.allow_leaks:
        listed_in = _list_refused(plan, found.leaks) if place.rank == 0 else ""
        refuse_leaks(found.leaks, place.from_first(listed_in))
    if not resumed and "val" in loaders:
        # Of a resumed run the weights are there: see measure.py.
        learnt = plan.learnt("val")
        bad = {learnt[index].uri for index in why_bad(loaders["val"])}
        check_operating_points(
            plan.config, plan.class_names, learnt, bad, are_units=bool(plan.config.unit)
        )
    if place.rank == 0:
        _tell_conflicts(plan, found.conflicts)
        if known is None:
            put(join(plan.run_uri, LEAKS), leaks_to_csv(found.leaks))
            # Last, as it says that the list is there: an attempt that continues looks for it.
            put(join(plan.run_uri, LEAK_CHECK), json.dumps(check.to_dict(), indent=1).encode())
        if found.leaks:
            log.warning("%s; trained all the same: --allow-leaks", describe_leaks(found.leaks))
        for gap in found.gaps:
            log.warning("the leak check is incomplete: %s", gap)
    return check


def _list_refused(plan: TrainPlan, leaks: Sequence[Leak]) -> str:
    """Write what a start was refused for, and return where; the list of an earlier run stays."""
    data = leaks_to_csv(leaks)
    uri = join(plan.run_uri, LEAKS)
    if put_first(uri, data) == data:
        return uri
    uri = join(plan.run_uri, f"leaks-{hashlib.sha256(data).hexdigest()[:8]}.csv")
    put(uri, data)
    return uri


def _compare(plan: TrainPlan, all_loaders: Mapping[str, Loader], place: Place) -> _Found:
    """Return the same leaks on every rank, and let every rank know every bad image."""
    loaders = {split: images_of(loader) for split, loader in all_loaders.items()}
    start_s = time.monotonic()
    samples = plan.samples
    num_decoders = plan.config.num_decoders or torch.get_num_threads()
    first, seen = 0, []
    with open_eyes(plan.decode_spec, num_decoders) as eyes:
        for loader in loaders.values():
            seen.append(_look(loader, first, place, eyes))
            first += len(loader.samples)
    gathered = [part for parts in place.gather(seen) for part in parts]
    for loader in loaders.values():
        for found in place.gather(loader.bad):
            loader.add_bad(found)
    found = _find(samples, gathered) if place.rank == 0 else _Found([], ())
    if place.rank == 0:
        took_s = time.monotonic() - start_s
        log.info("compared %d images across the splits in %.1f s", len(samples), took_s)
    shared: _Found = place.from_first(found)
    return shared


def _look(loader: SplitLoader, first: int, place: Place, eyes: DecoderPool) -> _Seen:
    """Read this rank's share of a split; its images are numbered from `first`."""
    index_N = divide(np.arange(len(loader.samples)), place.rank, place.world_size)
    steps = [index_N[i : i + _BATCH] for i in range(0, len(index_N), _BATCH)]
    with Looks(eyes) as looks:
        for _ in loader.batches(steps, looks.add):
            pass  # what it decodes for the model stays in the cache
        # An image that was in the cache already was not read.
        unread = [int(index) for index in index_N if int(index) not in looks.digests]
        requests = [request_for(index, loader.samples[index]) for index in unread]
        for index, data in loader.read(requests) if requests else ():
            if isinstance(data, bytes):
                looks.add(index, data)
        seen, prints = looks.finish()
    data = b"".join(looks.digests[index] for index in seen)
    return _Seen(
        np.asarray(seen, np.int64) + first,
        np.frombuffer(data, np.uint8).reshape(len(seen), DIGEST_BYTES),
        prints,
    )


def _find(samples: Sequence[Sample], seen: Sequence[_Seen]) -> _Found:
    """Compare what all ranks saw; a pair of equal bytes is not named again for its looks."""
    index_N = np.concatenate([part.index_N for part in seen])
    order = np.argsort(index_N)
    digest_ND = np.concatenate([part.digest_ND for part in seen])[order]
    looks = Fingerprints.join(part.looks for part in seen)
    readable = [samples[index] for index in index_N[order].tolist()]
    digests = (digest.tobytes() for digest in digest_ND)
    shown = [digest.hex() for digest in digests]
    by_bytes = find_shared(readable, shown, "bytes")
    gaps = list[str]()
    by_looks = find_near_duplicates(
        readable, Fingerprints(looks.hash_B[order], looks.thumb_BT[order]), gaps.append
    )
    named = {(leak.uri, leak.other_uri) for leak in by_bytes}
    leaks = [
        *_shared_groups(samples),
        *by_bytes,
        *(leak for leak in by_looks if (leak.uri, leak.other_uri) not in named),
    ]
    return _Found(leaks, tuple(gaps), tuple(_conflicts(readable, shown)))


def _conflicts(
    samples: Sequence[Sample], digests: Sequence[str]
) -> Iterator[tuple[Sample, Sample]]:
    """Yield pairs of equal bytes and unlike labels."""
    first: dict[str, Sample] = {}
    for sample, digest in zip(samples, digests, strict=True):
        other = first.setdefault(digest, sample)
        if other.labels != sample.labels:
            yield other, sample


def _tell_conflicts(plan: TrainPlan, conflicts: Sequence[tuple[Sample, Sample]]) -> None:
    if not conflicts:
        return
    uri = join(plan.run_uri, LABEL_CONFLICTS)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("uri", "label", "other_uri", "other_label"))
    rows = ((a.uri, a.class_name, b.uri, b.class_name) for a, b in conflicts)
    writer.writerows(map(in_csv, row) for row in rows)
    put(uri, text.getvalue().encode("utf-8", "surrogatepass"))
    one, other = conflicts[0]
    log.warning(
        "%d images are the same, byte for byte, as one of another label, such as %s (%r) and %s "
        "(%r): one of the labels is wrong; all are listed in %s",
        len(conflicts), one.uri, one.class_name, other.uri, other.class_name, uri,
    )  # fmt: skip


def _shared_groups(samples: Sequence[Sample]) -> list[Leak]:
    named = pseudonyms(sample.group for sample in samples)
    return find_shared(samples, [named[sample.group] for sample in samples], "group")


def _read_earlier(plan: TrainPlan) -> _Found | None:
    """Return what the attempt before this one found, if it came to write it."""
    try:
        uri = join(plan.run_uri, LEAK_CHECK)
        check = parse_object(read(uri), uri, ConfigError)
        leaks = leaks_from_csv(read(join(plan.run_uri, LEAKS)))
        return _Found(leaks, tuple(check["incomplete_because"]))
    except ObjectMissingError:
        return None
