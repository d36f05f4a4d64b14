"""The samples of a shard that get a heatmap: which, and their maps, drawn over the whole picture.

In: samples with what the model says of them. Out: an Overlay for each that was picked, handed to
whoever gave it. Invariants: which ones are picked depends on the shard's rows alone, never on the
order in which they are done; what is held is bounded, in samples and in bytes.

Of `flagged` these are picked in each shard: the most probable of the flagged (or to be reviewed),
the least sure, and some by lot: at most those that a page can show. By occlusion a map costs as
much as dozens of images, so there are fewer. Of a model of tiles a map is made of the tiles that
speak loudest; each shows its part of the picture.
"""

import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from imgcls.image.crops import Crop
from imgcls.image.facts.overlay import Overlay, Patch, draw_overlay
from imgcls.image.spec import PreprocessSpec
from imgcls.inference.heatmaps.explainer import Explainer
from imgcls.inference.passes import describe_error
from imgcls.inference.stream import Sample

Reason = Literal["flagged", "other"]

NUM_TILES: Final = 8
"""Tiles of a picture that are looked at again."""
# Of a run, as far as a page shows them; of the flagged as many as have a thumbnail.
_NUM_UNSURE, _NUM_DRAWN = 60, 48
_MOST_FLAGGED, _FLAGGED_FRACTION = 64, 0.05
_FEWEST: Final = 8  # per shard, however much a map costs
_MAX_HELD_BYTES: Final = 256 << 20  # of inputs in float32; of bytes, as most are, a quarter
_INPUTS_AT_A_TIME: Final = 16

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Asked:
    """A sample, what is to be explained of it, and who wants to know."""

    sample: Sample
    label: int
    """Of the answer."""
    done: Callable[[Overlay], None]
    """Told its overlay; not called where no place speaks for the answer."""


@dataclass(slots=True)
class _Lowest:
    """Those with the lowest rank, at most so many."""

    most: int
    _heap: list[tuple[float, float, int, Asked]] = field(default_factory=list)

    def add(self, rank: float, lot: float, asked: Asked) -> None:
        entry = (-rank, -lot, id(asked), asked)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, entry)
        elif self.most:
            heapq.heappushpop(self._heap, entry)

    def found(self) -> list[Asked]:
        return [asked for *_, asked in sorted(self._heap, key=lambda entry: entry[:2])]


class ShardHeatmaps:
    """Picks samples of one shard and makes their maps.

    Args:
        explainer: makes the maps.
        spec: of the bundle.
        which: all, or as above.
        num_planned: images of the run.
        num_rows: planned images of the shard.
    """

    def __init__(
        self,
        explainer: Explainer,
        spec: PreprocessSpec,
        which: Literal["flagged", "all"],
        num_planned: int,
        num_rows: int,
    ) -> None:
        self._explainer, self._spec, self._is_all = explainer, spec, which == "all"
        share = num_rows / max(1, num_planned)
        num_flagged = _MOST_FLAGGED + int(_FLAGGED_FRACTION * num_rows)
        self._flagged, self._unsure, self._drawn = (
            _Lowest(self._affordable(most))
            for most in (num_flagged, -(-_NUM_UNSURE * share // 1), -(-_NUM_DRAWN * share // 1))
        )
        self._all: list[Asked] = []

    def add(self, asked: Asked, reason: Reason, probability: float, lot: float) -> None:
        """Take a sample that has an answer.

        Args:
            asked: the sample.
            reason: whether its answer is one that somebody will look at.
            probability: that of its answer.
            lot: drawn for it, [0, 1).
        """
        if self._is_all:
            self._all.append(asked)
            if len(self._all) >= _INPUTS_AT_A_TIME:
                self._make(self._all)
                self._all = []
        elif reason == "flagged":
            self._flagged.add(-probability, lot, asked)
        else:
            self._unsure.add(probability, lot, asked)
            self._drawn.add(lot, lot, asked)

    def finish(self) -> None:
        """Make all maps that are not made yet."""
        picked = [*self._flagged.found(), *self._unsure.found(), *self._drawn.found(), *self._all]
        self._make(list({id(asked): asked for asked in picked}.values()))

    def _affordable(self, most: float) -> int:
        num_inputs = NUM_TILES if self._spec.fit == "tiles" else 1
        num_passes = num_inputs * self._explainer.num_passes
        fewest = min(int(most), _FEWEST)
        held_bytes = 4 * num_inputs * int(np.prod(self._spec.shape_CHW))
        return min(max(fewest, int(most) // num_passes), max(1, _MAX_HELD_BYTES // held_bytes))

    def _make(self, picked: Sequence[Asked]) -> None:
        inputs = [(asked, crop) for asked in picked for crop in _inputs_of(asked.sample)]
        patches: dict[int, list[Patch]] = {}
        try:
            for start in range(0, len(inputs), _INPUTS_AT_A_TIME):
                some = inputs[start : start + _INPUTS_AT_A_TIME]
                x_BCHW = np.stack([crop.x_CHW for _, crop in some])
                label_B = np.array([asked.label for asked, _ in some])
                maps = self._explainer.maps(x_BCHW, label_B)
                for (asked, crop), heat_hw in zip(some, maps, strict=True):
                    shift_px = self._explainer.shift_px
                    patch = Patch.of(heat_hw, crop.size_px, crop.place, self._spec, shift_px)
                    decided = asked.sample.crop
                    is_first = (crop.frame, crop.place) == (decided.frame, decided.place)
                    of_sample = patches.setdefault(id(asked), [])
                    of_sample.insert(0 if is_first else len(of_sample), patch)
        except Exception as error:  # noqa: BLE001 - for people: the rows are there without
            _log.warning("no heatmaps of %d images: %s", len(picked), describe_error(error))
            return
        for asked in picked:
            overlay = draw_overlay(patches.get(id(asked), ()), asked.sample.crop.size_px)
            if overlay is not None:
                asked.done(overlay)


def _inputs_of(sample: Sample) -> list[Crop]:
    """Return what is looked at again; of several frames those of the one that speaks loudest."""
    if sample.instances is None:
        return [sample.crop]
    return [crop for crop in sample.instances.loudest if crop.frame == sample.crop.frame]
