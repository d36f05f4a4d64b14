"""BMP whose samples lie under bit masks that Pillow does not know.

In: a BMP of 16 or 32 bits with its own masks (BITMAPV3INFOHEADER and before). Out: uint8 [H,W,C].
Invariant: no row is made up: a file with fewer bytes than its header says is corrupt.
"""

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.decoded import Pixels
from imgcls.image.formats.color import from_samples
from imgcls.image.spec import DecodeSpec

_HEADER: Final = struct.Struct("<IIiiHHI")  # pixels at, header bytes, size, planes, bits, coding
_HEADER_AT: Final = 10
_MASKS_AT: Final = 54
_WITH_ALPHA_BYTES: Final = 56  # the first header that has a mask of alpha
_ALPHA_FIELDS: Final = 6  # a coding that has one behind any header


def decode_bit_fields(data: bytes, spec: DecodeSpec) -> Pixels:
    """Return uint8 [H,W,C].

    Raises:
        ImageTooLargeError: beyond `spec.max_pixels`.
        UnsupportedImageError: other depths, or a mask with a gap.
        CorruptImageError: rows are missing.
    """
    try:
        at, header_bytes, width, height, _, bits, coding = _HEADER.unpack_from(data, _HEADER_AT)
        has_alpha = header_bytes >= _WITH_ALPHA_BYTES or coding == _ALPHA_FIELDS
        masks = struct.unpack_from(f"<{4 if has_alpha else 3}I", data, _MASKS_AT)
    except struct.error as error:
        raise CorruptImageError("BMP: the header is cut") from error
    is_top_down, height = height < 0, abs(height)
    spec.refuse_size(width, height)
    if bits not in (16, 32) or width <= 0 or height == 0:
        raise UnsupportedImageError(f"BMP: bit masks in {bits} bits, {width} x {height}")
    row_samples = -(-width * bits // 32) * 32 // bits
    if len(data) < at + row_samples * height * bits // 8:
        raise CorruptImageError("BMP: rows are missing")
    stored = np.frombuffer(data, f"<u{bits // 8}", row_samples * height, at)
    stored_HW = stored.reshape(height, row_samples)[:: 1 if is_top_down else -1, :width]
    channels = [_channel(stored_HW, mask) for mask in masks]
    if len(channels) == 4 and not channels[3].any():  # no alpha, or one that nobody set
        channels.pop()
    return from_samples(np.stack(channels, axis=-1), (0.0, 255.0), None, spec)


def _channel(stored_HW: npt.NDArray[np.generic], mask: int) -> npt.NDArray[np.uint8]:
    """Return the bits under a mask, scaled to 0..255."""
    if mask == 0:
        return np.zeros(stored_HW.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    high = mask >> shift
    if high & (high + 1):
        raise UnsupportedImageError(f"BMP: bit mask {mask:#x} has a gap")
    values = (stored_HW.astype(np.uint32) & np.uint32(mask)) >> np.uint32(shift)
    scaled: npt.NDArray[np.uint8] = np.rint(values * (255.0 / high)).astype(np.uint8)
    return scaled
