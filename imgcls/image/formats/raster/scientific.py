"""TIFF beyond Pillow, by tifffile and imagecodecs (the extra `scientific`).

In: a TIFF that Pillow cannot decode. Out: uint8 images as they are stored, with how to turn them.
Invariant: the same rules hold as for Pillow's: deep greys by the range of the spec, transparency on
its background, and no pixel that no byte of the file stands for.
"""

import dataclasses
import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from imgcls.errors import CorruptImageError, UnsupportedImageError
from imgcls.image.decoded import Pixels
from imgcls.image.facts.source import see_bits
from imgcls.image.formats.color import finish, finish_gray
from imgcls.image.formats.gray import float_range, gray_pixels, to_uint8
from imgcls.image.formats.raster.tiff_tags import TiffTags
from imgcls.image.spec import DecodeSpec

if TYPE_CHECKING:
    from tifffile import TiffPage

# The codecs that a TIFF may name; tifffile imports each at its first use.
_CODECS: Final = (
    "deflate", "zlib", "lzw", "lzma", "zstd", "packbits", "packints", "delta", "xor", "floatpred",
    "bitorder", "byteshuffle", "jpeg", "jpeg8", "jpeg2k", "jpegxl", "jpegxr", "lerc", "png", "webp",
    "ljpeg", "pixarlog", "ccittrle", "ccittfax3", "ccittfax4", "eer", "float24", "bfloat16",
)  # fmt: skip
_PHOTOMETRIC_TAG: Final = 262
_PHOTOMETRICS: Final = {0: "gray", 1: "gray", 2: "rgb", 3: "palette", 5: "cmyk"}
_NUM_COLORS: Final = {"gray": 1, "rgb": 3, "palette": 1, "cmyk": 4, "ycbcr": 3}
_PILLOW_MODES: Final = {"cmyk": "CMYK", "ycbcr": "YCbCr"}
_YCBCR: Final = 6
_UNASSOCIATED, _ASSOCIATED = 2, 1
_NO_COMPRESSION, _APERIO_YCBCR = 1, 33003
_ORIENTATION, _ICC_PROFILE = 274, 34675


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One page as it is stored."""

    image_HWC: Pixels
    """[H,W,C] 0..255, in the channels of the spec, not yet turned."""
    orientation: int
    """As EXIF numbers it, 1 for upright."""
    frame: int | None
    """Its index where the spec takes the middle or all of several."""


def load_codecs() -> None:
    """Import every codec that is installed, for a process that can open no file later."""
    try:
        imagecodecs: Any = importlib.import_module("imagecodecs")
        importlib.import_module("tifffile")
    except ImportError:
        return
    for name in _CODECS:
        for direction in ("decode", "encode"):
            getattr(imagecodecs, f"{name}_{direction}", None)
        getattr(getattr(imagecodecs, name.upper(), None), "available", None)


def read_pages(data: bytes, spec: DecodeSpec, begin_frame: Callable[[int], None]) -> Iterator[Page]:
    """Yield the pages that `spec.frames` asks for.

    Raises:
        UnsupportedImageError: samples without a fixed way to RGB; or the extra is not installed.
            The message names bits, sample format and compression.
        ImageTooLargeError: beyond `spec.max_pixels` or `spec.max_frames`.
        CorruptImageError: strips or tiles that lie beyond the end of the file, or are missing.
    """
    tags = TiffTags.of(data)
    try:
        tifffile: Any = importlib.import_module("tifffile")
        codecs: Any = importlib.import_module("imagecodecs")
    except ImportError as error:
        way = "pip install 'imgcls[scientific]' reads it"
        raise UnsupportedImageError(f"TIFF: {tags.words()}: {way}") from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for frame in _wanted(file, spec):
            if frame is not None:
                begin_frame(frame)
            page = file.pages[frame] if frame is not None else _picture(file, spec)
            try:
                yield Page(_decode(page, len(data), spec), _orientation(page), frame)
            except (NotImplementedError, codecs.DelayedImportError, _UnknownSamplesError) as error:
                raise UnsupportedImageError(f"TIFF: {tags.words()} is not read") from error


class _UnknownSamplesError(Exception):
    """Samples without a fixed way to RGB."""


def _wanted(file: Any, spec: DecodeSpec) -> Iterator[int | None]:  # noqa: ANN401 - a TiffFile
    num_frames = len(file.pages) if spec.frames != "first" else 1
    if num_frames == 1:
        yield None
        return
    yield from spec.frames_of(num_frames)


def _picture(file: Any, spec: DecodeSpec) -> "TiffPage":  # noqa: ANN401 - a TiffFile
    """Return the first page, or where that is a smaller version of another one, that other."""
    first: TiffPage = file.pages[0]
    if spec.frames != "first" or not first.is_reduced:
        return first
    whole = (page for page in file.pages if not page.is_reduced)
    return next((page for page in whole if page.imagewidth > first.imagewidth), first)


def _decode(page: Any, num_bytes: int, spec: DecodeSpec) -> Pixels:  # noqa: ANN401 - a TiffPage
    width, height = int(page.imagewidth), int(page.imagelength)
    spec.refuse_size(width, height, max(1, int(page.imagedepth)))
    if page.imagedepth != 1:
        raise _UnknownSamplesError
    _check_is_complete(page, num_bytes)
    if _PHOTOMETRIC_TAG not in page.tags:  # tifffile takes it for "white is zero"
        raise _UnknownSamplesError
    photometric = int(page.photometric)
    kind = _PHOTOMETRICS.get(photometric)
    if page.compression == _APERIO_YCBCR:
        kind = "ycbcr"
    elif photometric == _YCBCR and page.compression != _NO_COMPRESSION:
        kind = "rgb"  # the codec has turned it
    if kind is None or page.dtype is None or page.dtype.kind not in "uifb":
        raise _UnknownSamplesError
    samples = page.asarray(maxworkers=1)
    if samples.shape == (page.samplesperpixel, height, width) and page.samplesperpixel > 1:
        samples = np.moveaxis(samples, 0, -1)  # separate planes
    samples_HWS = samples.reshape(height, width, -1)
    if samples_HWS.shape[2] < _NUM_COLORS[kind]:
        raise _UnknownSamplesError
    return _to_color(page, kind, samples_HWS, spec)


def _check_is_complete(page: Any, num_bytes: int) -> None:  # noqa: ANN401 - a TiffPage
    """Refuse what tifffile would leave blank: a strip or tile that is missing or cut."""
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if start <= 0 or length <= 0 or start + length > num_bytes:
            raise CorruptImageError("TIFF: a strip or tile is missing or cut")
    if page.compression == _NO_COMPRESSION and not page.is_tiled:
        bits_of_row = page.imagewidth * page.bitspersample
        planes = page.samplesperpixel
        needed = -(-bits_of_row * planes // 8) * page.imagelength
        if sum(page.databytecounts) < needed - planes * page.imagelength:
            raise CorruptImageError("TIFF: rows are missing")


def _to_color(
    page: Any,  # noqa: ANN401 - a TiffPage
    kind: str,
    samples_HWS: npt.NDArray[Any],
    spec: DecodeSpec,
) -> Pixels:
    num_colors = _NUM_COLORS[kind]
    declared = _declared(samples_HWS[:, :, :num_colors], int(page.bitspersample))
    if kind == "palette":
        table = np.asarray(page.colormap)
        index_HW = samples_HWS[:, :, 0].astype(np.int64)
        if table is None or index_HW.max(initial=0) >= table.shape[1]:
            raise CorruptImageError("TIFF: colours beyond the palette")
        colors = Image.fromarray((table.T[index_HW] >> 8).astype(np.uint8))
        return finish(colors, _profile(page), spec)
    if int(page.photometric) == 0:  # white is zero
        declared = declared[1], declared[0]
    bits, profile = int(page.bitspersample), _profile(page)
    alpha_HW, is_premultiplied = _alpha(page, samples_HWS, num_colors, declared, spec)
    if kind == "gray" and not is_premultiplied:
        gray_HW = _plain(samples_HWS[:, :, 0])
        if samples_HWS.dtype.itemsize == 1:
            gray_HW = _scale(samples_HWS[:, :, :1], declared, spec)[:, :, 0]
        else:
            gray_HW = gray_pixels(gray_HW, declared, spec, bits=bits)
        return finish_gray(gray_HW, alpha_HW, profile, spec)
    see_bits(bits)
    colors_HWC = _scale(samples_HWS[:, :, :num_colors], declared, spec)
    if kind in _PILLOW_MODES:
        image = Image.fromarray(colors_HWC, _PILLOW_MODES[kind])
        return finish(image.convert("RGB") if kind == "ycbcr" else image, profile, spec)
    image = Image.fromarray(colors_HWC[:, :, 0] if num_colors == 1 else colors_HWC)
    if alpha_HW is not None:
        image = _on_background(image, alpha_HW, is_premultiplied, spec)
    return finish(image, profile, spec)


def _alpha(
    page: Any,  # noqa: ANN401 - a TiffPage
    samples_HWS: npt.NDArray[Any],
    num_colors: int,
    declared: tuple[float, float],
    spec: DecodeSpec,
) -> tuple[npt.NDArray[np.uint8] | None, bool]:
    """Return the opacity, None where there is none, and whether the colours are times it."""
    extras = tuple(int(extra) for extra in page.extrasamples)
    if not extras or extras[0] not in (_UNASSOCIATED, _ASSOCIATED):
        return None, False
    plain = dataclasses.replace(spec, gray_range="declared")
    alpha_HW1 = samples_HWS[:, :, num_colors : num_colors + 1]
    opaque = (0.0, 1.0) if alpha_HW1.dtype.kind == "f" else declared
    return _scale(alpha_HW1, opaque, plain)[:, :, 0], extras[0] == _ASSOCIATED


def _plain(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return samples one after the other, in a type that arithmetic has no special case for."""
    plain = np.ascontiguousarray(samples)
    if plain.dtype == np.bool_:
        return plain.view(np.uint8)
    return plain.astype(np.float32) if plain.dtype == np.float16 else plain


