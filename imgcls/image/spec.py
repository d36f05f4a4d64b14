"""The decode spec and the preprocess spec: everything that decides the value of a pixel.

In: plain values. Out: two frozen dataclasses and their digest. Invariant: two machines with equal
digests and the same decoder versions turn the same file into the same tensor, bit for bit; a change
of what decoding gives bumps a number in formats/versions.py.
"""

import dataclasses
import hashlib
import json
from typing import Any, Final, Literal, Self, get_args

from imgcls.errors import BundleError
from imgcls.image.versions import (
    Versions,
    from_json,
    moved_between,
    refuse_newer,
    to_json,
    versions_here,
)

Color = Literal["rgb", "gray"]
Frames = Literal["first", "middle", "all"]
Icc = Literal["ignore", "srgb"]
GrayRange = Literal["declared", "bits", "window", "min_max"]
DicomWindow = Literal[
    "file", "none", "lung", "soft_tissue", "bone", "brain", "mediastinum", "lung_soft_bone"
]
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "color": get_args(Color),
    "frames": get_args(Frames),
    "icc": get_args(Icc),
    "gray_range": get_args(GrayRange),
    "dicom_window": get_args(DicomWindow),
    "interpolation": ("bilinear",),
}

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# From this side on the model sees the centre 7/8 of the short side, as ImageNet models are
# evaluated; below it, all.
_MIN_CROPPED_PX: Final = 96
_CROP_FRACTION: Final = 0.875


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """How encoded bytes become uint8 pixels.

    The defaults suit photographs, 8-bit PNGs, 16-bit greys and DICOM alike.

    Always so, and therefore no field: EXIF orientation is applied, CMYK and YCCK are inverted where
    Adobe stores them inverted, the format is told by content.
    """

    color: Color = "rgb"
    """rgb gives three channels (a grey image three equal ones), gray one (ITU-R 601 luma of a
    coloured image)."""
    alpha_background: tuple[int, int, int] = (255, 255, 255)
    """RGB colour 0..255 that transparent pixels are composited on."""
    icc: Icc = "ignore"
    """ignore takes the numbers as they are stored, as every training set does; srgb converts
    embedded profiles."""
    gray_range: GrayRange = "declared"
    """Which values become 0 and 255, linearly, clipped beyond, in a grey deeper than 8 bits; and in
    a colour picture deeper than 8 bits (PNG, TIFF, PNM, JPEG 2000, DICOM), by one range for all its
    channels. declared: all that the file's samples could hold: 0..2^b-1 unsigned,
    -2^(b-1)..2^(b-1)-1 signed, 0..1 float, where b are the bits per sample of TIFF and PNG, the
    BitsStored of DICOM (rescaled), and a PNM has its maxval; a float picture of which 0..1 would
    clip most has its own extremes. bits: 0..2^gray_bits-1. window: gray_window. min_max: the
    image's own extremes, per frame."""
    gray_bits: int = 16
    """Significant bits of a sample, for gray_range bits: 12 for a 12-bit camera that stores 16."""
    gray_window: tuple[float, float] = (0.0, 65535.0)
    """Lowest and highest value, for gray_range window."""
    frames: Frames = "first"
    """Which frames of a multi-frame file: first, middle (index count // 2), or all, one row
    each."""
    max_frames: int = 1024
    """A file with more frames is too_large where frames is all."""
    max_pixels: int = 50_000_000
    """Width times height of one frame, from the header; more is too_large before anything is
    decoded."""
    dct_scaling: bool = True
    """Decode JPEG at 1/2, 1/4 or 1/8 of its size where its short side stays at least that of the
    resize."""
    dicom_window: DicomWindow = "file"
    """file takes the VOI LUT or window of the file, none only gray_range; the others are CT windows
    in Hounsfield units, applied to CT only (other modalities: as file). lung_soft_bone gives these
    three as R, G and B."""
    dicom_window_index: int = 0
    """Which of the file's windows; the last one where it has fewer."""
    decoder_version: Versions = dataclasses.field(default_factory=versions_here)
    """Versions of the decoding code that the model was trained with, by format family; what this
    imgcls decodes by may be later."""

    def __post_init__(self) -> None:
        _check_choices(self)
        refuse_newer(self.decoder_version)
        _check("max_pixels", self.max_pixels, self.max_pixels >= 1)
        _check("max_frames", self.max_frames, self.max_frames >= 1)
        _check("gray_bits", self.gray_bits, 1 <= self.gray_bits <= 32)
        low, high = self.gray_window
        _check("gray_window", self.gray_window, low < high)
        _check("dicom_window_index", self.dicom_window_index, self.dicom_window_index >= 0)
        background = self.alpha_background
        _check("alpha_background", background, all(0 <= v <= 255 for v in background))
        three_windows_in_one_channel = (
            self.dicom_window == "lung_soft_bone" and self.color == "gray"
        )
        _check("dicom_window", self.dicom_window, not three_windows_in_one_channel)

    @property
    def num_channels(self) -> int:
        """Channels of a decoded image: 3 or 1."""
        return 3 if self.color == "rgb" else 1

    def moved_formats(self) -> list[str]:
        """Return the format families whose pixels moved since the model was trained."""
        return moved_between(self.decoder_version, versions_here())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return _to_dict(self) | {"decoder_version": to_json(self.decoder_version)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the spec from `to_dict`'s values.

        Raises:
            BundleError: an unknown, missing or impossible field, by name.
        """
        return cls(**_checked_fields(cls, values))


@dataclasses.dataclass(frozen=True)
class PreprocessSpec:
    """How a decoded image becomes the model's input."""

    image_px: int
    """Side of the square that the model sees."""
    resize_px: int
    """Short side after the resize, before the centre crop."""
    interpolation: Literal["bilinear"] = "bilinear"
    """Filter of the resize."""
    antialias: bool = True
    """Widen the filter when shrinking; always true so far."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean per channel of the normalisation, of values 0..1."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation per channel of the normalisation, of values 0..1."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check("image_px", self.image_px, self.image_px >= 1)
        _check("resize_px", self.resize_px, self.resize_px >= self.image_px)
        _check("antialias", self.antialias, self.antialias)
        _check("mean", self.mean, len(self.mean) in (1, 3))
        _check("std", self.std, len(self.std) == len(self.mean) and min(self.std) > 0)

    @classmethod
    def for_image_px(
        cls,
        image_px: int,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> Self:
        """Return the usual spec for a model input of `image_px` by `image_px` pixels."""
        cropped = image_px >= _MIN_CROPPED_PX
        resize_px = round(image_px / _CROP_FRACTION) if cropped else image_px
        return cls(image_px=image_px, resize_px=resize_px, mean=mean, std=std)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return _to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the spec from `to_dict`'s values.

        Raises:
            BundleError: an unknown, missing or impossible field, by name.
        """
        return cls(**_checked_fields(cls, values))


def spec_digest(decode: DecodeSpec, preprocess: PreprocessSpec) -> str:
    """Return the sha256, in hex, of both specs as canonical JSON."""
    specs = {"decode": decode.to_dict(), "preprocess": preprocess.to_dict()}
    canonical = json.dumps(specs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check(name: str, value: object, possible: bool) -> None:
    if not possible:
        raise BundleError(f"spec: {name}={value!r} is not possible")


def _check_choices(spec: "DecodeSpec | PreprocessSpec") -> None:
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        choices = _CHOICES.get(field.name)
        if choices is not None and value not in choices:
            raise BundleError(f"spec: {field.name}={value!r} is none of {', '.join(choices)}")


def _to_dict(spec: "DecodeSpec | PreprocessSpec") -> dict[str, Any]:
    values = dataclasses.asdict(spec)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _checked_fields(
    cls: "type[DecodeSpec | PreprocessSpec]", values: dict[str, Any]
) -> dict[str, Any]:
    """Turn JSON values into constructor arguments; a spec that comes from a file is complete."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise BundleError(f"{cls.__name__}: unknown fields {', '.join(unknown)}")
    if missing := sorted(set(fields) - set(values)):
        raise BundleError(f"{cls.__name__}: missing fields {', '.join(missing)}")
    return {name: _typed(name, fields[name].type, value) for name, value in values.items()}


def _typed(name: str, kind: object, value: object) -> object:
    """Return `value` as what the field holds; refuse any other type by name."""
    if kind == Versions:
        return from_json(value)
    text = str(kind)
    if kind is bool:
        fits = isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif "tuple" in text:
        number = (int, float) if "float" in text else int
        fits = isinstance(value, list | tuple) and all(
            isinstance(v, number) and not isinstance(v, bool) for v in value
        )
        if fits and isinstance(value, list | tuple):
            value = tuple(float(v) if "float" in text else v for v in value)
            fits = "..." in text or len(value) == text.count(",") + 1
    else:
        fits = isinstance(value, str)
    if not fits:
        raise BundleError(f"spec: {name}={value!r} is not a {text.removeprefix('typing.')}")
    return value
