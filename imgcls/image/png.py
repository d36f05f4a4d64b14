"""Encode pixels as PNG, for the demo's images and for pictures in reports.

In: uint8 [H,W] or [H,W,3]. Out: the bytes of a PNG file. Invariant: lossless.
"""

import io

import numpy as np
from PIL import Image


def encode_png(image_HWC: np.ndarray) -> bytes:
    """Return uint8 [H,W] grey or [H,W,3] RGB as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG")
    return buffer.getvalue()
