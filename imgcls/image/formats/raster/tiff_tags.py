"""What the first page of a TIFF says of its samples, read without a library.

In: encoded bytes. Out: its integer tags, and words for people. Invariant: bounded work whatever the
file claims, and nothing is decoded: it decides which library may, and names what none here can.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from imgcls.image.spec import DecodeSpec

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SAMPLES, _PLANES, _SAMPLE_FORMAT = 277, 284, 339
_KEPT: Final = frozenset(
    (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT)
)
_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # by the type of a field
_BYTES: Final = {"B": 1, "H": 2, "I": 4, "Q": 8}
_MAX_ENTRIES: Final = 4096
_MAX_VALUES: Final = 64
_SAMPLE_FORMATS: Final = {
    1: "unsigned",
    2: "signed",
    3: "float",
    4: "of no type",
    5: "complex",
    6: "complex",
}
# Pillow's libtiff lacks these, or is not built with them; tifffile has them by imagecodecs.
_SCIENTIFIC_COMPRESSIONS: Final = {
    22610: "JPEG XR",
    33003: "JPEG 2000 (Aperio, YCbCr)",
    33004: "JPEG 2000",
    33005: "JPEG 2000 (Aperio, RGB)",
    34712: "JPEG 2000",
    34887: "LERC",
    34927: "WebP",
    34933: "PNG",
    34934: "JPEG XR",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL (DNG)",
}
_OTHER_COMPRESSIONS: Final = {
    1: "none", 2: "CCITT", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old JPEG",
    7: "JPEG", 8: "deflate", 32771: "CCITT by words", 32773: "PackBits", 32809: "ThunderScan",
    32946: "deflate", 34676: "SGILog", 34677: "SGILog24", 34925: "LZMA", 50000: "zstd",
}  # fmt: skip
_UNREAD_COMPRESSIONS: Final = {
    9: "JBIG", 10: "JBIG", 32766: "NeXT", 32867: "Kodak 262", 34661: "JBIG", 34713: "Nikon NEF",
    34892: "lossy JPEG (DNG)", 65000: "Kodak DCR", 65535: "Pentax PEF",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TiffTags:
    """The first page; empty where its directory cannot be read."""

    is_big_bigtiff: bool
    """A big-endian BigTIFF, which Pillow does not read."""
    tags: dict[int, tuple[int, ...]]
    """Integer values by tag."""

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Read the tags that matter; damaged ones are left out."""
        order = "<" if data[:2] == b"II" else ">"
        try:
            is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
            tags = dict(_entries(data, order, is_big))
        except struct.error:  # the directory, or a value, lies beyond the end
            is_big, tags = False, {}
        return cls(is_big and order == ">", tags)

    def needs_tifffile(self, spec: DecodeSpec) -> bool:
        """True where Pillow cannot decode this, or of deep colours gives only the high byte."""
        is_deep_color = len(self.tags.get(_BITS, ())) > 2 and max(self.tags[_BITS]) > 8
        return (
            self.is_big_bigtiff
            or self._compression in _SCIENTIFIC_COMPRESSIONS
            or (is_deep_color and spec.gray_range != "declared")
        )

    @property
    def bits(self) -> int:
        """Bits of a sample of the first page."""
        return max(self.tags.get(_BITS, (1,)))

    @property
    def _compression(self) -> int:
        return self.tags.get(_COMPRESSION, (1,))[0]

    @property
    def has_unread_compression(self) -> bool:
        """True where no library here knows the compression."""
        compression = self._compression
        return not (compression in _OTHER_COMPRESSIONS or compression in _SCIENTIFIC_COMPRESSIONS)

    def words(self) -> str:
        """Return samples, bits, format and compression, as people call them."""
        bits = self.tags.get(_BITS, (1,))
        num_samples = self.tags.get(_SAMPLES, (len(bits),))[0]
        formats = self.tags.get(_SAMPLE_FORMAT, (1,))
        depth = " and ".join(str(n) for n in sorted(set(bits)))
        kind = _SAMPLE_FORMATS.get(formats[0], f"of sample format {formats[0]}")
        planes = " in separate planes" if self.tags.get(_PLANES, (1,))[0] == 2 else ""
        compression = self._compression
        names = _OTHER_COMPRESSIONS | _SCIENTIFIC_COMPRESSIONS | _UNREAD_COMPRESSIONS
        named = names.get(compression, "of an unknown kind")
        photometric = self.tags.get(_PHOTOMETRIC, (1,))[0]
        container = ", big-endian BigTIFF" if self.is_big_bigtiff else ""
        return (
            f"{num_samples} x {depth} bits {kind}{planes}, photometric {photometric}, "
            f"compression {named} ({compression}){container}"
        )


def _entries(data: bytes, order: str, is_big: bool) -> list[tuple[int, tuple[int, ...]]]:
    """Return the tags of the first directory that are kept (TIFF 6.0, section 2; BigTIFF)."""
    address, count_format, entry_bytes = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (start,) = struct.unpack_from(f"{order}{address}", data, 8 if is_big else 4)
    (num_entries,) = struct.unpack_from(f"{order}{count_format}", data, start)
    start += _BYTES[count_format]
    end = start + min(num_entries, _MAX_ENTRIES) * entry_bytes
    if end > len(data):
        raise struct.error("the directory is cut")
    found = []
    entry = f"{order}HH{address}{_BYTES[address]}s"
    for tag, kind, count, value in struct.iter_unpack(entry, data[start:end]):
        if tag not in _KEPT or kind not in _INTEGERS or not 0 < count <= _MAX_VALUES:
            continue
        values = f"{order}{count}{_INTEGERS[kind]}"
        if count * _BYTES[_INTEGERS[kind]] > _BYTES[address]:
            (value_at,) = struct.unpack(f"{order}{address}", value)
            found.append((tag, struct.unpack_from(values, data, value_at)))
        else:
            found.append((tag, struct.unpack_from(values, value)))
    return found
