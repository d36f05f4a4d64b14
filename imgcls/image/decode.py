"""Encoded bytes to uint8 pixels, by one decode spec.

In: bytes of any file. Out: one image per frame that the spec asks for. Invariant: whatever the
bytes, the result is images or a DecodeError, whose type is the row's status.
"""

from collections.abc import Callable, Iterator

from imgcls.errors import CorruptImageError, DecodeError, ImageTooLargeError
from imgcls.image.decoded import DecodedImage, WantedSize, ignore_frame
from imgcls.image.formats.dicom.decode import decode_dicom
from imgcls.image.formats.raster.decode import decode_raster
from imgcls.image.formats.sniff import sniff
from imgcls.image.spec import DecodeSpec

__all__ = ["DecodedImage", "decode"]

_MAX_REASON_CHARS = 160


def decode(
    data: bytes, spec: DecodeSpec, *, wanted_size: WantedSize | None = None
) -> list[DecodedImage]:
    """Decode one file.

    Args:
        data: the whole file; its format is told by content.
        spec: how to turn it into pixels.
        wanted_size: of a width and height as displayed, those that are enough: a JPEG may be
            decoded at 1/2, 1/4 or 1/8 as long as neither side gets less; None: at full size.

    Returns:
        One image per frame that `spec.frames` asks for, at least one.

    Raises:
        NotAnImageError: by its content something else than an image.
        UnsupportedImageError: of a format or variant that we do not read, or of none known.
        CorruptImageError: begins like an image and does not decode.
        ImageTooLargeError: beyond `spec.max_pixels` or `spec.max_frames`, or the memory of this
        process.
    """
    return list(iter_images(data, spec, wanted_size))


def iter_images(
    data: bytes,
    spec: DecodeSpec,
    wanted_size: WantedSize | None = None,
    begin_frame: Callable[[int], None] = ignore_frame,
) -> Iterator[DecodedImage]:
    """Yield the frames that `decode` lists, each decoded when it is asked for.

    `begin_frame` takes the index of each frame of a multi-frame file before it is decoded.

    Raises:
        DecodeError: as `decode`.
    """
    name = sniff(data)
    try:
        if name == "DICOM":
            yield from decode_dicom(data, spec, begin_frame)
        else:
            yield from decode_raster(data, name, spec, wanted_size, begin_frame)
    except DecodeError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError(f"{name}: needs more memory than a decoder may use") from error
    except Exception as error:
        # Decoders raise anything on hostile bytes: it is this image's failure, whatever it is. What
        # pydicom says may quote a patient's name.
        words = " ".join(str(error).split())[:_MAX_REASON_CHARS] if name != "DICOM" else ""
        raise CorruptImageError(f"{name}: {words or type(error).__name__}") from error
