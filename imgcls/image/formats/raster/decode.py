"""Every format but DICOM: frames, sizes, orientation.

In: encoded bytes whose format is known. Out: upright images. Invariant: the size in the
header is checked before a pixel is decoded; only the one Pillow plugin of the format runs.
"""

import contextlib
import importlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from imgcls.errors import ImageTooLargeError, UnsupportedImageError
from imgcls.image.decoded import DecodedImage, Pixels, WantedSize
from imgcls.image.facts.source import see_bits
from imgcls.image.formats.color import to_color
from imgcls.image.formats.headers import check_png_is_complete, checked_png, webp_size
from imgcls.image.formats.raster.all_bits import decode_all_bits, decode_deep_jpeg
from imgcls.image.formats.raster.bmp import decode_bit_fields
from imgcls.image.formats.raster.jpeg import decode_jpeg, scale_by_dct
from imgcls.image.formats.raster.jpeg_markers import JPEG_LS, read_frame
from imgcls.image.formats.raster.scientific import load_codecs, read_pages
from imgcls.image.formats.raster.strips import can_be_cut, cut_in_bands, stored_size
from imgcls.image.formats.raster.tiff_tags import TiffTags
from imgcls.image.spec import DecodeSpec

# Imported when its format first turns up: all of them would cost each decoder 50 ms at its start.
_PLUGINS: Final[dict[str, tuple[str, str]]] = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pi_heif.as_plugin", "HeifImageFile"),
    "TIFF": ("imgcls.image.formats.raster.tiff", "TiffFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "PNM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
}
_EXTRAS: Final = {"HEIF": "imgcls[heif]"}
# What Pillow says of a variant that it does not know; anything else it says means damage.
_UNKNOWN_VARIANT: Final = (
    "cannot handle",
    "unknown pixel mode",
    "unsupported bmp",
    "not available",
    "support not installed",
    "has not been built in",
    "unsupported feature",
)
_UNKNOWN_SAMPLES: Final = "unknown pixel mode"
_NOT_IDENTIFIED: Final = "not identified by this driver"  # by HEIF: an item of uncompressed pixels
_SIZE_REFUSED: Final = "security limit exceeded: image size"
_UNKNOWN_MASKS: Final = "BMP bitfields layout"
_LIBRARY_ERRORS: Final = (
    *(Image.DecompressionBombError, SyntaxError, OSError, ValueError, RuntimeError),
)
_PNG_BITS_AT: Final = 24  # in IHDR, which is first (RFC 2083, 4.1.1)
_ORIENTATION_TAG: Final = 0x0112
_SWAPS_SIDES: Final = (5, 6, 7, 8)


def decode_raster(
    data: bytes,
    format_name: str,
    spec: DecodeSpec,
    wanted_size: WantedSize | None,
    begin_frame: Callable[[int], None],
) -> Iterator[DecodedImage]:
    """Decode a file of a known format other than DICOM, frame by frame.

    Raises:
        DecodeError: what is decided here. Other exceptions, Pillow's own, pass: they mean corrupt.
    """
    if format_name == "JPEG":
        yield _decode_jpeg_file(data, spec, wanted_size)
        return
    if format_name == "WEBP":
        _check_size(*webp_size(data), spec)  # opening already allocates the canvas
    if format_name == "PNG":
        data = checked_png(data, spec)
        see_bits(data[_PNG_BITS_AT])
    if format_name == "TIFF" and _is_beyond_pillow(TiffTags.of(data), spec):
        yield from _decode_by_tifffile(data, spec, begin_frame)
        return
    try:
        source = open_raster(data, format_name)
    except UnsupportedImageError as error:
        if format_name == "TIFF" and _UNKNOWN_SAMPLES in str(error):
            yield from _decode_by_tifffile(data, spec, begin_frame)
        elif format_name == "BMP" and _UNKNOWN_MASKS in str(error):
            image_HWC = decode_bit_fields(data, spec)
            yield DecodedImage(image_HWC, image_HWC.shape[1], image_HWC.shape[0])
        else:
            raise
        return
    for frame in _seek_frames(source, spec, begin_frame):
        yield _decode_frame(source, data, format_name, spec, frame)


