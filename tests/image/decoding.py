"""Encode a picture, and decode it again."""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from imgcls.image.decode import decode
from imgcls.image.spec import DecodeSpec


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, **fields: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    [decoded] = decode(data, DecodeSpec(**fields))
    return decoded.image_HWC


def tiff(values: np.ndarray[Any, Any], sample_format: int, photometric: int = 1) -> bytes:
    """Write one uncompressed strip, tag by tag."""
    height, width = values.shape
    body = values.tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, 8 * values.itemsize), (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(body)), (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    offset = 8 + len(body)
    return (
        struct.pack("<2sHI", b"II", 42, offset)
        + body
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


DEEP = (np.add.outer(np.arange(40), np.arange(50)) * 41).astype(np.uint16)  # 0..3608


DEEP_COLORS = np.stack([DEEP, DEEP[::-1], np.full_like(DEEP, 4095)], axis=2)
