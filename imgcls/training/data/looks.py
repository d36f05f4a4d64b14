"""What images look like, at one size, whatever size the model takes.

In: encoded images, as somebody else reads them. Out: their digests and fingerprints, by index.
Invariant: the fingerprint of an image depends on its bytes and the decode spec alone, so two
trainings with other --image-px find the same near-duplicates.
"""

import hashlib
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch

from imgcls.data.leaks import Fingerprints, fingerprint
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec

LOOK_PX = 64
# Of a sha256: half of it tells any number of images apart.
DIGEST_BYTES = 16
_ASK_EVERY_S = 0.2
_BATCH = 64


def open_eyes(decode_spec: DecodeSpec, num_decoders: int) -> DecoderPool:
    """Return the pool that looks at images: decoded as for the model, at a size of its own."""
    channels = decode_spec.num_channels
    spec = PreprocessSpec(
        LOOK_PX,
        LOOK_PX,
        fit="stretch",  # two pictures that differ at their edges are two
        resize="exact",
        mean=(0.0,),
        std=(1.0,),
        channels=channels,
    )
    return DecoderPool(decode_spec, spec, num_decoders)


class Looks:
    """Fingerprints and digests of images whose bytes pass by.

    Use it as a context manager: `add` takes bytes, from any thread, and waits where decoding is
    slower; `finish` waits for the last one.
    """

    def __init__(self, eyes: DecoderPool) -> None:
        self._eyes = eyes
        # Few: they hold whole files.
        self._inbox: queue.Queue[tuple[int, bytes] | None] = queue.Queue(2 * eyes.num_processes)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="imgcls-looks")
        self._work = self._executor.submit(self._run)
        self._parts = list[tuple[list[int], Fingerprints]]()
        self.digests: dict[int, bytes] = {}

    def add(self, index: int, data: bytes) -> None:
        """Take an image's bytes.

        Raises:
            ImgclsError: decoding ended with an error; not for an image that gives no pixels.
        """
        self.digests[index] = hashlib.sha256(data).digest()[:DIGEST_BYTES]
        self._put((index, data))

    def finish(self) -> tuple[list[int], Fingerprints]:
        """Return the images that gave pixels, and their fingerprints.

        Raises:
            ImgclsError: as for `add`.
        """
        self._put(None)
        self._work.result()
        seen = [index for part, _ in self._parts for index in part]
        return seen, Fingerprints.join(prints for _, prints in self._parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while not self._work.done():
            try:
                self._inbox.put(None, timeout=_ASK_EVERY_S)
            except queue.Full:
                continue
        self._executor.shutdown()

    def _put(self, item: tuple[int, bytes] | None) -> None:
        while True:
            if self._work.done():
                self._work.result()  # raises what ended it
                return
            try:
                self._inbox.put(item, timeout=_ASK_EVERY_S)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        index_B, x_CHWs = list[int](), list[torch.Tensor]()
        for decoded in self._eyes.decode_many(self._taken()):
            if decoded.crops:
                index_B.append(decoded.index)
                x_CHWs.append(torch.from_numpy(np.array(decoded.crops[0].x_CHW)))
            if len(index_B) == _BATCH:
                self._parts.append((index_B, fingerprint(torch.stack(x_CHWs))))
                index_B, x_CHWs = [], []
        if index_B:
            self._parts.append((index_B, fingerprint(torch.stack(x_CHWs))))

    def _taken(self) -> Iterator[tuple[int, bytes]]:
        while (item := self._inbox.get()) is not None:
            yield item
