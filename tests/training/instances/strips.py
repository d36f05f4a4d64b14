"""Strips of brushed metal, some with a scratch of 20 px: plain to the eye, or subtle.

As a line camera gives them: four times as wide as high, no two alike in light, with smudges that
are harmless. `labels.csv` says which are scratched, `boxes.csv` also where.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

SCRATCH_PX: Final = 20
CONTRAST: Final = {"plain": 60, "subtle": 22}  # of 255; the noise has a deviation of 5
_MARGIN_PX: Final = 15
Size = tuple[int, int]


@dataclass(frozen=True)
class Strip:
    """One picture, and where its scratch is."""

    name: str
    kind: str
    box: tuple[int, int, int, int] | None

    @property
    def centre(self) -> tuple[float, float]:
        """Of the scratch, in pixels."""
        assert self.box is not None
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


def write_strips(
    folder: Path,
    counts: Mapping[str, Mapping[str, int]],
    *,
    size: Size = (1600, 400),
    seed: int = 0,
) -> list[Strip]:
    """Write pictures of `size`, so many of each kind in each split, and both manifests."""
    rng, strips, rows = np.random.default_rng(seed), list[Strip](), list[list[Any]]()
    folder.mkdir(parents=True)
    for split, of_split in counts.items():
        for kind, count in of_split.items():
            for number in range(count):
                image_HW = _metal(rng, size)
                box = _scratch(image_HW, rng, CONTRAST[kind]) if kind in CONTRAST else None
                strip = Strip(f"{split}-{kind}-{number:04d}.png", kind, box)
                pixels = np.clip(image_HW, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / strip.name, compress_level=1)
                label = "scratch" if box else "good"
                rows.append([strip.name, label, split, kind, *(box or [""] * 4)])
                strips.append(strip)
    _write(folder / "labels.csv", [row[:4] for row in rows])
    _write(folder / "boxes.csv", rows)
    return strips


def _write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", "split", "kind", "x", "y", "w", "h"][: len(rows[0])])
        writer.writerows(rows)


def _metal(rng: np.random.Generator, size: Size) -> np.ndarray:
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image_HW = 120 + 25 * np.sin(x / rng.uniform(300, 900) + rng.uniform(0, 6))
    image_HW += rng.uniform(-20, 20) + rng.normal(0, 4, (height, 1))  # light; brushed lines
    image_HW += rng.normal(0, 5, (height, width))
    for _ in range(rng.integers(3, 9)):  # smudges
        centre_x, centre_y, reach = (
            rng.uniform(0, width),
            rng.uniform(0, height),
            rng.uniform(8, 30),
        )
        distance2 = (x - centre_x) ** 2 + (y - centre_y) ** 2
        image_HW += rng.uniform(-25, 25) * np.exp(-distance2 / (2 * reach**2))
    return np.asarray(image_HW)


def _scratch(
    image_HW: np.ndarray, rng: np.random.Generator, contrast: int
) -> tuple[int, int, int, int]:
    """Draw a line of SCRATCH_PX, 2 px wide; return its box."""
    height, width = image_HW.shape
    centre_x = rng.uniform(_MARGIN_PX, width - _MARGIN_PX)
    centre_y = rng.uniform(_MARGIN_PX, height - _MARGIN_PX)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    sign = 1 if rng.random() < 0.5 else -1
    image_HW += contrast * sign * np.exp(-(across**2)) * (np.abs(along) <= SCRATCH_PX / 2)
    half_width = SCRATCH_PX / 2 * abs(np.cos(angle)) + 2
    half_height = SCRATCH_PX / 2 * abs(np.sin(angle)) + 2
    left, top = int(centre_x - half_width), int(centre_y - half_height)
    return left, top, int(2 * half_width), int(2 * half_height)
