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
from imgcls.model.golden_files import draw_picture

# Height and width: upright, wide, square, small, odd, a strip; above and below usual inputs.
_SIZES_PX: Final = (
    (480, 640), (640, 427), (512, 512), (333, 500), (201, 199), (300, 900),
    (260, 347), (700, 525), (224, 224), (411, 288), (150, 240),
)  # fmt: skip
_EVERY_JPEG: Final = 3


@cache
def make_pictures(channels: int) -> tuple[bytes, ...]:
    """Return encoded files, the same at every call."""
    pictures = (draw_picture(seed, *size) for seed, size in enumerate(_SIZES_PX))
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
