"""What became of a file that gave no pixels: the one map from errors to statuses.

In: the error, the file's uri, the format that its content tells. Out: a status and a short reason.
Invariant: an image that failed never hides among the files that are not images.

Content decides. Only where it says nothing, or where it may be what a mishap left in an image's
place (the error page of a failed download), the name decides too, and in doubt the file is a
failure, which counts in the budget:

    the content is                              x.jpg, x.dcm    x, x.1.2.840    x.json, x.db
    an image that we read, damaged              its failure     its failure     its failure
    an image that we do not read                unsupported     unsupported     unsupported
    a DICOM object of a kind without pixels     not_an_image    not_an_image    not_an_image
    another kind of file: PDF, archive, video   unsupported     not_an_image    not_an_image
    text, JSON, XML, HTML                       unsupported     unsupported     not_an_image
    unknown, such as zeros; empty               unsupported     unsupported     not_an_image

A hidden name says another kind, unless it has the suffix of an image: `.hidden.jpg` is an image
that failed, `.nothing` and `._x.jpg` (macOS) are none.
"""

from typing import Final

from imgcls.errors import (
    DecodeError,
    NotAnImageError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    UnsupportedImageError,
)
from imgcls.schema import Status

_MAX_REASON_CHARS: Final = 200
_IMAGE_SUFFIXES: Final = (
    " apng arw avif bmp cr2 cr3 czi dcm dib dic dicom dng exr fit fits gif hdr heic heics heif hif"
    " ico ima j2c j2k jfif jls jp2 jpc jpe jpeg jpf jpg jph jpx jxl jxr mha mhd mpo ndpi nef nhdr"
    " nii nrrd ome orf pam pbm pcx pfm pgm pic png pnm ppm psd qoi raf ras rw2 sgi svg svs tga tif"
    " tiff wdp webp xbm xpm "
)
_OTHER_SUFFIXES: Final = (
    " 7z avi bat bz2 cfg cls cmd conf css csv db dll doc docx done exe flag gz htm html ini ipynb"
    " js json jsonl lnk lock log m4v md md5 mkv mov mp3 mp4 mpeg mpg msg npy npz odt onnx parquet"
    " pdf pkl ppt pptx properties pt pth py rar rst rtf safetensors sh sha1 sha256 so sqlite"
    " sqlite3 tar tbl tex tgz toml tsv txt url wav wmv xls xlsx xml xsd xsl xz yaml yml zip zst "
)
_FAMILY_BY_SUFFIX: Final = {
    suffix: family
    for family, suffixes in {
        "avif": "avif",
        "bmp": "bmp dib",
        "dicom": "dcm dic dicom ima",
        "gif": "gif",
        "heif": "heic heif hif",
        "jpeg": "jpg jpeg jpe jfif",
        "jpeg2000": "jp2 j2k j2c jpc jpf jpx jph",
        "png": "png apng",
        "pnm": "pnm pbm pgm ppm pfm",
        "tiff": "tif tiff svs",
        "webp": "webp",
    }.items()
    for suffix in suffixes.split()
}
# What a file of these families is, is beyond doubt whatever its name says.
_SURE_FAMILIES: Final = ("dicom", "appledouble")
# What a failed download leaves in an image's place.
_TEXT_FAMILIES: Final = ("text", "json", "xml", "html")


def outcome_of(error: Exception, uri: str, family: str | None) -> tuple[Status, str]:
    """Return the status and a short reason of a file that gave no pixels.

    Args:
        error: why.
        uri: where the file is; only the end of its name counts.
        family: its format by content, None where that tells nothing.

    Raises:
        Exception: `error` itself, where it says nothing of this file: of the infrastructure.
    """
    match error:
        case ObjectMissingError():
            return Status.MISSING, "not found: deleted since it was planned"
        case ObjectChangedError():
            return Status.CHANGED, "overwritten since it was planned"
        case ObjectUnreadableError():
            return Status.UNREADABLE, str(error).partition(";")[0][:_MAX_REASON_CHARS]
        case NotAnImageError() if _may_be_in_place_of_an_image(uri, family):
            return Status.UNSUPPORTED, f"{error} where an image may have been meant"
        case UnsupportedImageError() if family is None and says_another_kind(uri):
            return Status.NOT_AN_IMAGE, "unknown content, by its name of another kind"
        case DecodeError():
            return Status(error.status), str(error)
    raise error


def says_image(uri: str) -> bool:
    """Tell whether the name says that the file is an image."""
    name = uri.rpartition("/")[2].lower()
    if name.startswith("._"):
        return False
    return f" {suffix_of(uri)} " in _IMAGE_SUFFIXES or name.endswith(".nii.gz")


def says_another_kind(uri: str) -> bool:
    """Tell whether the name says that the file is surely something else than an image."""
    if says_image(uri):
        return False
    is_hidden = uri.rpartition("/")[2].startswith(".")
    return is_hidden or f" {suffix_of(uri)} " in _OTHER_SUFFIXES


def _may_be_in_place_of_an_image(uri: str, family: str | None) -> bool:
    if family in _SURE_FAMILIES:
        return False
    if family in _TEXT_FAMILIES:
        return not says_another_kind(uri)
    return says_image(uri)


def family_by_name(uri: str) -> str | None:
    """Return the format family that the suffix stands for, or None: for rows without a format."""
    return _FAMILY_BY_SUFFIX.get(suffix_of(uri))


def suffix_of(uri: str) -> str:
    """Return what the name ends in, in lower case and without the dot; "" where it has none."""
    name = uri.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""
