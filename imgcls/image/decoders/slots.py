"""The memory that a pool shares with one decoder process: crops, small pictures, where it is at.

In: crops in the child. Out: the same in the parent. Invariant: both sides have the layout from the
same values, and a slot is written by the child alone until the parent has its answer.

    a page            the int64 of Progress
    per slot          the pixels of its crops; then, where the look is for them, small pictures
"""

import math
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.image.crops import Crop, Source, has_picture
from imgcls.image.decoders.protocol import SLOTS_OFFSET, Progress
from imgcls.image.facts.source import Look
from imgcls.image.facts.thumbnail import MAX_PICTURE_PX, needs_picture
from imgcls.image.fit.tiles import most_frames
from imgcls.image.spec import DecodeSpec, PreprocessSpec

_ALIGNMENT: Final = 16
# Of each slot, for the next image: to ask the kernel for pages again costs more than to fill them.
_KEPT_SLOT_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """How many slots of how many crops there are, and what lies in each."""

    num_slots: int
    slot_crops: int
    decode_spec: DecodeSpec
    preprocess_spec: PreprocessSpec
    look: Look

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels of a crop."""
        return np.dtype(self.decode_spec.pixel_type)

    @property
    def crop_bytes(self) -> int:
        """Bytes of the pixels of a crop."""
        return math.prod(self.preprocess_spec.shape_CHW) * self.dtype.itemsize

    @property
    def pictures_shape(self) -> tuple[int, int, int, int]:
        """Room for the small pictures of a slot [N,h,w,C], one per frame; none where crops do."""
        if self.look != "facts" or not needs_picture(self.decode_spec, self.preprocess_spec):
            return 0, 0, 0, 0
        num_frames = most_frames(self.decode_spec)
        return num_frames, MAX_PICTURE_PX, MAX_PICTURE_PX, self.decode_spec.num_channels

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot."""
        num_bytes = self.slot_crops * self.crop_bytes + math.prod(self.pictures_shape)
        return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def num_bytes(self) -> int:
        """Bytes of all."""
        return SLOTS_OFFSET + self.num_slots * self.slot_bytes


class Slots:
    """The mapped memory; `memory_fd` may be closed once this is made."""

    def __init__(self, memory_fd: int, layout: SlotLayout) -> None:
        self.layout: Final = layout
        self._memory = mmap.mmap(memory_fd, layout.num_bytes)
        self.progress: Final = np.frombuffer(self._memory, np.int64, count=len(Progress))
        all_bytes = np.frombuffer(self._memory, np.uint8, offset=SLOTS_OFFSET)
        self._slots = all_bytes.reshape(layout.num_slots, layout.slot_bytes)

    def put(self, slot: int, crops: Iterable[Crop]) -> list[Source]:
        """Write crops and their pictures, as many as there is room for; return their sources."""
        sources: list[Source] = []
        pictures = iter(self._pictures(slot))
        for target_CYX, crop in zip(self._crops(slot), crops, strict=False):
            target_CYX[:] = crop.x_CHW
            if crop.picture_HWC is not None:
                height, width, _ = crop.picture_HWC.shape
                next(pictures)[:height, :width] = crop.picture_HWC
            sources.append(crop.source)
        return sources

    def take(self, slot: int, sources: Sequence[Sequence[Any]]) -> list[Crop]:
        """Return copies of the first crops of a slot, one to each source.

        Raises:
            TypeError, ValueError: a source is not one.
        """
        x_NCYX = self._crops(slot)[: len(sources)].copy()
        pictures = iter(self._pictures(slot))
        crops = [
            Crop.from_source(x_CYX, source, next(pictures, None) if has_picture(source) else None)
            for x_CYX, source in zip(x_NCYX, sources, strict=True)
        ]
        if x_NCYX.nbytes > _KEPT_SLOT_BYTES:  # give the memory of a long sequence back
            start = SLOTS_OFFSET + slot * self.layout.slot_bytes
            self._forget(start + _KEPT_SLOT_BYTES, x_NCYX.nbytes - _KEPT_SLOT_BYTES)
        return crops

    def _crops(self, slot: int) -> npt.NDArray[Any]:
        shape = self.layout.slot_crops, *self.layout.preprocess_spec.shape_CHW
        pixels = self._slots[slot, : self.layout.slot_crops * self.layout.crop_bytes]
        return pixels.view(self.layout.dtype).reshape(shape)

    def _pictures(self, slot: int) -> npt.NDArray[np.uint8]:
        shape, start = self.layout.pictures_shape, self.layout.slot_crops * self.layout.crop_bytes
        return self._slots[slot, start : start + math.prod(shape)].reshape(shape)

    def _forget(self, start: int, length: int) -> None:
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > first:
            self._memory.madvise(mmap.MADV_REMOVE, first, end - first)


def make_memory(layout: SlotLayout) -> int:
    """Return the descriptor of a new memory.

    The file is sparse: pages exist only where crops were written, however many frames a slot could
    hold.
    """
    memory_fd = os.memfd_create("imgcls-crops")
    os.ftruncate(memory_fd, layout.num_bytes)
    return memory_fd
