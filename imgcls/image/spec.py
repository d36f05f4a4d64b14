"""The decode spec and the preprocess spec: everything that decides the value of a pixel.

In: plain values. Out: two frozen dataclasses and their digest. Invariant: two machines with equal
digests and the same decoder versions turn the same file into the same tensor, bit for bit; a change
of what decoding gives bumps a number in formats/versions.py.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, Literal, Self, get_args

from imgcls.errors import BundleError, ImageTooLargeError
from imgcls.image.fields import check, check_choices, checked_fields, to_dict
from imgcls.image.versions import (
    Versions,
    moved_between,
    refuse_newer,
    to_json,
    versions_here,
)

Fit = Literal["stretch", "pad", "crop", "tiles"]
Resize = Literal["shortest", "longest", "exact"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "area", "gaussian"]
Arithmetic = Literal["pillow", "pillow_exact", "torch"]
CropPlace = Literal["center", "center_floor", "center_halves", "top_left"]
Color = Literal["rgb", "gray"]
Frames = Literal["first", "middle", "all", "pool"]
Icc = Literal["ignore", "srgb"]
GrayRange = Literal["declared", "bits", "window", "min_max", "measured"]
DicomWindow = Literal[
    "file", "none", "lung", "soft_tissue", "bone", "brain", "mediastinum", "lung_soft_bone"
]
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "color": get_args(Color),
    "frames": get_args(Frames),
    "icc": get_args(Icc),
    "gray_range": get_args(GrayRange),
    "dicom_window": get_args(DicomWindow),
    "fit": get_args(Fit),
    "resize": get_args(Resize),
    "filter": get_args(Filter),
    "arithmetic": get_args(Arithmetic),
    "crop_place": get_args(CropPlace),
}

# In gray_ranges: the range of all kinds of greys together.
POOLED: Final = ""
# Fields that later versions added: left out of JSON at these values, so that no digest moves.
_BYTE_DEPTH: Final = 8
_ADDED: Final[dict[str, Any]] = {"gray_ranges": (), "depth": _BYTE_DEPTH}

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
# From this side on the model sees the centre 7/8 of the short side, as ImageNet models are
# evaluated; below it, all.
_MIN_CROPPED_PX: Final = 96
_CROP_FRACTION: Final = 0.875
# Of the preprocess spec's JSON, which says it from 2 on.
_VERSION: Final = 2


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """How encoded bytes become pixels 0..255.

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
    image's own extremes, per frame. measured: gray_ranges, for greys; colours as declared."""
    gray_bits: int = 16
    """Significant bits of a sample, for gray_range bits: 12 for a 12-bit camera that stores 16."""
    gray_window: tuple[float, float] = (0.0, 65535.0)
    """Lowest and highest value, for gray_range window."""
    gray_ranges: tuple[tuple[str, float, float], ...] = ()
    """Kind of greys, lowest and highest value of what training saw of it, for gray_range measured:
    a modality of DICOM, integer or float samples of other files; POOLED of all, which a kind takes
    that is not here. Where there are none, greys are as declared."""
    depth: int = 8
    """8 rounds every pixel to one of 256 values; 16 gives float32 0..255 and rounds nowhere between
    the file and the network: deep greys keep their levels (by no profile: icc is then of the
    others), and so do the means that a resize makes."""
    frames: Frames = "first"
    """Which frames of a multi-frame file: first, middle (index count // 2), all, one row each, or
    pool, all as the instances of one sample with one row."""
    max_frames: int = 1024
    """A file with more frames is too_large where all are taken."""
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
        check_choices(self, _CHOICES)
        refuse_newer(self.decoder_version)
        check("max_pixels", self.max_pixels, self.max_pixels >= 1)
        check("max_frames", self.max_frames, self.max_frames >= 1)
        check("gray_bits", self.gray_bits, 1 <= self.gray_bits <= 32)
        low, high = self.gray_window
        check("gray_window", self.gray_window, low < high)
        check("depth", self.depth, self.depth in (8, 16))
        check("gray_ranges", self.gray_ranges, _are_ranges(self.gray_ranges))
        check("dicom_window_index", self.dicom_window_index, self.dicom_window_index >= 0)
        background = self.alpha_background
        check("alpha_background", background, all(0 <= v <= 255 for v in background))
        three_windows_in_one_channel = (
            self.dicom_window == "lung_soft_bone" and self.color == "gray"
        )
        check("dicom_window", self.dicom_window, not three_windows_in_one_channel)

    @property
    def num_channels(self) -> int:
        """Channels of a decoded image: 3 or 1."""
        return 3 if self.color == "rgb" else 1

    @property
    def pixel_type(self) -> Literal["uint8", "float32"]:
        """Type of the pixels of a crop, 0..255."""
        return "uint8" if self.depth == _BYTE_DEPTH else "float32"

    @property
    def takes_all_frames(self) -> bool:
        """Whether every frame of a file is decoded."""
        return self.frames in ("all", "pool")

    def frames_of(self, num_frames: int) -> Sequence[int]:
        """Return the frames that are wanted of a file.

        Raises:
            ImageTooLargeError: it has too many.
        """
        if not self.takes_all_frames:
            return [num_frames // 2 if self.frames == "middle" else 0]
        if num_frames > self.max_frames:
            raise ImageTooLargeError(
                f"{num_frames} frames, the decode spec allows {self.max_frames}"
            )
        return range(num_frames)

    def refuse_size(self, width_px: int, height_px: int, depth: int = 1) -> None:
        """Refuse a picture that is too large, by its header.

        Raises:
            ImageTooLargeError: with the way out.
        """
        if width_px * height_px * depth > self.max_pixels:
            raise ImageTooLargeError(
                f"{width_px} x {height_px} pixels, the decode spec allows {self.max_pixels}; a "
                "model that is trained with a larger --max-pixels takes it"
            )

    def moved_formats(self) -> list[str]:
        """Return the format families whose pixels moved since the model was trained."""
        return moved_between(self.decoder_version, versions_here())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        values = to_dict(self) | {"decoder_version": to_json(self.decoder_version)}
        values["gray_ranges"] = {name: [low, high] for name, low, high in self.gray_ranges}
        for name, value in _ADDED.items():
            if getattr(self, name) == value:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the spec from `to_dict`'s values.

        Raises:
            BundleError: an unknown, missing or impossible field, by name.
        """
        ranges = _ranges_from_json(values.get("gray_ranges", {}))
        added = {name: value for name, value in _ADDED.items() if name not in values}
        return cls(**checked_fields(cls, values | added | {"gray_ranges": ()}) | ranges)


@dataclasses.dataclass(frozen=True)
class PreprocessSpec:
    """How a decoded image becomes the model's input.

    The picture is resized, cut or padded to the size of the input, its values 0..255 are mapped to
    `input_range`, and normalised. The defaults are those of version 1, which cut a square.
    """

    height_px: int
    """Height of the model's input."""
    width_px: int
    """Width of the model's input."""
    fit: Fit = "crop"
    """stretch squeezes the whole picture into the input, pad keeps its shape and fills the rest,
    crop keeps its shape and cuts the rest away, tiles cuts it into many inputs."""
    resize: Resize = "shortest"
    """Which side the resize is told by: of stretch exact, of pad longest. Of crop shortest resizes
    and then cuts; exact cuts the source in the shape of the input and then resizes that."""
    resize_px: int = 0
    """Short side after a resize by the shortest side, the other one rounded down; 0: the picture
    just covers the input divided by crop_fraction, both sides rounded."""
    filter: Filter = "bilinear"
    """Of the resize, as Pillow has it; area is that of OpenCV, gaussian that of scikit-image."""
    antialias: bool = True
    """Widen the filter when shrinking."""
    arithmetic: Arithmetic = "pillow"
    """Whose: pillow resizes images of Pillow, by bilinear within 1 of 255 of it in a third of its
    time; pillow_exact is that filter by Pillow itself; torch resizes tensors of uint8. The last two
    differ by up to 2 of 255."""
    crop_fraction: float = 1.0
    """Share of each side that is left after the cut: the resize is for the input divided by it."""
    crop_place: CropPlace = "center"
    """Where a cut or padded picture lies: in the middle as torchvision and timm round it, as
    transformers (center_floor) or torchxrayvision (center_halves) do, or at the top left."""
    pad_color: tuple[int, ...] = (0,)
    """What is beside a padded picture, 0..255: one value, or one per channel."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """What 0 and 255 become, before mean and std."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean per channel of the normalisation, of values in input_range."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation per channel of the normalisation."""
    channels: int = 3
    """Channels of the input, 1 or 3."""
    overlap_px: int = 0
    """Of neighbouring tiles."""

    def __post_init__(self) -> None:
        check_choices(self, _CHOICES)
        for name in ("height_px", "width_px"):
            check(name, getattr(self, name), getattr(self, name) >= 1)
        resizes = {"stretch": ("exact",), "pad": ("longest",), "crop": ("shortest", "exact")}
        check("resize", self.resize, self.resize in resizes.get(self.fit, get_args(Resize)))
        by_side = self.resize == "shortest" and self.crop_fraction == 1
        check("resize_px", self.resize_px, self.resize_px == 0 or (self.resize_px > 0 and by_side))
        widened = {False: ("nearest", "bilinear", "bicubic")}.get(self.antialias, get_args(Filter))
        check("antialias", self.antialias, self.filter in widened)
        computed = {"torch": ("bilinear", "bicubic"), "pillow_exact": ("bilinear",)}
        check(
            "arithmetic",
            self.arithmetic,
            self.filter in computed.get(self.arithmetic, get_args(Filter)),
        )
        check("arithmetic", self.arithmetic, self.antialias or self.arithmetic != "pillow_exact")
        check("crop_fraction", self.crop_fraction, 0 < self.crop_fraction <= 1)
        check("channels", self.channels, self.channels in (1, 3))
        for name in ("pad_color", "mean", "std"):
            check(name, getattr(self, name), len(getattr(self, name)) in (1, self.channels))
        check("pad_color", self.pad_color, all(0 <= v <= 255 for v in self.pad_color))
        check("std", self.std, len(self.std) == len(self.mean) and min(self.std) > 0)
        check("input_range", self.input_range, self.input_range[0] < self.input_range[1])
        most_px = min(self.height_px, self.width_px) - 1 if self.fit == "tiles" else 0
        check("overlap_px", self.overlap_px, 0 <= self.overlap_px <= most_px)

    @classmethod
    def for_image_px(
        cls,
        image_px: int,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> Self:
        """Return the spec of version 1 for an input of `image_px` by `image_px` pixels: a cut."""
        cropped = image_px >= _MIN_CROPPED_PX
        resize_px = round(image_px / _CROP_FRACTION) if cropped else image_px
        return cls(image_px, image_px, resize_px=resize_px, mean=mean, std=std, channels=len(mean))

    @property
    def shape_CHW(self) -> tuple[int, int, int]:
        """Shape of the model's input."""
        return self.channels, self.height_px, self.width_px

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values: what version 1 could express in its words, byte by byte."""
        values = to_dict(self)
        as_version_1 = {
            "image_px": self.width_px,
            "resize_px": self.resize_px,
            "interpolation": self.filter,
            "antialias": self.antialias,
            "mean": values["mean"],
            "std": values["std"],
        }
        try:
            is_version_1 = self == self.from_dict(as_version_1)
        except BundleError:
            is_version_1 = False
        return as_version_1 if is_version_1 else {"version": _VERSION} | values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the spec from `to_dict`'s values.

        Raises:
            BundleError: an unknown, missing or impossible field, by name, or a newer version.
        """
        if "version" not in values:
            return cls._from_version_1(values)
        version, rest = values["version"], {k: v for k, v in values.items() if k != "version"}
        if version != _VERSION:
            raise BundleError(
                f"a preprocess spec of version {version!r}; this imgcls reads 1 and {_VERSION}: "
                "upgrade it"
            )
        return cls(**checked_fields(cls, rest))

    @classmethod
    def _from_version_1(cls, values: dict[str, Any]) -> Self:
        first = _Version1(**checked_fields(_Version1, values))
        check_choices(first, {"interpolation": ("bilinear",)})
        check("antialias", first.antialias, first.antialias)
        check("resize_px", first.resize_px, first.resize_px >= first.image_px)
        return cls(
            height_px=first.image_px,
            width_px=first.image_px,
            resize_px=first.resize_px,
            mean=first.mean,
            std=first.std,
            channels=len(first.mean),
        )


@dataclasses.dataclass(frozen=True)
class _Version1:
    """The fields of version 1, in their order."""

    image_px: int
    resize_px: int
    interpolation: str
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _are_ranges(ranges: tuple[tuple[str, float, float], ...]) -> bool:
    names = [name for name, _, _ in ranges]
    is_complete = not names or (POOLED in names and len(set(names)) == len(names))
    return is_complete and all(low < high for _, low, high in ranges)


def _ranges_from_json(values: object) -> dict[str, Any]:
    """Return the argument gray_ranges from its JSON, {kind: [low, high]}."""
    try:
        pairs = dict(values).items()  # type: ignore[call-overload]  # any JSON: checked by doing
        return {"gray_ranges": tuple((str(k), float(low), float(high)) for k, (low, high) in pairs)}
    except (TypeError, ValueError) as error:
        raise BundleError(f"spec: gray_ranges={values!r} is not a range per kind") from error


def spec_digest(decode: DecodeSpec, preprocess: PreprocessSpec) -> str:
    """Return the sha256, in hex, of both specs as canonical JSON."""
    specs = {"decode": decode.to_dict(), "preprocess": preprocess.to_dict()}
    canonical = json.dumps(specs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
