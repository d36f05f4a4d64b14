"""What this machine can decode, and by which versions, for `imgcls doctor`.

In: nothing. Out: a JSON-able report. Invariant: nothing is claimed that was not tried: each format
is encoded and decoded once in this process.
"""

import base64
import io
from importlib import metadata
from typing import Any, Final

from PIL import Image, features

from imgcls.errors import DecodeError
from imgcls.image.decode import decode
from imgcls.image.decoders.memory import memory_limits, num_cpus_here, pool_memory_bytes
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.formats.dicom.plugins import plugins_here
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.image.versions import DECODER_VERSIONS

# Our format, Pillow's writer of it, and the library behind it as Pillow's `features` names it.
_FORMATS: Final = (
    ("JPEG", "JPEG", "libjpeg_turbo"),
    ("PNG", "PNG", "zlib"),
    ("WEBP", "WEBP", "webp"),
    ("AVIF", "AVIF", "avif"),
    ("TIFF", "TIFF", "libtiff"),
    ("BMP", "BMP", ""),
    ("GIF", "GIF", ""),
    ("PNM", "PPM", ""),
    ("JPEG2000", "JPEG2000", "jpg_2000"),
)
# pi-heif writes none: a picture of 16 x 16 pixels, in base 85.
_HEIC: Final = base64.b85decode(
    b"0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004eZDn*}000000000XXk=`10000000000aA{+700000000000000000"
    b"000B57=IV*mgE07O6l0RRC200001pa1~?00000001%o001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|"
    b"zbZr0t000010002|X>f9I0002oX>en20001WXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093k"
    b"N^M!000939=ZZRVE_RDDMA4O18@KU0|1Z!00RI30{|YNAb|yz>aLpR;31&EfB*mtfB*mk0EA)y0RRR>0l{;@i2wiq6Ju"
    b"{|a&BX6cmM$a4FCp!0000KX>)L8000000000$0000$0000eV{Bn?0000G000010000G00001|NsBc00002|NsBc00002"
    b"0000GaA|mH000000|*ER0000OX>e^}0000000001009Mo0s{qv0000wZDe6|0000kC;_h%A!1`d^(P|#_vD}ahq?b3c3"
    b"4^5u7JT?^7_E`WShYAs*#?6hiRuU6?g"
)
_PACKAGES: Final = (
    "pillow",
    "numpy",
    "simplejpeg",
    "cykooz-resizer",
    "pydicom",
    "python-gdcm",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "pi-heif",
    "tifffile",
    "imagecodecs",
)


def decode_capabilities() -> dict[str, Any]:
    """Return what can be decoded here.

    Returns:
        decoder_versions: of this package's decoding code, by format family.
        formats: by name, "ok" with the library's version, or the reason why not.
        dicom_transfer_syntaxes: by name, the plugin that decodes it, or what to install.
        decoders: what confines a decoder process here, and the memory of all together.
        packages: by name, the version, or "not installed".
    """
    return {
        "decoder_versions": {family: str(n) for family, n in DECODER_VERSIONS.items()},
        "formats": {ours: _try(ours, writer, library) for ours, writer, library in _FORMATS}
        | {"HEIF": _try_heif()},
        "dicom_transfer_syntaxes": plugins_here() or {"all": "pip install 'imgcls[dicom]'"},
        "decoders": _confinement(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _confinement() -> dict[str, str]:
    """Start one decoder process and ask it; the memory is that of one for each CPU."""
    spec = DecodeSpec()
    with DecoderPool(spec, PreprocessSpec.for_image_px(32), 1) as pool:
        missing = pool.unconfined()
    num_processes = max(1, int(num_cpus_here()))
    memory = memory_limits(num_processes, spec.max_pixels, pool_memory_bytes(num_processes))
    least = "" if not memory.is_shared else (
        f"; beyond {memory.everyday_pixels / 1e6:.0f} megapixels one image at a time"
    )  # fmt: skip
    return {
        "sandbox": f"missing: {missing}" if missing else "ok (seccomp: no file, network, program)",
        "memory": f"{memory.total_bytes / 2**30:.1f} GiB for {num_processes} processes{least}",
    }


def _try(ours: str, writer: str, library: str) -> str:
    encoded = io.BytesIO()
    try:
        Image.new("RGB", (16, 16), (200, 100, 50)).save(encoded, writer)
        decode(encoded.getvalue(), DecodeSpec())
    except (OSError, KeyError, ValueError, DecodeError) as error:
        return f"not available: {error}"
    version = features.version(library) if library else None
    return f"ok ({library} {version})" if version else "ok"


def _try_heif() -> str:
    try:
        decode(_HEIC, DecodeSpec())
    except DecodeError as error:
        return f"not available: {error}"
    return f"ok (pi-heif {_version('pi-heif')})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
