"""DICOM lookup tables: modality, VOI and palette (PS3.3, C.11.1, C.11.2 and C.7.6.3.1.5).

In: sequence items or a palette, samples. Out: the entries that the samples choose. Invariant: a
sample below the first entry takes the first, one beyond the last takes the last; no type that the
entries have ever holds an index.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from imgcls.errors import CorruptImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COLORS: Final = ("Red", "Green", "Blue")
_MAX_BITS: Final = 16


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """Entries and where they begin."""

    entries: npt.NDArray[np.uint16]
    """[N], or [N,3] of a palette."""
    first: int
    """The sample that takes the first entry."""
    bits: int
    """Significant bits of an entry."""

    def look_up(self, values_HW: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Return the entries of samples, which are rounded to integers."""
        whole = values_HW if values_HW.dtype.kind in "iu" else np.rint(values_HW)
        low, high = self.first, self.first + len(self.entries) - 1
        index = np.clip(whole.astype(np.int64), low, high) - self.first
        found: npt.NDArray[np.uint16] = self.entries[index]
        return found


def usable_tables(items: "list[Dataset] | None", dataset: "Dataset") -> list[LookupTable]:
    """Return the tables of a sequence; items that are empty, as some writers leave them, are none.

    Args:
        items: of a Modality or VOI LUT Sequence.
        dataset: the whole object, for its byte order.
    """
    tables = []
    for item in items or []:
        descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
        if descriptor is None or len(descriptor) != 3 or data is None:
            continue
        entries = _entries(data, int(descriptor[0]) or 1 << 16, dataset)
        if entries.size:
            tables.append(LookupTable(entries, int(descriptor[1]), _bits(int(descriptor[2]))))
    return tables


def palette(dataset: "Dataset") -> LookupTable:
    """Return the palette of an object, its entries as [N,3].

    Raises:
        CorruptImageError: it has none, or its three tables differ in length.
    """
    descriptor = dataset.get("RedPaletteColorLookupTableDescriptor")
    stored = [dataset.get(f"{color}PaletteColorLookupTableData") for color in _COLORS]
    if descriptor is None or len(descriptor) != 3 or any(data is None for data in stored):
        raise CorruptImageError("DICOM: a palette image without its palette")
    count = int(descriptor[0]) or 1 << 16
    channels = [_entries(data, count, dataset) for data in stored]
    if not channels[0].size or len({channel.size for channel in channels}) > 1:
        raise CorruptImageError("DICOM: the three tables of the palette differ in length")
    entries = np.stack(channels, axis=-1)
    bits = _bits(int(descriptor[2]))
    # Entries of 8 bits that the descriptor calls 16: the picture would be black.
    return LookupTable(entries, int(descriptor[1]), 8 if entries.max() < 1 << 8 else bits)


def _bits(declared: int) -> int:
    return declared if 0 < declared <= _MAX_BITS else _MAX_BITS


def _entries(data: Any, count: int, dataset: "Dataset") -> npt.NDArray[np.uint16]:  # noqa: ANN401
    """Return at most `count` entries: of words, of bytes, or of numbers that pydicom has read."""
    if not isinstance(data, bytes):
        numbers = np.atleast_1d(np.asarray(data, np.int64))
        return (numbers & 0xFFFF).astype(np.uint16)[:count]
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    if len(data) < 2 * count:  # 8 bits each, in words
        words = np.frombuffer(data[: len(data) & ~1], f"{order}u2")
        packed = words.astype("<u2").view(np.uint8)
        return packed.astype(np.uint16)[:count]
    return np.frombuffer(data, f"{order}u2", count).astype(np.uint16)
