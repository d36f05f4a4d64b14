"""Pictures of cameras, of which one may have changed, and nights over them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgcls.config.scoring import NightlyConfig, ReferenceConfig
from imgcls.image.png import encode_png
from imgcls.metrics.calibration import Calibration
from imgcls.model.registry import promote, register
from imgcls.scoring.reference import reference
from imgcls.storage.objects import put
from tests.scoring.tiny import make_bundle

NUM_CAMERAS = 4


def picture(number: int, *, darker: int = 0) -> npt.NDArray[np.uint8]:
    """A part on a belt: a bright ellipse on grey, with noise."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:48, :64]
    inside = ((x - rng.normal(32, 4)) / 18) ** 2 + ((y - rng.normal(24, 3)) / 13) ** 2 < 1
    grey = 110 + 8 * rng.normal() + inside * (60 + 10 * rng.normal()) + rng.normal(0, 6, x.shape)
    grey = np.clip(grey - darker, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def write_pictures(
    root: Path, name: str, count: int, *, dark_camera: int = -1, darker: int = 41, seed: int = 0
) -> None:
    """Write `count` pictures, by turns of each camera."""
    for number in range(count):
        camera = number % NUM_CAMERAS
        dark = darker if camera == dark_camera else 0
        data = encode_png(picture(seed + number, darker=dark))
        put(str(root / f"camera={camera}" / f"{name}-{number:04d}.png"), data)


def make_line(
    folder: Path, num_reference: int = 240, *, calibration: Calibration | None = None
) -> NightlyConfig:
    """Register a model with a reference of its own; return the config of nights over its line."""
    registry = str(folder / "registry")
    register(registry, "tiny", make_bundle(calibration=calibration))
    write_pictures(folder / "good", "good", num_reference, seed=100_000)
    made = reference(
        ReferenceConfig(str(folder / "good"), f"{registry}/tiny@v1", carry=("camera",))
    )
    promote(made["model"], "production")
    return NightlyConfig(
        str(folder / "bucket"),
        f"{registry}/tiny@production",
        str(folder / "out"),
        date="2026-11-22",
        executor="local",
        carry=("camera",),
        num_decoders=1,
        drift="hold",
    )
