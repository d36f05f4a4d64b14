"""What reaches a model of a picture: how much of it, how small, and what is then too small.

In: sizes of pictures and a preprocess spec. Out: a few numbers, and words for people. Invariant:
computed from the very placement that preprocessing uses.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from imgcls.image.fit.placement import place
from imgcls.image.spec import PreprocessSpec

# What a network with 3 x 3 convolutions can still tell from noise.
_VISIBLE_PX: Final = 3
# A share of a picture below which most people would want to know.
FEW_SEEN: Final = 0.6


@dataclass(frozen=True, slots=True)
class Seen:
    """What reaches the model of some pictures."""

    num_images: int
    """How many were looked at."""
    median_fraction: float
    """Share of a picture's area that reaches the model: of half the pictures at least so much."""
    smallest_fraction: float
    """Of the picture of which least does."""
    shrink: float
    """Pixels of the source per pixel of the input, along the side that is shrunk more; median.
    Below 1 the picture is enlarged."""
    object_px: int
    """From this size on, in pixels of the source, an object is 3 pixels wide for the model; in
    half of the pictures."""
    input_px: str
    """Size of the input, height x width."""
    fit: str
    """Of the preprocess spec."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "num_images": self.num_images,
            "median_fraction": round(self.median_fraction, 4),
            "smallest_fraction": round(self.smallest_fraction, 4),
            "shrink": round(self.shrink, 2),
            "object_px": self.object_px,
        }

    def describe(self) -> str:
        """Return one sentence for people."""
        if self.smallest_fraction >= 1:
            much = "the whole picture: nothing is cut off"
        else:
            much = (
                f"{self.median_fraction:.0%} of a picture (median of {self.num_images}; of one "
                f"only {self.smallest_fraction:.0%}), the rest is cut off"
            )
        size = f"{self.input_px} (height x width) pixels"
        if self.fit == "tiles":
            return f"the model sees {much}, in tiles of {size}, not shrunk"
        if self.shrink <= 1:
            return f"the model sees {much}; not shrunk, its input has {size}"
        return (
            f"the model sees {much}; shrunk {self.shrink:.1f} times to {size}, so that an object "
            f"must be at least {self.object_px} pixels wide in the picture to be {_VISIBLE_PX} "
            "wide for the model"
        )


NOTHING_SEEN: Final = Seen(0, 1.0, 1.0, 1.0, _VISIBLE_PX, "", "")


def measure_seen(sizes: Sequence[tuple[int, int]], spec: PreprocessSpec) -> Seen:
    """Return what reaches the model of pictures of these widths and heights; at least one."""
    found = [_of_one(width_px, height_px, spec) for width_px, height_px in sizes]
    fractions = [fraction for fraction, _ in found]
    shrink = statistics.median(shrink for _, shrink in found)
    return Seen(
        num_images=len(found),
        median_fraction=statistics.median(fractions),
        smallest_fraction=min(fractions),
        shrink=shrink,
        object_px=max(1, math.ceil(_VISIBLE_PX * shrink - 1e-6)),
        input_px=f"{spec.height_px} x {spec.width_px}",
        fit=spec.fit,
    )


def _of_one(width_px: int, height_px: int, spec: PreprocessSpec) -> tuple[float, float]:
    """Return the share of a picture that is seen, and by how much it shrinks."""
    if spec.fit == "tiles":
        return 1.0, 1.0
    where = place(width_px, height_px, spec)
    left, top, right, bottom = where.box
    across, down = (right - left) / where.width_px, (bottom - top) / where.height_px
    fraction = (right - left) * (bottom - top) / (width_px * height_px)
    return (1.0 if fraction > 1 - 1e-6 else fraction), max(across, down)
