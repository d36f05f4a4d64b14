"""Photographs to test with: parts of those that scikit-image brings, of many shapes and sizes.

All have edges, textures and highlights.
"""

from functools import cache
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

_NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")


@cache
def photographs(number: int) -> list[np.ndarray]:
    """Return uint8 [H,W,3], the first ones the same for every number."""
    folder = Path(skimage.data.__file__).parent
    whole = [np.asarray(Image.open(folder / name).convert("RGB")) for name in _NAMES]
    rng = np.random.default_rng(7)
    parts = []
    for index in range(number):
        image_HWC = whole[index % len(whole)]
        size = [int(rng.integers(90, min(side, 480) + 1)) for side in image_HWC.shape[:2]]
        top, left = (
            int(rng.integers(0, a - b + 1)) for a, b in zip(image_HWC.shape, size, strict=False)
        )
        parts.append(np.ascontiguousarray(image_HWC[top : top + size[0], left : left + size[1]]))
    return parts
