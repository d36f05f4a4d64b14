"""Features that were computed once, by the pixels that the network sees and by its weights.

In: crops, a backbone's digest. Out: embeddings, from this run or an earlier one. Invariant: equal
pixels through equal weights give the features that are kept; nothing else is ever taken for them.

    WORK_DIR/features/<backbone>/<uuid>.safetensors    keys_NS: sha256 of the pixels; embedding_NE
"""

import hashlib
import logging
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from imgcls.image.decoders.pool import Crop
from imgcls.storage.objects import list_objects, put_new, read
from imgcls.storage.uri import join

_KEYS, _EMBEDDING = "keys_NS", "embedding_NE"

log = logging.getLogger(__name__)


class FeatureStore:
    """The features of one backbone."""

    def __init__(self, uri: str) -> None:
        """Read what there is.

        Args:
            uri: the folder of this backbone's features.
        """
        self._uri = uri
        self._known: dict[bytes, npt.NDArray[np.float32]] = {}
        self._new: dict[bytes, npt.NDArray[np.float32]] = {}
        for info in list_objects(uri):
            if info.uri.endswith(".safetensors"):
                self._known |= _parse(read(info.uri), info.uri)

    def __contains__(self, key: bytes) -> bool:
        """Tell whether the features of these pixels are known."""
        return key in self._known

    def __getitem__(self, key: bytes) -> npt.NDArray[np.float32]:
        """Return the embedding [E] of these pixels."""
        return self._known[key]

    def add(self, key: bytes, embedding_E: npt.NDArray[np.float32]) -> None:
        """Take in what was computed now."""
        self._known[key] = self._new[key] = embedding_E

    @property
    def num_new(self) -> int:
        """How many were computed since the last `save`."""
        return len(self._new)

    def save(self) -> None:
        """Store what was computed, as one more file."""
        if not self._new:
            return
        keys = np.frombuffer(b"".join(self._new), np.uint8).reshape(len(self._new), -1)
        tensors: dict[str, npt.NDArray[Any]] = {
            _KEYS: keys,
            _EMBEDDING: np.stack(list(self._new.values())),
        }
        put_new(join(self._uri, f"{uuid.uuid4().hex}.safetensors"), safetensors.numpy.save(tensors))
        self._new.clear()


def key_of(crops: Sequence[Crop]) -> bytes:
    """Return the key of an image: the digest of all that the network sees of it."""
    digest = hashlib.sha256()
    for crop in crops:
        digest.update(np.ascontiguousarray(crop.x_CHW).data)
    return digest.digest()


def _parse(data: bytes, uri: str) -> dict[bytes, npt.NDArray[np.float32]]:
    """Return what a file holds; a damaged one costs time alone."""
    try:
        tensors = safetensors.numpy.load(data)
        keys, embedding_NE = tensors[_KEYS], tensors[_EMBEDDING]
    except (safetensors.SafetensorError, KeyError) as error:
        log.warning("%s is damaged, its features are computed again: %s", uri, error)
        return {}
    return {key.tobytes(): row for key, row in zip(keys, embedding_NE, strict=True)}