def _scale(
    samples_HWC: npt.NDArray[Any], declared: tuple[float, float], spec: DecodeSpec
) -> npt.NDArray[np.uint8]:
    """Map samples to 0..255, by one range for all channels; up to 8 bits by their own."""
    if samples_HWC.dtype == np.uint8 and declared == (0.0, 255.0):
        return np.ascontiguousarray(samples_HWC)
    if samples_HWC.dtype.itemsize == 1:
        spec = dataclasses.replace(spec, gray_range="declared")
    height, width, num_channels = samples_HWC.shape
    flat = _plain(samples_HWC).reshape(height, width * num_channels)
    return to_uint8(flat, declared, spec).reshape(samples_HWC.shape)


def _declared(samples_HWC: npt.NDArray[Any], bits: int) -> tuple[float, float]:
    if samples_HWC.dtype.kind == "f":
        return float_range(samples_HWC)
    if samples_HWC.dtype.kind == "i":
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _on_background(
    image: Image.Image, alpha_HW: npt.NDArray[np.uint8], is_premultiplied: bool, spec: DecodeSpec
) -> Image.Image:
    canvas = Image.new("RGB", image.size, spec.alpha_background)
    alpha = Image.fromarray(alpha_HW)
    color = image.convert("RGB")
    if is_premultiplied:
        opacity_HW1 = alpha_HW[:, :, np.newaxis].astype(np.uint32)
        under = np.asarray(canvas).astype(np.uint32) * (255 - opacity_HW1)
        total = np.asarray(color).astype(np.uint32) + (under + 127) // 255
        return Image.fromarray(np.minimum(total, 255).astype(np.uint8))
    canvas.paste(color, mask=alpha)
    return canvas


def _profile(page: Any) -> bytes | None:  # noqa: ANN401 - a TiffPage
    tag = page.tags.get(_ICC_PROFILE)
    return bytes(tag.value) if tag is not None else None


def _orientation(page: Any) -> int:  # noqa: ANN401 - a TiffPage
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1
