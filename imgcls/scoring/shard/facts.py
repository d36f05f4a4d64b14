"""The facts of a shard's images, and thumbnails of those that somebody will look at.

In: samples with their rows, as they are predicted. Out: a table of FACTS_SCHEMA, row by row that of
the predictions, and counts of greys. Invariant: no image is read, decoded or resized for it; at
most a bounded number of pictures is held.

Of a small run every image has a thumbnail, of a large one those that are flagged or uncertain, the
extremes of each fact, and a random sample, by hash of the name: a run that is done again has the
same one.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imgcls.image.crops import Crop, facts_of
from imgcls.image.facts.image_facts import ImageFacts
from imgcls.image.facts.levels import loses_levels
from imgcls.image.facts.thumbnail import encode_thumbnail
from imgcls.image.spec import PreprocessSpec
from imgcls.inference.sketch import short_sketch
from imgcls.inference.stream import Sample
from imgcls.runs.facts import FACTS_SCHEMA, lot_of
from imgcls.schema import Status

# URI, and member of a container.
Key = tuple[str, str | None]

# Of a run: up to so many images all have a thumbnail, of more so many are drawn.
NUM_SAMPLED: Final = 600
# Of a shard: a model that flags everything must not cost a picture each.
_MAX_FLAGGED: Final = 64
_FLAGGED_FRACTION: Final = 0.05
_NUM_UNCERTAIN: Final = 8
FLAGS: Final = ("positive", "review")
"""Decisions that a person looks at."""
_AXES: Final = ("brightness", "contrast", "sharpness", "levels")


@dataclass(slots=True, eq=False)
class Seen:
    """What one row's image was seen to be."""

    facts: ImageFacts
    thumbnail: bytes | None = None
    reason: str | None = None
    heatmap: bytes | None = None
    heatmap_class: str | None = None
    sketch_S: npt.NDArray[np.float16] | None = None


class ShardFacts:
    """Collects what is seen of a shard's images.

    Args:
        spec: of the bundle.
        num_planned: images of the run.
        num_rows: planned images of the shard.
        known_bits: bits of a sample that training saw; none: nobody knows.
    """

    def __init__(
        self,
        spec: PreprocessSpec,
        num_planned: int,
        num_rows: int,
        known_bits: Collection[str] = (),
    ) -> None:
        self._spec, self._known_bits = spec, known_bits
        self._share = NUM_SAMPLED / max(1, num_planned)
        self._flagged_left = _MAX_FLAGGED + int(_FLAGGED_FRACTION * num_rows)
        self._extremes: dict[tuple[str, bool], tuple[float, Seen, Crop]] = {}
        self._uncertain: list[tuple[float, int, Seen, Crop]] = []
        self._order = count()
        self._greys: Counter[str] = Counter()

    def add(
        self,
        samples: Sequence[Sample],
        keys: Sequence[Key],
        rows: Sequence[dict[str, Any]],
        sketch_BS: npt.NDArray[np.float32] | None = None,
    ) -> list[Seen]:
        """Look at samples whose rows are made; returns what belongs to each row."""
        crops = [sample.looked_at for sample in samples]
        found = [Seen(facts) for facts in facts_of(crops, self._spec)]
        for seen, crop, key, row in zip(found, crops, keys, rows, strict=True):
            self._count(seen.facts, crop.x_CHW.dtype.name)
            self._choose(seen, crop, key, row)
        if sketch_BS is not None:
            for seen, sketch_S, row in zip(found, short_sketch(sketch_BS), rows, strict=True):
                seen.sketch_S = sketch_S if row["status"] == Status.OK else None
        return found

    @property
    def greys(self) -> dict[str, int]:
        """How many images: with so many bits, by which rule of greys, with hardly a level left."""
        return dict(sorted(self._greys.items()))

    def table(
        self, keys: Sequence[Key], rows: Sequence[tuple[dict[str, Any], Seen | None]]
    ) -> pa.Table:
        """Return the table of rows in their final order; those of failures have no facts."""
        for _, seen, crop in self._extremes.values():
            self._encode(seen, crop, "extreme")
        for _, _, seen, crop in self._uncertain:
            self._encode(seen, crop, "uncertain")
        entries = []
        for (uri, member), (row, of_row) in zip(keys, rows, strict=True):
            names = ("frame", "format", "width_px", "height_px")
            entry = {"uri": uri, "member": member} | {name: row.get(name) for name in names}
            if of_row is not None:
                looks, source = of_row.facts.looks, of_row.facts.source
                entry |= {axis: getattr(looks, axis) for axis in _AXES}
                entry |= {
                    "source_levels": source.levels,
                    "bits": source.bits,
                    "modality": source.modality or None,
                    "gray_rule": source.gray_rule or None,
                    "sketch": of_row.sketch_S,
                    "thumbnail": of_row.thumbnail,
                    "thumbnail_for": of_row.reason,
                    "heatmap": of_row.heatmap,
                    "heatmap_class": of_row.heatmap_class,
                }
            entries.append(entry)
        return pa.Table.from_pylist(entries, schema=FACTS_SCHEMA)

    def add_heatmap(self, seen: Seen, sample: Sample, png: bytes, class_name: str) -> None:
        """Add what is laid over the picture of a sample, for which there is a picture then."""
        seen.heatmap, seen.heatmap_class = png, class_name
        self._encode(seen, sample.looked_at, "heatmap")

    def _count(self, facts: ImageFacts, pixel_type: str) -> None:
        source = facts.source
        if source.bits != 8:
            self._greys[f"bits_{source.bits}"] += 1
        if self._known_bits and str(source.bits) not in self._known_bits:
            self._greys[f"new_bits_{source.bits}"] += 1
        if source.gray_rule:
            self._greys[source.gray_rule] += 1
        if loses_levels(facts, pixel_type):
            self._greys["few_levels"] += 1

    def _choose(self, seen: Seen, crop: Crop, key: Key, row: dict[str, Any]) -> None:
        if row.get("decision") in FLAGS and self._flagged_left > 0:
            self._flagged_left -= 1
            self._encode(seen, crop, "flagged")
        elif self._share >= 1 or lot_of(*key) < self._share:
            self._encode(seen, crop, "sample")
        else:
            self._keep_if_extreme(seen, crop)
            self._keep_if_uncertain(seen, crop, row)

    def _keep_if_extreme(self, seen: Seen, crop: Crop) -> None:
        for axis in _AXES:
            value = float(getattr(seen.facts.looks, axis))
            for is_high, key in ((False, -value), (True, value)):
                before = self._extremes.get((axis, is_high))
                if before is None or key > before[0]:
                    self._extremes[axis, is_high] = (key, seen, crop)

    def _keep_if_uncertain(self, seen: Seen, crop: Crop, row: dict[str, Any]) -> None:
        probs = row.get("topk_prob")
        if not probs:
            return
        margin = probs[0] - probs[1] if len(probs) > 1 else abs(2 * probs[0] - 1)
        push = heapq.heappush if len(self._uncertain) < _NUM_UNCERTAIN else heapq.heappushpop
        push(self._uncertain, (-margin, next(self._order), seen, crop))

    def _encode(self, seen: Seen, crop: Crop, reason: str) -> None:
        if seen.thumbnail is None:
            seen.thumbnail = encode_thumbnail(
                crop.x_CHW, crop.picture_HWC, crop.size_px, self._spec
            )
            seen.reason = reason
