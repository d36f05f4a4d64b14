"""JPEG decoding, at full size or at a half, a quarter or an eighth of it.

In: a JPEG whose header Pillow has read. Out: uint8 [H,W,C]. Invariant: an undamaged file gives what
Pillow gives, bit for bit (both are libjpeg-turbo with the accurate DCT and smooth upsampling), in
two thirds of its time; entropy-coded data that libjpeg warns of is damage, where Pillow says
nothing.

Four channels are inks stored inverted, as Pillow and OpenCV read them, whether or not a marker of
Adobe's says so: no standard tells, and the programs that write such files follow Adobe.
"""

import contextlib
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.formats.color import finish
from imgcls.image.formats.raster.jpeg_markers import (
    SCALABLE,
    Frame,
    read_frame,
    without_oddities,
)
from imgcls.image.spec import DecodeSpec

_DIVISORS: Final = (8, 4, 2)
_COLORSPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_NUM_CHANNELS: Final = {"GRAY": 1, "RGB": 3, "CMYK": 4}
# Widths of registers (AVX2; half of that, SSE2), and what is a multiple of neither.
_SIMD_BYTES, _BESIDE_BYTES = 32, 8
# What libjpeg says (jerror.h) of odd but whole files, and of one that may lack its end marker only.
# All else means lost pixels.
_HARMLESS: Final = re.compile(
    r"extraneous bytes before marker|adobe color transform|jfif revision|bad icc marker"
    r"|inconsistent progression|invalid sos parameters|determine subsampling level"
    r"|premature end of jpeg file",
    re.IGNORECASE,
)
# What it still says of some of them once the rest is mended. Extraneous bytes are damage by then:
# a scan ended, by its own count, too soon.
_LEFT_TO_PILLOW: Final = re.compile(
    "inconsistent progression|determine subsampling level", re.IGNORECASE
)
_UNSUPPORTED: Final = re.compile("unsupported jpeg (process|data precision)", re.IGNORECASE)


def scale_by_dct(size: tuple[int, int], wanted: tuple[int, int] | None) -> int:
    """Return by how much to divide width and height: the most that leaves each what is wanted."""
    if wanted is None:
        return 1
    most = min(size[0] / wanted[0], size[1] / wanted[1])
    return next((n for n in _DIVISORS if most >= n), 1)


def decode_jpeg(
    source: ImageFile.ImageFile, data: bytes, frame: Frame, divisor: int, spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Decode the pixels.

    Args:
        source: the file as Pillow opened it; only its header is used.
        data: the whole file.
        frame: its frame header.
        divisor: 1, 2, 4 or 8, of the width and height; only a DCT is scaled.
        spec: the decode spec.

    Returns:
        uint8 [H,W,C].

    Raises:
        CorruptImageError: truncated or damaged.
        UnsupportedImageError: a coding process that libjpeg does not know.
    """
    icc_profile = source.info.get("icc_profile")
    is_converted = spec.icc == "srgb" and icc_profile
    colorspace = _COLORSPACES[source.mode]
    if frame.marker not in SCALABLE:
        divisor = 1
    elif colorspace == "GRAY" and spec.color == "rgb" and not is_converted:
        colorspace = "RGB"  # libjpeg repeats the grey
    try:
        stored_HWC = _decode(data, source.size, colorspace, divisor)
    except _LeftToPillowError:
        return _decode_by_pillow(source, divisor, spec)
    if colorspace == "CMYK":
        stored_HWC = 255 - stored_HWC
    if stored_HWC.shape[2] == spec.num_channels and not is_converted:
        return stored_HWC
    stored = stored_HWC[:, :, 0] if source.mode == "L" else stored_HWC
    return finish(Image.fromarray(stored, source.mode), icc_profile, spec)


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG that some other decoder takes in silence: damaged, by what libjpeg says of it.

    It is decoded at an eighth, which reads all of the entropy-coded data at a third of the price.

    Raises:
        CorruptImageError: truncated or damaged.
    """
    frame = read_frame(data)
    if frame.marker not in SCALABLE or frame.precision != 8 or frame.num_channels not in (1, 3):
        return
    colorspace = "GRAY" if frame.num_channels == 1 else "RGB"
    with contextlib.suppress(_LeftToPillowError):
        _decode(data, (frame.width_px, frame.height_px), colorspace, _DIVISORS[0])


def _decode_by_pillow(
    source: ImageFile.ImageFile, divisor: int, spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    if divisor > 1:
        source.draft(None, (source.width // divisor, source.height // divisor))
    source.load()
    return finish(source, source.info.get("icc_profile"), spec)


class _LeftToPillowError(Exception):
    """An odd file that only Pillow decodes: it continues after warnings."""


def _decode(
    data: bytes, size: tuple[int, int], colorspace: str, divisor: int
) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,C]; what libjpeg warns of is mended where that loses no pixel."""
    try:
        return _decode_strictly(data, size, colorspace, divisor)
    except ValueError as error:
        words = str(error)
    if _HARMLESS.search(words):
        try:
            return _decode_strictly(without_oddities(data), size, colorspace, divisor)
        except ValueError as error:
            words = str(error)
            if _LEFT_TO_PILLOW.search(words):
                raise _LeftToPillowError from error
    kind = UnsupportedImageError if _UNSUPPORTED.search(words) else CorruptImageError
    raise kind(f"JPEG: {words}")


def _decode_strictly(
    data: bytes, size: tuple[int, int], colorspace: str, divisor: int
) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,C]; ValueError at the first warning, with its words."""
    width_px, height_px = -(-size[0] // divisor), -(-size[1] // divisor)
    num_bytes = width_px * height_px * _NUM_CHANNELS[colorspace]
    image_HWC: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        colorspace=colorspace,
        fastdct=False,
        fastupsample=False,
        min_width=width_px if divisor > 1 else 0,
        min_height=height_px if divisor > 1 else 0,
        strict=True,
        buffer=_beside_alignment(num_bytes),
    )
    if image_HWC.shape[:2] != (height_px, width_px):
        found = f"{image_HWC.shape[1]} x {image_HWC.shape[0]}"
        raise CorruptImageError(f"JPEG: {found} pixels, its header says {width_px} x {height_px}")
    return image_HWC


def _beside_alignment(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Return memory in which no row of a common width begins at a multiple of a register.

    To one that does, libjpeg-turbo writes past the cache (movntdq in its jdcolext-*.asm), and the
    resize has to fetch it again.
    """
    memory = np.empty(num_bytes + _SIMD_BYTES + _BESIDE_BYTES, np.uint8)
    start = -memory.ctypes.data % _SIMD_BYTES + _BESIDE_BYTES
    return memory[start : start + num_bytes]
