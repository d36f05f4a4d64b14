"""The version of the decoding code of each format family.

In: nothing. Out: DECODER_VERSIONS, and what differs between two sets of versions. Invariant: two
imgcls with the same number for a family give the same pixels for the same file of that family.

The rule: **bump the family's number when pixels of images that were `ok` move.** What was not `ok`
and is now, moves no pixel: it gets a word in `abilities.py` instead. A bundle keeps the numbers it
was trained with and loads under higher ones; the run names the families whose pixels moved, and of
the published rows only theirs count as not done.

Where only a rare kind of a common format moves, it gets a family of its own (`jpeg_rare`,
`png_deep`: see `family_of`), for nobody wants a bucket of photographs scored again. Rows older than
the column `format` are told by their suffix: of these the rare kinds stay as they are.

A set of versions is written as the families that are beyond version 1; 1 stands for none of them,
as all bundles before these numbers say. So a family that is new changes no digest.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from imgcls.errors import BundleError

# family -> number; the families are those of the column `format` that are decoded at all.
DECODER_VERSIONS: Final[dict[str, int]] = {
    "avif": 1,
    "bmp": 1,
    "dicom": 2,  # bits beside the samples, palettes and tables, windows over fractions, float maps
    "gif": 1,
    "heif": 1,
    "jpeg": 1,
    "jpeg2000": 2,  # white in colours of more than 8 bits
    "jpeg_rare": 2,  # four channels without Adobe's marker; other processes are not scaled
    "png": 1,
    "png_deep": 2,  # the transparent one of 16-bit colours; their range
    "pnm": 2,  # the range of 16-bit colours
    "tiff": 2,  # planes, signed bytes, big-endian compressed samples, thumbnails
    "webp": 1,
}
# Families of a rare kind of a common format, see `family_of`.
RARE_KINDS: Final = ("jpeg_rare", "png_deep")
Versions = tuple[tuple[str, int], ...]
"""(family, number) of those beyond version 1, sorted."""


def versions_here() -> Versions:
    """Return the versions of this imgcls."""
    return tuple(sorted((f, number) for f, number in DECODER_VERSIONS.items() if number > 1))


def moved_between(earlier: Versions, later: Versions) -> list[str]:
    """Return the families whose numbers differ."""
    one, other = dict(earlier), dict(later)
    return sorted(f for f in one.keys() | other.keys() if one.get(f, 1) != other.get(f, 1))


def earliest(first: Versions, second: Versions) -> Versions:
    """Return of each family the lower number."""
    one, other = dict(first), dict(second)
    return tuple(sorted((f, min(one[f], other[f])) for f in one.keys() & other.keys()))


def to_json(versions: Versions) -> int | dict[str, int]:
    """Return versions as JSON-able values: 1, or the families beyond it."""
    return dict(versions) or 1


def from_json(value: Any) -> Versions:  # noqa: ANN401 - from a file: anything
    """Return the versions that `to_json` wrote.

    Raises:
        BundleError: it is not of that form.
    """
    if value == 1 and not isinstance(value, bool):
        return ()
    is_mapping = isinstance(value, Mapping) and all(
        isinstance(f, str) and type(number) is int and number > 1 for f, number in value.items()
    )
    if not is_mapping or not value:
        raise BundleError(
            f"spec: decoder_version={value!r} is neither 1 nor a number beyond it for each family"
        )
    return tuple(sorted(value.items()))


def refuse_newer(versions: Versions) -> None:
    """Refuse versions that this imgcls does not have yet.

    Raises:
        BundleError: names the family and both numbers.
    """
    for family, number in versions:
        here = DECODER_VERSIONS.get(family, 0)
        if number > here:
            raise BundleError(
                f"decode spec: decoder_version {number} of {family}, but this imgcls decodes it by "
                f"version {here}: use the imgcls that made the bundle, or a later one"
            )


def describe_moved(families: Iterable[str]) -> str:
    """Return what to say of families whose pixels moved since a model was trained."""
    return (
        f"pixels of {', '.join(families)} have moved since the model was trained: its decoders "
        "gave wrong ones for some. Images of all other formats give the same pixels"
    )
