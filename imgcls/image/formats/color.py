"""Any Pillow mode to RGB or grey 0..255: depth, palette, transparency, CMYK, colour profile.

In: a loaded Pillow image. Out: uint8 [H,W,C]; float32 of a deep grey at depth 16. Invariant: no
sample is clipped by a conversion that does not know its range (Pillow's own turns a 16-bit picture
into white paper).

16-bit colour keeps its high byte; CMYK becomes RGB by (1-C)(1-K), without a profile.
"""

import dataclasses
import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from imgcls.errors import UnsupportedImageError
from imgcls.image.decoded import Pixels
from imgcls.image.facts.source import see_bits
from imgcls.image.formats.gray import (
    bits_of,
    float_range,
    gray_pixels,
    to_uint8,
    type_range,
)
from imgcls.image.spec import DecodeSpec

_DEEP_MODES: Final = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ALPHA_MODES: Final = ("RGBA", "LA", "PA", "RGBa", "La")
_PLAIN_MODES: Final = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_ALPHA_MODES)
# TIFF 6.0, section 8 and page 80.
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 339
_WHITE_IS_ZERO: Final = 0
_SIGNED: Final = 2


def to_color(source: ImageFile.ImageFile, format_name: str, spec: DecodeSpec) -> Pixels:
    """Return a loaded image as [H,W,C] 0..255, as `spec.color` and `spec.depth` say.

    Raises:
        UnsupportedImageError: a colour space without a fixed way to RGB (CIE Lab in TIFF).
    """
    image: Image.Image = source
    if source.mode in _DEEP_MODES:
        return _deep_gray(source, format_name, spec)
    if source.mode == "L" and _is_signed(source):
        image = source.point(lambda value: value ^ 0x80)
    elif source.mode not in _PLAIN_MODES:
        raise UnsupportedImageError(f"{format_name}: colour mode {source.mode} is not read")
    if image.mode in _ALPHA_MODES or ("transparency" in image.info and image is source):
        image = _composite(image, spec.alpha_background)
    return finish(image, source.info.get("icc_profile"), spec)


def finish(
    image: Image.Image, icc_profile: bytes | None, spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Return an 8-bit image of any opaque mode as uint8 [H,W,C]."""
    if spec.icc == "srgb" and icc_profile:
        image = _to_srgb(image, icc_profile)
    mode = "RGB" if spec.color == "rgb" else "L"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], spec.num_channels)


def from_samples(
    samples_HWC: npt.NDArray[np.generic],
    declared: tuple[float, float],
    icc_profile: bytes | None,
    spec: DecodeSpec,
) -> Pixels:
    """Return a grey or a colour, with or without alpha, of any depth as [H,W,C] 0..255.

    One range holds for all channels; alpha keeps the declared one.
    """
    height, width, channels = samples_HWC.shape
    alpha_HW = None
    if channels in (2, 4):
        as_declared = dataclasses.replace(spec, gray_range="declared")
        alpha_HW = to_uint8(np.ascontiguousarray(samples_HWC[:, :, -1]), declared, as_declared)
    if channels <= 2:
        gray_HW = gray_pixels(np.ascontiguousarray(samples_HWC[:, :, 0]), declared, spec)
        return finish_gray(gray_HW, alpha_HW, icc_profile, spec)
    see_bits(bits_of(samples_HWC.dtype, declared))
    colors_HN = np.ascontiguousarray(samples_HWC[:, :, :3]).reshape(height, -1)
    image = Image.fromarray(to_uint8(colors_HN, declared, spec).reshape(height, width, 3))
    if alpha_HW is not None:
        image.putalpha(Image.fromarray(alpha_HW))
        image = _composite(image, spec.alpha_background)
    return finish(image, icc_profile, spec)


def finish_gray(
    gray_HW: Pixels,
    alpha_HW: npt.NDArray[np.uint8] | None,
    icc_profile: bytes | None,
    spec: DecodeSpec,
) -> Pixels:
    """Return a grey 0..255 of either depth as [H,W,C], on the background where there is alpha."""
    if gray_HW.dtype == np.uint8:
        image = Image.fromarray(gray_HW)
        if alpha_HW is not None:
            image = Image.merge("LA", (image, Image.fromarray(alpha_HW)))
            image = _composite(image, spec.alpha_background)
        return finish(image, icc_profile, spec)
    gray_HWC = np.repeat(gray_HW[:, :, np.newaxis], spec.num_channels, axis=2)
    if alpha_HW is not None:
        canvas = Image.new("RGB", (1, 1), spec.alpha_background)
        behind_C = finish(canvas, None, spec)[0, 0].astype(np.float32)
        share_HW1 = alpha_HW[:, :, np.newaxis].astype(np.float32) / 255
        gray_HWC = gray_HWC * share_HW1 + behind_C * (1 - share_HW1)
    return gray_HWC


def _deep_gray(source: ImageFile.ImageFile, format_name: str, spec: DecodeSpec) -> Pixels:
    """Return [H,W,C] of a grey; one sample value may be transparent (PNG tRNS)."""
    values_HW = np.asarray(source)
    values_HW = values_HW.astype(values_HW.dtype.newbyteorder("="), copy=False)
    is_float = values_HW.dtype.kind == "f"
    declared = float_range(values_HW) if is_float else type_range(values_HW.dtype)
    if format_name == "TIFF":
        values_HW, declared = _as_tiff_says(source, values_HW)
    elif format_name == "PNM" and source.mode == "I":  # Pillow has scaled maxval to 65535
        declared = (0.0, 65535.0)
    gray_HW = gray_pixels(values_HW, declared, spec)
    transparent = source.info.get("transparency")
    alpha_HW = None
    if isinstance(transparent, int):
        alpha_HW = np.where(values_HW == transparent, 0, 255).astype(np.uint8)
    return finish_gray(gray_HW, alpha_HW, source.info.get("icc_profile"), spec)


def _as_tiff_says(
    source: ImageFile.ImageFile, values_HW: npt.NDArray[np.generic]
) -> tuple[npt.NDArray[np.generic], tuple[float, float]]:
    """Return the samples in the type that the tags declare, and its range; white may be zero."""
    tags = getattr(source, "tag_v2", {})
    bits = int(tags.get(_BITS_TAG, (16,))[0])
    is_signed = _is_signed(source)
    if values_HW.dtype == np.int32 and bits == 32 and not is_signed:
        values_HW = values_HW.view(np.uint32)  # Pillow has no unsigned 32-bit mode
    if values_HW.dtype.kind == "f":
        declared = float_range(values_HW)
    elif is_signed:
        declared = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    else:
        declared = 0.0, 2.0**bits - 1
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        declared = declared[1], declared[0]
    return values_HW, declared


def _is_signed(source: ImageFile.ImageFile) -> bool:
    """Tell whether a TIFF holds two's complement; Pillow takes it for unsigned in 8 bits."""
    tags = getattr(source, "tag_v2", {})
    return bool(tags.get(_SAMPLE_FORMAT_TAG, (1,))[0] == _SIGNED)


def _composite(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "La":  # Pillow has one way out of it
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert by the embedded profile; one that is malformed or of other channels is ignored."""
    from PIL import ImageCms

    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, embedded, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert converted is not None  # None only where inPlace
    return converted
