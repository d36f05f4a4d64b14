"""Pictures deeper than 8 bits that Pillow reads as 8: by imagecodecs, with all their bits.

In: a file of which Pillow would give the high byte, or give it wrong. Out: uint8 [H,W,C] by the
range rule of the spec. Invariant: nothing is decoded before its size is known to fit.

Needs the extra `scientific`, but for PNM. Licence of imagecodecs: BSD-3-Clause.
"""

import importlib
import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.decoded import Pixels
from imgcls.image.formats.color import from_samples
from imgcls.image.formats.raster.jpeg2000 import Component, read_codestream
from imgcls.image.formats.raster.jpeg_markers import BASELINE, END_OF_IMAGE, JPEG_LS, Frame
from imgcls.image.spec import DecodeSpec

_COMMENT: Final = re.compile(rb"#[^\r\n]*")
_SYCC: Final = b"colr\x01\x00\x00\x00\x00\x00\x12"
_MAX_BITS: Final = 16
_LOSSLESS: Final = 0xC3
# Any entropy-coded bytes: a whole JPEG ends before them, one that lost some continues into them.
_MORE: Final = bytes(range(1, 65))


def decode_all_bits(
    source: ImageFile.ImageFile, data: bytes, format_name: str, spec: DecodeSpec
) -> Pixels | None:
    """Return uint8 [H,W,C] of a picture that needs this, None where Pillow's 8 bits will do.

    Args:
        source: the file as Pillow opened it, not loaded.
        data: the whole file.
        format_name: its format.
        spec: the decode spec.

    Raises:
        UnsupportedImageError: imagecodecs is not installed, or not for this.
    """
    wants_range = spec.gray_range != "declared"
    profile = source.info.get("icc_profile")
    if format_name == "PNG" and _is_deep_png(source):
        # Of 16 bits Pillow compares the transparent colour with high bytes.
        if not wants_range and not isinstance(source.info.get("transparency"), tuple):
            return None
        if getattr(source, "is_animated", False):
            raise UnsupportedImageError("PNG: an animation of 16-bit colours is not read")
        samples = _call("png_decode", data, "PNG of 16-bit colours by a range")
        return from_samples(_sized(samples, source.size), (0.0, 65535.0), profile, spec)
    if format_name == "PNM" and wants_range and source.mode == "RGB":
        offset, high = source.tile[0].offset, _max_value(source)
        if high > 255:
            samples = _read_ppm(data, offset, source)
            return from_samples(samples, (0.0, float(high)), profile, spec)
    if format_name == "JPEG2000":
        components = read_codestream(data)
        if len(components) > 1 and max(component.bits for component in components) > 8:
            return _decode_jpeg2000(source, data, components, spec)
    return None


def decode_deep_jpeg(data: bytes, frame: Frame, spec: DecodeSpec) -> Pixels:
    """Return uint8 [H,W,C] of a JPEG of more than 8 bits, or of a JPEG-LS of any depth.

    Raises:
        ImageTooLargeError: beyond `spec.max_pixels`.
        UnsupportedImageError: imagecodecs is not installed, or does not know the process.
        CorruptImageError: it is cut or lost samples.
    """
    spec.refuse_size(frame.width_px, frame.height_px)
    if frame.marker == BASELINE:  # of 8 bits by T.81, B.2.2: some byte of the header is wrong
        raise UnsupportedImageError(f"JPEG: a baseline JPEG that says {frame.precision} bits")
    if frame.marker == JPEG_LS:
        samples = _call("jpegls_decode", data, "JPEG-LS")
    else:
        name = "lossless JPEG" if frame.marker == _LOSSLESS else "JPEG"
        samples = _call("jpeg_decode", data, f"{name} of {frame.precision} bits")
        whole = data[: data.rfind(END_OF_IMAGE)] if END_OF_IMAGE in data else data
        longer = _call("jpeg_decode", whole + _MORE + END_OF_IMAGE, name)
        if not np.array_equal(samples, longer):
            raise CorruptImageError("JPEG: the end is missing, or samples are lost")
    samples = _sized(samples, (frame.width_px, frame.height_px))
    return from_samples(samples, (0.0, 2.0**frame.precision - 1), None, spec)


def _is_deep_png(source: ImageFile.ImageFile) -> bool:
    raw_mode = source.tile[0].args if source.tile else ""
    return isinstance(raw_mode, str) and raw_mode in ("RGB;16B", "RGBA;16B", "LA;16B")


def _max_value(source: ImageFile.ImageFile) -> int:
    arguments = source.tile[0].args
    high = arguments[-1] if isinstance(arguments, tuple) else 0
    return high if isinstance(high, int) else 0


def _decode_jpeg2000(
    source: ImageFile.ImageFile, data: bytes, components: list[Component], spec: DecodeSpec
) -> Pixels:
    """Pillow rounds to 8 bits without a ceiling: white becomes black."""
    bits, is_signed = components[0]
    what = f"JPEG2000 of {len(components)} x {bits} bits"
    is_known = source.mode in ("RGB", "RGBA", "LA") and _SYCC not in data[:4096]
    if not is_known or len(set(components)) > 1 or bits > _MAX_BITS:
        raise UnsupportedImageError(f"{what}, {source.mode}: not read")
    samples = _sized(_call("jpeg2k_decode", data, what), source.size)
    low = -(2.0 ** (bits - 1)) if is_signed else 0.0
    return from_samples(samples, (low, low + 2.0**bits - 1), source.info.get("icc_profile"), spec)


def _read_ppm(data: bytes, offset: int, source: ImageFile.ImageFile) -> npt.NDArray[np.uint16]:
    """Return the samples of a PPM of more than 8 bits, plain or raw."""
    width, height = source.size
    count = 3 * width * height
    if source.tile[0].codec_name == "ppm":
        if len(data) < offset + 2 * count:
            raise CorruptImageError("PNM: samples are missing")
        samples = np.frombuffer(data, ">u2", count, offset).astype(np.uint16)
    else:
        words = _COMMENT.sub(b"", data[offset:]).split()[:count]
        if len(words) < count:
            raise CorruptImageError("PNM: samples are missing")
        samples = np.array([int(word) for word in words], np.uint16)
    return samples.reshape(height, width, 3)


def _sized(samples: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    if samples.shape[:2] != size[::-1]:
        raise CorruptImageError(f"{samples.shape[1]} x {samples.shape[0]} pixels, not {size}")
    return samples.reshape(*samples.shape[:2], -1)


def _call(name: str, data: bytes, what: str) -> npt.NDArray[Any]:
    try:
        codecs: Any = importlib.import_module("imagecodecs")
        decode = getattr(codecs, name)
        samples: npt.NDArray[Any] = decode(data)
    except ImportError as error:  # imagecodecs raises its own kind for a codec that it lacks
        way = "pip install 'imgcls[scientific]' reads it"
        raise UnsupportedImageError(f"{what}: {way}") from error
    except (RuntimeError, ValueError) as error:
        if "not supported" not in str(error):
            raise
        raise UnsupportedImageError(f"{what}: {error}") from error
    return samples
