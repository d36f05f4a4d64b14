"""Pictures that nobody took: encoded files that prove an imported model.

In: a number of channels. Out: files with smooth colours, edges, text-like strokes and noise, in
sizes and shapes that photographs have; some as JPEG. Invariant: generated from fixed seeds, so no
patient or part is ever in a bundle.
"""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import simplejpeg

from imgcls.image.png import encode_png

# Height and width: upright, wide, square, small, odd, a strip; above and below usual inputs.
_SIZES_PX: Final = (
    (480, 640), (640, 427), (512, 512), (333, 500), (201, 199), (300, 900),
    (260, 347), (700, 525), (224, 224), (411, 288), (150, 240),
)  # fmt: skip
_EVERY_JPEG: Final = 3


@cache
def make_pictures(channels: int) -> tuple[bytes, ...]:
    """Return encoded files, the same at every call."""
    pictures = (_picture(seed, *size) for seed, size in enumerate(_SIZES_PX))
    return tuple(
        _encode_jpeg(one)
        if number % _EVERY_JPEG == 0 and channels == 3
        else _encode_png(one, channels)
        for number, one in enumerate(pictures)
    )


def _encode_png(image_HWC: npt.NDArray[np.uint8], channels: int) -> bytes:
    return encode_png(image_HWC if channels == 3 else image_HWC[..., 0])


def _encode_jpeg(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC), 92)
    return data


def _picture(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    image = np.empty((height, width, 3), np.float32)
    for channel in range(3):
        across, down, phase = rng.uniform((0.002, 0.002, 0), (0.03, 0.03, 6.3))
        image[..., channel] = 127 + 90 * np.sin(across * x + down * y + phase)
    for _ in range(int(rng.integers(3, 9))):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, height / 3)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        image[inside] = 0.4 * image[inside] + 0.6 * rng.uniform(0, 255, 3)
    for _ in range(int(rng.integers(2, 6))):
        top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
        image[top : top + int(rng.integers(2, 60)), left : left + int(rng.integers(2, 90))] = (
            rng.uniform(0, 255, 3)
        )
    image += rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)