def _decode_jpeg_file(
    data: bytes, spec: DecodeSpec, wanted_size: WantedSize | None
) -> DecodedImage:
    header = read_frame(data)
    if header.marker == JPEG_LS or header.precision > 8:  # beyond Pillow
        image_HWC = decode_deep_jpeg(data, header, spec)
        return DecodedImage(image_HWC, header.width_px, header.height_px)
    source = open_raster(data, "JPEG")
    size = source.size  # Pillow makes it that of the pixels, where it scales them
    _check_size(*size, spec)
    orientation = exif_orientation(source)
    swaps_sides = orientation in _SWAPS_SIDES
    wanted = wanted_size(*_swapped(size, swaps_sides)) if wanted_size else None
    divisor = scale_by_dct(size, _swapped(wanted, swaps_sides) if wanted else None)
    image_HWC = decode_jpeg(source, data, header, divisor, spec)
    return _turned(image_HWC, size, orientation)


def _swapped(size: tuple[int, int], swaps_sides: bool) -> tuple[int, int]:
    return size[::-1] if swaps_sides else size


def _is_beyond_pillow(tags: TiffTags, spec: DecodeSpec) -> bool:
    see_bits(tags.bits)
    if tags.has_unread_compression:
        raise UnsupportedImageError(f"TIFF: {tags.words()} is not read")
    return tags.needs_tifffile(spec)


def _decode_by_tifffile(
    data: bytes, spec: DecodeSpec, begin_frame: Callable[[int], None]
) -> Iterator[DecodedImage]:
    for page in read_pages(data, spec, begin_frame):
        image_HWC = _upright(page.image_HWC, page.orientation)
        height_px, width_px, _ = image_HWC.shape
        yield DecodedImage(image_HWC, width_px, height_px, page.frame)


def load_plugins() -> None:
    """Import what any format may need, for a process that can open no file later."""
    importlib.import_module("PIL.ImageCms")
    load_codecs()
    for module_name, _ in _PLUGINS.values():
        with contextlib.suppress(ImportError):  # of an extra
            importlib.import_module(module_name)


def open_raster(data: bytes, format_name: str) -> ImageFile.ImageFile:
    """Let the plugin read the header. Its class is called directly: Image.open would try others."""
    module_name, class_name = _PLUGINS[format_name]
    try:
        module: Any = importlib.import_module(module_name)
    except ImportError as error:
        extra = _EXTRAS[format_name]
        raise UnsupportedImageError(f"{format_name}: pip install '{extra}' reads it") from error
    # A thread per core in every decoder process would pass its limit on address space.
    if format_name == "AVIF":
        module.DEFAULT_MAX_THREADS = 1
    if format_name == "HEIF":
        module.options.DECODE_THREADS = 0
    try:
        source: ImageFile.ImageFile = getattr(module, class_name)(io.BytesIO(data))
    except _LIBRARY_ERRORS as error:
        _raise_if_told(error, format_name)
        raise
    return source


def _raise_if_told(error: Exception, format_name: str) -> None:
    """Raise what a library's words say: an unknown variant, or a size; else they mean damage."""
    words = str(error).lower()
    is_unknown = any(unknown in words for unknown in _UNKNOWN_VARIANT)
    # The words are libheif's, of a header within a header.
    if isinstance(error, Image.DecompressionBombError) or _SIZE_REFUSED in words:
        raise ImageTooLargeError(f"{format_name}: {error}") from error
    if is_unknown or (format_name == "HEIF" and _NOT_IDENTIFIED in words):
        raise UnsupportedImageError(f"{format_name}: {error}") from error


