"""What the decoders of this machine can read, so that a later run can tell when that has grown.

In: nothing. Out: words for each format family, JSON-able. Invariant: a word is never taken away or
renamed while what it stands for is still read; nothing is imported to find out.

A row that says `unsupported` or `not_an_image` is planned again when its family has a word here
that the decoders of its run did not have. So **whoever teaches imgcls to read more of a family adds
a word to LEARNT**, and a package that decodes more of one is named in PACKAGES.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Final

from PIL import features

from imgcls.image.versions import DECODER_VERSIONS, RARE_KINDS

Abilities = dict[str, list[str]]
"""Of each family that is read at all, words for what is read of it."""

# Stands for contents that say nothing: they may be of any family that is not read yet.
UNKNOWN: Final = "unknown"
# What imgcls learnt to read of a family since its first version, a word each.
LEARNT: Final[dict[str, tuple[str, ...]]] = {
    "bmp": ("any bit masks",),
    "dicom": ("12-bit JPEG", "6 and 7-bit JPEG-LS"),
    "jpeg": ("more than 8 bits",),
    "jpeg_rare": ("more than 8 bits",),
    "tiff": ("by tifffile",),
    UNKNOWN: ("DICOM without preamble",),
}
# Modules that read more of a family; without those in NEEDED nothing of it is read.
PACKAGES: Final[dict[str, tuple[str, ...]]] = {
    "dicom": ("pydicom", "gdcm", "pylibjpeg", "openjpeg", "libjpeg", "imagecodecs", "jpeg_ls"),
    "heif": ("pi_heif",),
    "jpeg_rare": ("imagecodecs",),
    "png_deep": ("imagecodecs",),
    "tiff": ("tifffile", "imagecodecs"),
}
NEEDED: Final[dict[str, str]] = {"dicom": "pydicom", "heif": "pi_heif"}
# What runs that recorded nothing could read, at most: those of commit 27535e0 and before. Which
# packages they had is not known; had they lacked one, --retry-failed scores what it is needed for.
_FAMILIES_27535E0: Final = (
    "avif", "bmp", "dicom", "gif", "jpeg", "jpeg2000", "png", "pnm", "tiff", "webp",
)  # fmt: skip
AT_27535E0: Final[Abilities] = {
    family: ["read", *PACKAGES.get(family, ())] for family in _FAMILIES_27535E0
} | {UNKNOWN: list(_FAMILIES_27535E0)}
_PILLOW_FEATURES: Final = {"webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000"}


def abilities_here() -> Abilities:
    """Return what decoders that this process starts can read."""
    found = {
        family: sorted(["read", *LEARNT.get(family, ()), *filter(_is_installed, packages)])
        for family in DECODER_VERSIONS
        if _is_read(family)
        for packages in [PACKAGES.get(family, ())]
    }
    families = [family for family in found if family not in RARE_KINDS]
    return found | {UNKNOWN: sorted([*families, *LEARNT.get(UNKNOWN, ())])}


def shared(abilities: Iterable[Abilities]) -> Abilities:
    """Return what all of several machines can read."""
    first, *others = abilities
    return {
        family: [word for word in words if all(word in other.get(family, ()) for other in others)]
        for family, words in first.items()
        if all(family in other for other in others)
    }


def grown(family: str | None, then: Abilities, now: Abilities) -> bool:
    """Tell whether more of a family is read now than then; None: of what no content tells."""
    name = family or UNKNOWN
    return bool(set(now.get(name, ())) - set(then.get(name, ())))


def _is_read(family: str) -> bool:
    if family in _PILLOW_FEATURES:
        return bool(features.check(_PILLOW_FEATURES[family]))
    return family not in NEEDED or _is_installed(NEEDED[family])


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
