"""JPEG decoding, at full size or at a half, a quarter or an eighth of it.

In: a JPEG whose header Pillow has read. Out: uint8 [H,W,C]. Invariant: an undamaged file gives what
Pillow gives, bit for bit (both are libjpeg-turbo with the accurate DCT and smooth upsampling), in
two thirds of its time; entropy-coded data that libjpeg warns of is damage, where Pillow says
nothing.
"""

import re
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageChops, ImageFile

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.color import finish
from imgcls.image.spec import DecodeSpec

_DIVISORS: Final = (8, 4, 2)
_COLORSPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
# What libjpeg says (jerror.h) of odd but whole files: Pillow decodes them. All else means lost
# pixels; so do extraneous bytes before the end marker: the scan ended, by its own count, too soon.
_LEFT_TO_PILLOW: Final = re.compile(
    r"extraneous bytes before marker 0x(?!d9)|adobe color transform|jfif revision|bad icc marker"
    r"|inconsistent progression|invalid sos parameters|determine subsampling level",
    re.IGNORECASE,
)
_UNSUPPORTED: Final = re.compile("unsupported jpeg (process|data precision)", re.IGNORECASE)


def scale_by_dct(size: tuple[int, int], min_short_px: int | None) -> int:
    """Return by how much to divide the size: the most that leaves the short side `min_short_px`."""
    if min_short_px is None:
        return 1
    return next((n for n in _DIVISORS if min(size) >= n * min_short_px), 1)


def decode_jpeg(
    source: ImageFile.ImageFile, data: bytes, divisor: int, spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Decode the pixels.

    Args:
        source: the file as Pillow opened it; only its header is used.
        data: the whole file.
        divisor: 1, 2, 4 or 8, of the width and height.
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
    if colorspace == "GRAY" and spec.color == "rgb" and not is_converted:
        colorspace = "RGB"  # libjpeg repeats the grey
    try:
        stored_HWC = _decode(data, source.size, colorspace, divisor)
    except ValueError as error:
        if _LEFT_TO_PILLOW.search(str(error)):
            return _decode_by_pillow(source, divisor, spec)
        kind = UnsupportedImageError if _UNSUPPORTED.search(str(error)) else CorruptImageError
        raise kind(f"JPEG: {error}") from error
    if colorspace == "CMYK" and "adobe" in source.info:  # Adobe stores ink inverted
        stored_HWC = 255 - stored_HWC
    if stored_HWC.shape[2] == spec.num_channels and not is_converted:
        return stored_HWC
    stored = stored_HWC[:, :, 0] if source.mode == "L" else stored_HWC
    return finish(Image.fromarray(stored, source.mode), icc_profile, spec)


def _decode_by_pillow(
    source: ImageFile.ImageFile, divisor: int, spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    if divisor > 1:
        source.draft(None, (source.width // divisor, source.height // divisor))
    source.load()
    image: Image.Image = source
    if source.mode == "CMYK" and "adobe" not in source.info:
        image = ImageChops.invert(source)  # Pillow inverts always
    return finish(image, source.info.get("icc_profile"), spec)


def _decode(
    data: bytes, size: tuple[int, int], colorspace: str, divisor: int
) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,C]; ValueError at the first warning, with its words."""
    image_HWC: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        colorspace=colorspace,
        fastdct=False,
        fastupsample=False,
        min_width=-(-size[0] // divisor) if divisor > 1 else 0,
        min_height=-(-size[1] // divisor) if divisor > 1 else 0,
        strict=True,
    )
    return image_HWC
