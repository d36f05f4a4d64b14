"""Which plugin of pydicom decodes which transfer syntax, and what is missing here.

In: a transfer syntax. Out: a decoder with its plugins in order. Invariant: the next plugin is tried
only where one says that it cannot; where it finds damage, the frame is damaged.

Licences: pydicom, pylibjpeg and pylibjpeg-openjpeg MIT; python-gdcm Apache-2.0 by its metadata,
GDCM itself BSD; imagecodecs BSD. pylibjpeg-libjpeg is GPL-3.0 and therefore in no extra.
"""

import codecs
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from imgcls.errors import CorruptImageError, UnsupportedImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder

# In order. Of a lossy one only the first decodes, wherever it is installed, so that a file gives
# the same pixels on every machine; lossless ones agree by definition.
PLUGINS: Final[dict[str, tuple[str, ...]]] = {
    "1.2.840.10008.1.2.5": ("pydicom",),  # RLE Lossless
    "1.2.840.10008.1.2.4.50": ("pillow",),  # JPEG Baseline, 8 bit
    "1.2.840.10008.1.2.4.51": ("imagecodecs", "pylibjpeg"),  # JPEG Extended, 12 bit
    "1.2.840.10008.1.2.4.57": ("gdcm", "imagecodecs", "pylibjpeg"),  # JPEG Lossless, any predictor
    "1.2.840.10008.1.2.4.70": ("gdcm", "imagecodecs", "pylibjpeg"),  # JPEG Lossless, first-order
    "1.2.840.10008.1.2.4.80": ("gdcm", "imagecodecs", "pylibjpeg"),  # JPEG-LS Lossless
    # JPEG-LS Near-Lossless: exact by its standard
    "1.2.840.10008.1.2.4.81": ("gdcm", "imagecodecs", "pylibjpeg"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg",),  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91": ("pylibjpeg",),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # HTJ2K Lossless
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),  # HTJ2K Lossless RPCL
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),  # HTJ2K
}
# Needs no decoder: implicit and explicit little endian, deflated, explicit big endian.
NATIVE: Final = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
# Retired ones are coded as another one is: the JPEG itself says which process it is.
_SAME_AS: Final = {
    "1.2.840.10008.1.2.4.53": "1.2.840.10008.1.2.4.51",  # spectral selection, 12 bit
    "1.2.840.10008.1.2.4.55": "1.2.840.10008.1.2.4.51",  # full progression, 12 bit
}
# Younger than pydicom's list (PS3.6, annex A).
_NAMES: Final = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
_JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
_JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_PACKAGES: Final = {
    "gdcm": "python-gdcm",
    "pylibjpeg": "pylibjpeg pylibjpeg-openjpeg",
    "imagecodecs": "'imgcls[scientific]'",
}
# How a plugin says that a frame is beyond it; all else that it says means damage.
_CANNOT: Final = re.compile(
    r"does not support|unable to decode (un)?signed|unable to decode rle encoded pixel data with"
    r"|cannot decode .* correctly|only .* supported",
    re.IGNORECASE,
)
_OUR_PLUGIN: Final = "imagecodecs"
_OUR_FUNCTION: Final = ("imgcls.image.formats.dicom.imagecodecs_plugin", "decode_frame")


def find_decoder(dataset: "Dataset") -> "tuple[Decoder, tuple[str, ...]]":
    """Return pydicom's decoder for the transfer syntax, and the plugins for it that are here.

    Raises:
        UnsupportedImageError: no such syntax, or its package is not installed: named.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    uid = dataset.file_meta.get("TransferSyntaxUID")
    if uid is None:
        raise CorruptImageError("DICOM: no transfer syntax in the file meta information")
    if uid in _SAME_AS:  # pydicom compares the header with the decoder
        dataset.file_meta.TransferSyntaxUID = uid = UID(_SAME_AS[uid])
    if uid in NATIVE:
        return get_decoder(uid), ("",)
    if uid not in PLUGINS:
        raise UnsupportedImageError(
            f"DICOM: transfer syntax {_name(uid)} is not read: export it as another one"
        )
    decoder = _decoder(uid)
    is_8_bit = dataset.get("BitsAllocated") == 8
    wanted = PLUGINS[_JPEG_BASELINE if uid == _JPEG_EXTENDED and is_8_bit else uid]
    found = tuple(plugin for plugin in wanted if plugin in decoder.available_plugins)
    if not found:
        raise UnsupportedImageError(f"DICOM: {uid.name}: pip install {_package(uid)} decodes it")
    return decoder, found


def decode_stored(
    dataset: "Dataset",
    decoder: "Decoder",
    plugins: tuple[str, ...],
    index: int,
    **options: Any,  # noqa: ANN401 - of pydicom
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Return the stored samples of one frame and what pydicom says of them.

    Raises:
        UnsupportedImageError: every plugin here says that it cannot; another one is named.
    """
    for plugin in plugins:
        try:
            stored: tuple[npt.NDArray[Any], dict[str, Any]] = decoder.as_array(
                dataset, index=index, decoding_plugin=plugin, **options
            )
        except RuntimeError as error:
            if not _CANNOT.search(str(error)):
                raise
        else:
            return stored
    missing = [name for name in PLUGINS[decoder.UID] if name not in decoder.available_plugins]
    way = f": pip install {_PACKAGES.get(missing[0], missing[0])} may decode it" if missing else ""
    raise UnsupportedImageError(
        f"DICOM: {decoder.UID.name} of {dataset.get('SamplesPerPixel')} x "
        f"{dataset.get('BitsStored')} bits: not decoded by {', '.join(plugins)}{way}"
    )


def load_plugins() -> None:
    """Import pydicom with all its plugins, for a process that can open no file later."""
    try:
        import pydicom.charset
        import pydicom.pixels.processing
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import UID
    except ImportError:
        return
    for uid in NATIVE:
        get_decoder(UID(uid))
    for uid in PLUGINS:
        _decoder(UID(uid))
    for encoding in pydicom.charset.python_encoding.values():
        with contextlib.suppress(LookupError):
            codecs.lookup(encoding)


def plugins_here() -> dict[str, str]:
    """Return for each transfer syntax, by name, its plugin here, or how to get one."""
    with contextlib.suppress(ImportError):
        from pydicom.uid import UID

        found = {str(UID(uid).name): "pydicom" for uid in NATIVE}
        for uid, plugins in PLUGINS.items():
            available = _decoder(UID(uid)).available_plugins
            usable = next((plugin for plugin in plugins if plugin in available), None)
            found[str(UID(uid).name)] = usable or f"missing: pip install {_package(uid)}"
        return found
    return {}


def _decoder(uid: Any) -> "Decoder":  # noqa: ANN401 - a UID of pydicom
    """Return pydicom's decoder, our plugin added to it."""
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(uid)
    if _OUR_PLUGIN in PLUGINS[uid] and _OUR_PLUGIN not in decoder.available_plugins:
        with contextlib.suppress(ValueError):  # it is there, but imagecodecs is not
            decoder.add_plugin(_OUR_PLUGIN, _OUR_FUNCTION)
    return decoder


def _name(uid: Any) -> str:  # noqa: ANN401 - a UID of pydicom
    if uid in _NAMES:
        return f"{_NAMES[uid]} ({uid})"
    return str(uid.name) if uid.name != uid else "of an unknown UID"


def _package(uid: str) -> str:
    """Name what to install for a transfer syntax that has no decoder here."""
    return _PACKAGES.get(PLUGINS[uid][0], PLUGINS[uid][0])
