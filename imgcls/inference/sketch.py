"""A sketch of an embedding: few numbers that keep how far images are from each other.

In: embeddings. Out: float32 [B,S]. Invariant: the projection is the same for every machine, version
and library: its signs are the bits of a hash, and what is stored today compares with what is stored
in years.

Random signs (Achlioptas 2003, after Johnson and Lindenstrauss 1984): a squared distance between two
sketches is that between the embeddings, on average, and 32 numbers give it to a quarter.

Legend: B sample, E embedding, S sketch.
"""

import hashlib
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

SKETCH_SIZE: Final = 32
_MAX_FLOAT16: Final = 65_504.0
_SEED: Final = b"imgcls sketch 1"


@cache
def projection_ES(width: int) -> npt.NDArray[np.float32]:
    """Return what embeddings of this width are multiplied with."""
    num_bytes = -(-width * SKETCH_SIZE // 8)
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(_SEED).digest(num_bytes), np.uint8))
    signs = bits[: width * SKETCH_SIZE].reshape(width, SKETCH_SIZE).astype(np.float32) * 2 - 1
    scaled: npt.NDArray[np.float32] = signs / np.float32(np.sqrt(SKETCH_SIZE))
    return scaled


def short_sketch(sketch_BS: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return sketches as they are kept: of a network with huge features the ends of float16."""
    return sketch_BS.clip(-_MAX_FLOAT16, _MAX_FLOAT16).astype(np.float16)
