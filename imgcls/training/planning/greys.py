"""The range of deep greys that training saw, frozen, and what is left of them in the model's input.

In: URIs of training images and the decode spec of the flags. Out: the decode spec with its ranges,
and what to say. Invariant: a function of the images and the seed: a sample by hash, whatever the
order and the number of decoders.

A range that holds what nearly every image of a kind shows: of each image what lies between its
ROBUST_PERCENTILES, of all these all but the outermost images, and a margin. So no dead pixel and no
odd image stretches it, and a finding that is brighter than the rest of its image still lies within.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from imgcls.errors import ConfigError
from imgcls.image.crops import Crop, facts_of
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.image.facts.image_facts import ImageFacts
from imgcls.image.facts.levels import FEW_FRACTION, FEW_LEVELS, loses_levels
from imgcls.image.spec import POOLED, DecodeSpec, PreprocessSpec
from imgcls.sources.located import Located, access_to, in_reading_order, request_for
from imgcls.training.augment.counter_rng import hash64

log = logging.getLogger(__name__)

# A kind that one image in a hundred is of is seen nearly always.
NUM_LOOKED_AT: Final = 512
_OUTERMOST_PERCENT: Final = 1.0
_MARGIN_FRACTION: Final = 0.05
_DIGITS: Final = 6
_BATCH: Final = 64


@dataclasses.dataclass(frozen=True)
class Greys:
    """What was seen of the training images' greys."""

    decode_spec: DecodeSpec
    """With the measured ranges."""
    facts: list[ImageFacts]
    """Of the sample, decoded by it."""

    @property
    def bits(self) -> dict[str, int]:
        """How many images have so many bits a sample."""
        counts = Counter(facts.source.bits for facts in self.facts)
        return {str(bits): counts[bits] for bits in sorted(counts)}

    @property
    def deep(self) -> list[ImageFacts]:
        """Those of deep greys."""
        return [facts for facts in self.facts if facts.source.levels is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return what the bundle keeps of it."""
        rules = Counter(facts.source.gray_rule for facts in self.deep)
        return {
            "images": len(self.facts),
            "bits": self.bits,
            "levels": _median([facts.looks.levels for facts in self.facts]),
            "deep": len(self.deep),
            "source_levels": _median([facts.source.levels or 0 for facts in self.deep]),
            "rules": dict(sorted(rules.items())),
            "few_levels": sum(
                loses_levels(facts, self.decode_spec.pixel_type) for facts in self.facts
            ),
        }


def look_at_greys(
    images: Sequence[Located],
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    *,
    seed: int,
    num_decoders: int,
) -> Greys:
    """Measure the ranges where the spec wants that, and what is left of the greys.

    Raises:
        AccessDeniedError: not one image may be read.
    """
    order = np.argsort(hash64(seed, np.arange(len(images))), kind="stable")[:NUM_LOOKED_AT]
    chosen = [images[index] for index in order]
    plain = dataclasses.replace(decode_spec, gray_range="declared", gray_ranges=())
    is_measured = decode_spec.gray_range == "measured"
    facts = _facts(chosen, plain if is_measured else decode_spec, preprocess_spec, num_decoders)
    if not is_measured:
        return Greys(decode_spec, facts)
    ranges = fit_ranges(facts)
    if not ranges:  # no grey that needs one: what is written is what was done
        return Greys(plain, facts)
    frozen = dataclasses.replace(decode_spec, gray_ranges=ranges)
    return Greys(frozen, _facts(chosen, frozen, preprocess_spec, num_decoders))


def fit_ranges(facts: list[ImageFacts]) -> tuple[tuple[str, float, float], ...]:
    """Return the range of each kind of greys, and of all; none where no grey has extremes."""
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for seen in (one.source for one in facts):
        if seen.extremes is not None:
            by_kind.setdefault(seen.kind, []).append(seen.extremes)
    if not by_kind:
        return ()
    together = [extremes for many in by_kind.values() for extremes in many]
    named = {POOLED: together} | dict(sorted(by_kind.items()))
    return tuple((kind, *_fit(extremes)) for kind, extremes in named.items())


def tell_greys(greys: Greys) -> None:
    """Say what is left of the greys.

    Raises:
        ConfigError: the median image keeps next to nothing of what its file has.
    """
    facts = greys.facts
    if not facts:
        return
    kept = _median([each.looks.levels for each in facts])
    for kind, low, high in greys.decode_spec.gray_ranges:
        if kind != POOLED:
            log.info("greys of %s: %g to %g, as measured, become black to white", kind, low, high)
    deep = greys.deep
    if greys.decode_spec.pixel_type != "uint8":
        _tell_depth(greys, kept)
        return
    had = f"; the files have {_median([each.source.levels or 0 for each in deep])}" if deep else ""
    log.info("greys: crops use %d of 256 levels (median of %d images%s)", kept, len(facts), had)
    lost = sum(loses_levels(each, greys.decode_spec.pixel_type) for each in facts)
    ways = (
        "give the range that matters: --gray-range measured (the default), min_max, or "
        "--gray-window LOW:HIGH"
    )
    if 2 * lost > len(facts):
        rules = ", ".join(sorted({each.source.gray_rule for each in deep}))
        raise ConfigError(
            f"the model would be nearly blind: of the greys of these images {kept} of 256 levels "
            f"are left (median of {len(facts)}){had}. Fewer than {FEW_LEVELS} and less than "
            f"{FEW_FRACTION:.0%} of them are refused. Black and white are by the rule {rules}: "
            f"{ways}; or keep all of them: --depth 16"
        )
    if kept < FEW_LEVELS or lost:
        log.warning(
            "greys: the crops of %d of %d images use fewer than %d of 256 levels, nearly flat to "
            "the model%s: %s",
            sum(each.looks.levels < FEW_LEVELS for each in facts),
            len(facts),
            FEW_LEVELS,
            had,
            ways,
        )


def _tell_depth(greys: Greys, kept: int) -> None:
    """Say what --depth 16 gives, and what it costs."""
    cost = "batches and caches take 4 times the memory, and no JPEG is decoded on a GPU"
    if not (deep := greys.deep):
        log.warning(
            "--depth 16: none of %d images has greys deeper than 8 bits; %s", len(greys.facts), cost
        )
        return
    log.info(
        "greys: --depth 16 rounds nothing: the levels of the files (%d, median of %d images) reach "
        "the model, spread over %d of 256 steps from black to white; %s",
        _median([each.source.levels or 0 for each in deep]),
        len(deep),
        kept,
        cost,
    )


def _facts(
    images: Sequence[Located],
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    num_decoders: int,
) -> list[ImageFacts]:
    """Return the facts of the first crop of each image that gives pixels, in their order."""
    found: dict[tuple[int, int], ImageFacts] = {}
    access = access_to(images)
    requests = in_reading_order(request_for(index, image) for index, image in enumerate(images))
    with DecoderPool(decode_spec, preprocess_spec, num_decoders or 1, look="ranges") as pool:
        decoded = pool.decode_many(access.read(requests))
        for batch in _batched(_first_crops(decoded, is_pooled=decode_spec.frames == "pool")):
            keys, crops = zip(*batch, strict=True)
            found |= zip(keys, facts_of(crops, preprocess_spec), strict=True)
    return [found[key] for key in sorted(found)]


def _first_crops(
    decoded: Iterator[Decoded], *, is_pooled: bool
) -> Iterator[tuple[tuple[int, int], Crop]]:
    """Yield what training takes of each image, one crop of a frame."""
    for one in decoded:
        of_frames = [crop for crop in one.crops if crop.looks is not None] if is_pooled else []
        for number, crop in enumerate(of_frames or one.crops[:1]):
            yield (one.index, number), crop


def _batched(items: Iterator[Any]) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _fit(extremes: list[tuple[float, float]]) -> tuple[float, float]:
    lows, highs = zip(*extremes, strict=True)
    low = float(np.percentile(lows, _OUTERMOST_PERCENT))
    high = float(np.percentile(highs, 100 - _OUTERMOST_PERCENT))
    margin = _MARGIN_FRACTION * (high - low)
    low, high = (float(f"{value:.{_DIGITS}g}") for value in (low - margin, high + margin))
    return (low, high) if low < high else (low, low + 1.0)


def _median(values: list[int]) -> int:
    return int(np.median(values)) if values else 0
