"""A plugin of pydicom that decodes by imagecodecs what no other permissive package does.

In: one encoded frame. Out: its samples as bytes. Invariant: a frame that ends too soon raises:
libjpeg only warns of it, and imagecodecs drops warnings.

12-bit JPEG of one channel, JPEG-LS of any depth. Licence: BSD-3-Clause, as that of libjpeg-turbo
and CharLS.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

_JPEG_PREFIX: Final = "1.2.840.10008.1.2.4."
_JPEG: Final = tuple(_JPEG_PREFIX + process for process in ("51", "57", "70"))
_JPEG_LS: Final = tuple(_JPEG_PREFIX + process for process in ("80", "81"))
# What pydicom asks of a plugin.
DECODER_DEPENDENCIES: Final = dict.fromkeys((*_JPEG, *_JPEG_LS), ("imagecodecs",))
_END_OF_IMAGE: Final = b"\xff\xd9"
# Any entropy-coded bytes: a whole frame ends before them, one that lost some continues into them.
_MORE: Final = bytes(range(1, 65))


def is_available(uid: str) -> bool:
    """Tell whether imagecodecs is installed, and has what the transfer syntax takes."""
    try:
        codecs: Any = importlib.import_module("imagecodecs")
        return bool((codecs.JPEG if uid in _JPEG else codecs.JPEGLS).available)
    except ImportError:
        return False


def decode_frame(encoded: bytes, runner: "DecodeRunner") -> bytes:
    """Return the samples of a frame, little-endian, as wide as they came.

    Raises:
        NotImplementedError: several channels of JPEG, whose colours the codec would guess.
        ValueError: the frame is cut, or samples are lost.
    """
    codecs: Any = importlib.import_module("imagecodecs")
    if runner.transfer_syntax in _JPEG_LS:
        samples = codecs.jpegls_decode(encoded)
        if runner.samples_per_pixel > 1:
            runner.set_option("planar_configuration", 0)
    else:
        if runner.samples_per_pixel != 1:
            raise NotImplementedError("does not support JPEG of several channels")
        samples = codecs.jpeg_decode(encoded)
        whole = encoded.rstrip(b"\x00")
        if not whole.endswith(_END_OF_IMAGE):
            raise ValueError("the end is missing")
        longer = codecs.jpeg_decode(whole[:-2] + _MORE + _END_OF_IMAGE)
        if not np.array_equal(samples, longer):
            raise ValueError("samples are lost")
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    return bytes(np.ascontiguousarray(samples).astype(samples.dtype.newbyteorder("<")).tobytes())