def _seek_frames(
    source: ImageFile.ImageFile, spec: DecodeSpec, begin_frame: Callable[[int], None]
) -> Iterator[int | None]:
    """Move `source` from one wanted frame to the next, giving its index, None in a single image."""
    num_frames = getattr(source, "n_frames", 1) if spec.frames != "first" else 1
    if num_frames == 1:
        if spec.frames == "first" and hasattr(source, "seek_picture"):  # a TIFF
            source.seek_picture()
        yield None
        return
    for frame in spec.frames_of(num_frames):
        begin_frame(frame)
        source.seek(frame)
        yield frame


def _decode_frame(
    source: ImageFile.ImageFile,
    data: bytes,
    format_name: str,
    spec: DecodeSpec,
    frame: int | None,
) -> DecodedImage:
    size = source.size
    if isinstance(source, TiffImageFile) and size[0] * size[1] > spec.max_pixels:
        return _decode_in_bands(source, data, spec, frame)
    _check_size(*size, spec)
    image_HWC = decode_all_bits(source, data, format_name, spec)
    if image_HWC is None:
        try:
            source.load()
        except _LIBRARY_ERRORS as error:
            _raise_if_told(error, format_name)
            raise
        image_HWC = to_color(source, format_name, spec)
    if format_name == "PNG":
        source.load()  # where it is not yet: Pillow tells of damage
        check_png_is_complete(source, data)
    # Not before the pixels: to find the tag, Pillow loads a PNG and keeps its failure to itself.
    orientation = 1 if format_name == "TIFF" else exif_orientation(source)
    if format_name in ("TIFF", "HEIF"):  # already turned
        size = source.size
    return _turned(image_HWC, size, orientation, frame)


def _decode_in_bands(
    source: TiffImageFile, data: bytes, spec: DecodeSpec, frame: int | None
) -> DecodedImage:
    """Decode a TIFF of more than `max_pixels`, in the memory that so many may take."""
    if not can_be_cut(source, spec):
        _check_size(*source.size, spec)
    width_px, height_px = stored_size(source)
    image_HWC: Pixels | None = None
    for row, band in cut_in_bands(source, data, spec):
        part_HWC = _decode_frame(open_raster(band, "TIFF"), band, "TIFF", spec, None).image_HWC
        if image_HWC is None:
            image_HWC = np.empty((height_px, *part_HWC.shape[1:]), part_HWC.dtype)
        image_HWC[row : row + len(part_HWC)] = part_HWC
    assert image_HWC is not None, "a page has rows"
    orientation = source.tag_v2.get(_ORIENTATION_TAG, 1)
    return _turned(image_HWC, (width_px, height_px), orientation, frame)


def _turned(
    image_HWC: Pixels,
    size: tuple[int, int],
    orientation: int,
    frame: int | None = None,
) -> DecodedImage:
    """Return an image as displayed; `size` is the stored one, before any DCT scaling."""
    width_px, height_px = size
    if orientation in _SWAPS_SIDES:
        width_px, height_px = height_px, width_px
    return DecodedImage(_upright(image_HWC, orientation), width_px, height_px, frame)


def _check_size(width_px: int, height_px: int, spec: DecodeSpec) -> None:
    spec.refuse_size(width_px, height_px)


def exif_orientation(source: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 where there is none or its tags are malformed."""
    if not source.info.get("exif") and source.format != "PNG":
        return 1
    try:
        return int(source.getexif().get(_ORIENTATION_TAG, 1))
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, OverflowError, struct.error):
        return 1


def _upright(image_HWC: Pixels, orientation: int) -> Pixels:
    """Turn the stored image as EXIF 2.32, table 6, says; values beyond 1..8 mean nothing."""
    match orientation:
        case 2:
            turned = image_HWC[:, ::-1]
        case 3:
            turned = image_HWC[::-1, ::-1]
        case 4:
            turned = image_HWC[::-1]
        case 5:
            turned = image_HWC.swapaxes(0, 1)
        case 6:
            turned = image_HWC[::-1].swapaxes(0, 1)
        case 7:
            turned = image_HWC[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = image_HWC[:, ::-1].swapaxes(0, 1)
        case _:
            return image_HWC
    return np.ascontiguousarray(turned)
