"""TIFF as Pillow reads it, where that is wrong or tells too little.

In: the tags of a page. Out: Pillow's image with the right way to its samples. Invariant: a picture
that is only the thumbnail of another one is never taken for the picture.
"""

import ctypes
from typing import Any, Final

from PIL import TiffImagePlugin, TiffTags, _imaging

from imgcls.errors import CorruptImageError, UnsupportedImageError

# TIFF 6.0, its supplement 1 (SubIFDs) and DNG 1.7.
_KIND, _OLD_KIND = 254, 255
_COMPRESSION, _PHOTOMETRIC, _PLANES, _SUB_IFDS = 259, 262, 284, 330
_ORIENTATION, _UPRIGHT = 274, 1
_DNG_VERSION: Final = 50706
_REDUCED, _OLD_REDUCED = 1, 2
_SENSOR_PHOTOMETRICS: Final = (32803, 34892)  # colour filter array, linear raw
_SEPARATE: Final = 2
_FAX_COMPRESSIONS: Final = (2, 3, 4, 32771)
_CR2_START: Final = b"II*\x00\x10\x00\x00\x00CR\x02\x00"  # of Canon
# Libtiff gives samples in the order of this machine; Pillow then takes these for big-endian ones.
_NATIVE_RAW_MODES: Final = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_MODES_OF_ONE_PLANE: Final = ("LA", "La", "PA")
# Where Pillow looks for an orientation beside the tag.
_MAY_HOLD_ORIENTATION: Final = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


_fax_errors: list[bytes] = []


def _note_fax_error(module: bytes | None, words: bytes | None, arguments: int | None) -> None:
    """Take what libtiff would print: of a fax with lost pixels nothing else tells."""
    if module and module.startswith(b"Fax"):
        _fax_errors.append(words or b"")


_handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(
    _note_fax_error
)
# The library that Pillow is linked with, whatever its file is called.
ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(_handler)


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's reader, mended; every page passes through `_setup`."""

    def _setup(self) -> None:
        _refuse_camera_raw(self)
        # Of uncompressed planes Pillow takes a byte or a bit for a sample: it reads each by the
        # first letter of their raw mode. Libtiff knows better.
        is_separate = self.tag_v2.get(_PLANES) == _SEPARATE
        TiffImagePlugin.READ_LIBTIFF = is_separate
        try:
            super()._setup()
        finally:
            TiffImagePlugin.READ_LIBTIFF = False
        if is_separate and self.mode in _MODES_OF_ONE_PLANE:
            raise SyntaxError(f"unknown pixel mode: {self.mode} in separate planes")
        if self.use_load_libtiff:
            [tile] = self.tile
            assert isinstance(tile.args, tuple)
            raw_mode, *more = tile.args
            args = (_NATIVE_RAW_MODES.get(raw_mode, raw_mode), *more)
            self.tile = [tile._replace(args=args)]

    def start(self) -> bytes:
        """Return what stands where the file of a certain camera says so."""
        assert self.fp is not None
        position = self.fp.tell()
        self.fp.seek(0)
        start = self.fp.read(len(_CR2_START))
        self.fp.seek(position)
        return start

    def load(self) -> Any:  # noqa: ANN401 - Pillow's pixel access
        """Load the pixels; CorruptImageError where libtiff only says that a fax lost some."""
        if not self.tile:  # loaded before: Pillow asks again while it turns the picture
            return super().load()
        _fax_errors.clear()
        access = super().load()
        if _fax_errors and self.tag_v2.get(_COMPRESSION) in _FAX_COMPRESSIONS:
            raise CorruptImageError("TIFF: fax data with a bad code word")
        return access

    def load_end(self) -> None:
        """Turn the picture as its tags say.

        Pillow reads all of them once more for that, a fifth of the time of a small picture: only
        where one says so, or points to other tags, whose damage counts.
        """
        if (
            self.tag_v2.get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
            or not self.info.keys().isdisjoint(_MAY_HOLD_ORIENTATION)
            or any(tag in self.tag_v2 for tag in TiffTags.TAGS_V2_GROUPS)
        ):
            super().load_end()

    def seek_picture(self) -> None:
        """Move to the first page that is not a smaller version of another one."""
        if not _is_reduced(self.tag_v2):
            return
        num_pixels = self.width * self.height
        for page in range(1, self.n_frames):
            self.seek(page)
            if not _is_reduced(self.tag_v2) and self.width * self.height > num_pixels:
                return
        self.seek(0)


def _refuse_camera_raw(source: TiffFile) -> None:
    tags = source.tag_v2
    is_raw = (
        _DNG_VERSION in tags
        or tags.get(_PHOTOMETRIC) in _SENSOR_PHOTOMETRICS
        or (_is_reduced(tags) and _SUB_IFDS in tags)
        or source.start() == _CR2_START
    )
    if is_raw:
        raise UnsupportedImageError(
            "TIFF: camera raw (DNG, NEF, ARW, CR2), whose first picture is a preview: convert it"
        )


def _is_reduced(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    kind, old_kind = tags.get(_KIND, 0), tags.get(_OLD_KIND, 0)
    return bool((isinstance(kind, int) and kind & _REDUCED) or old_kind == _OLD_REDUCED)
