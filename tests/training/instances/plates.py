"""Pictures of unlike size, dark noise; those that are bad have a bright spot of 4 px somewhere."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from imgcls.config.training import TrainConfig

SPOT_PX = 4
Box = tuple[int, int, int, int]


def make_plate(rng: np.random.Generator, is_bad: bool) -> tuple[np.ndarray, Box | None]:
    """Return uint8 [H,W], and where its spot is."""
    height_px, width_px = rng.integers(14, 44, 2)
    image_HW = rng.integers(0, 90, (height_px, width_px))
    if not is_bad:
        return image_HW.astype(np.uint8), None
    y, x = rng.integers(0, height_px - SPOT_PX), rng.integers(0, width_px - SPOT_PX)
    image_HW[y : y + SPOT_PX, x : x + SPOT_PX] += 150
    return image_HW.astype(np.uint8), (int(x), int(y), SPOT_PX, SPOT_PX)


def write_plates(
    folder: Path, num_per_class: int, *, seed: int = 0, with_boxes: bool = False
) -> dict[str, Box | None]:
    """Write pictures and labels.csv; return where the spots are, by name."""
    rng, places = np.random.default_rng(seed), dict[str, Box | None]()
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", *("xywh" if with_boxes else "")])
        for number in range(2 * num_per_class):
            image_HW, place = make_plate(rng, number % 2 == 1)
            name = f"{number:03d}.png"
            Image.fromarray(image_HW).save(folder / name)
            places[name] = place
            box = (place or [""] * 4) if with_boxes else []
            writer.writerow([name, "bad" if place else "good", *box])
    return places


def plates_config(folder: Path, **changes: object) -> TrainConfig:
    """Return the config of a training on the pictures of `folder`, its registry beside it."""
    values: dict[str, object] = {
        "data": str(folder / "labels.csv"),
        "registry": str(folder.parent / "registry"),
        "name": "plates",
        "arch": "simple_cnn",
        "image_px": 12,
        "fit": "tiles",
        "overlap": 4,
        "color": "gray",
        "batch_size": 8,
        "epochs": 8,
        "lr": 5e-3,
        "augment": "none",
        "allow_leaks": True,
    }
    return TrainConfig(**values | changes)  # type: ignore[arg-type]  # fields of it
