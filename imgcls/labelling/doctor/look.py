"""Every image of labelled data, looked at once: what it shows, in numbers and as a small picture.

In: samples. Out: `Looked`, one entry for each image that gives pixels, and the others by name.
Invariant: an image is decoded as `imgcls train` decodes it by default; its small picture is
squeezed to a square, so that pictures of all shapes can be compared.

Shape legend: N image, E feature, C channel, S side.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from imgcls.data.dataset import Sample
from imgcls.data.leaks import Fingerprints, fingerprint
from imgcls.image.crops import facts_of
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.facts.image_facts import ImageFacts
from imgcls.image.facts.thumbnail import encode_thumbnail
from imgcls.image.outcome import outcome_of
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.device import num_cores_here
from imgcls.progress import Progress
from imgcls.sources.located import access_to, in_reading_order, request_for

_SIDE_PX = 128
_FEATURE_PX = 12
_BATCH = 64


@dataclass(eq=False)
class Looked:
    """What was seen of the images that give pixels, in the order of `samples`."""

    samples: list[Sample]
    sizes: list[tuple[int, int]]
    """Width and height in pixels."""
    facts: list[ImageFacts]
    digests: list[str]
    """Of the bytes."""
    prints: Fingerprints
    pixels_NE: npt.NDArray[np.float32]
    """A tiny picture of each, as numbers."""
    thumbnails: list[bytes]
    unreadable: list[tuple[Sample, str]]


def look_at(samples: Sequence[Sample], num_decoders: int) -> Looked:
    """Read and decode every image once.

    Args:
        samples: To look at; of a file with several frames, the first one.
        num_decoders: Decoder processes; 0 takes the cores of this machine.
    """
    spec = PreprocessSpec(
        *(_SIDE_PX, _SIDE_PX), fit="stretch", resize="exact", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    uris = [sample.uri for sample in samples]
    digest_by_index: dict[int, str] = {}
    found: dict[int, tuple[npt.NDArray[np.uint8], tuple[int, int], ImageFacts, bytes]] = {}
    unreadable = []
    requests = in_reading_order(request_for(n, sample) for n, sample in enumerate(samples))

    def read() -> Iterator[tuple[int, bytes | BaseException]]:
        for index, item in access_to(samples).read(requests):
            if isinstance(item, bytes):
                digest_by_index[index] = hashlib.sha256(item).hexdigest()
            yield index, item

    with (
        DecoderPool(DecodeSpec(), spec, num_decoders or num_cores_here(), look="facts") as pool,
        Progress("looking", len(samples), "images") as progress,
    ):
        for decoded in pool.decode_many(read()):
            progress.advance(1)
            if decoded.error is not None or not decoded.crops:
                error = decoded.error or ValueError("no picture in it")
                _, reason = outcome_of(error, uris[decoded.index], decoded.format)
                unreadable.append((samples[decoded.index], reason))
                continue
            crop = decoded.crops[0]
            size = crop.size_px
            thumbnail = encode_thumbnail(crop.x_CHW, crop.picture_HWC, size, spec)
            [facts] = facts_of([crop], spec)
            found[decoded.index] = (np.array(crop.x_CHW), size, facts, thumbnail)
    order = sorted(found)
    prints, features = [], []
    for start in range(0, len(order), _BATCH):
        x_BCHW = torch.from_numpy(np.stack([found[i][0] for i in order[start : start + _BATCH]]))
        prints.append(fingerprint(x_BCHW))
        small = F.adaptive_avg_pool2d(x_BCHW.float() / 255, _FEATURE_PX)
        features.append(small.numpy())
    return Looked(
        samples=[samples[i] for i in order],
        sizes=[found[i][1] for i in order],
        facts=[found[i][2] for i in order],
        digests=[digest_by_index[i] for i in order],
        prints=Fingerprints.join(prints),
        pixels_NE=_without_copies(features),
        thumbnails=[found[i][3] for i in order],
        unreadable=sorted(unreadable, key=lambda pair: pair[0].key),
    )


def _without_copies(features: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return [N,E] of batches of [N,C,S,S]; of greys, whose channels are equal, one channel."""
    if not features:
        return np.zeros((0, 1), np.float32)
    x_NCSS = np.concatenate(features)
    if np.array_equal(x_NCSS[:, 0], x_NCSS[:, 1]) and np.array_equal(x_NCSS[:, 0], x_NCSS[:, 2]):
        x_NCSS = x_NCSS[:, :1]
    return x_NCSS.reshape(len(x_NCSS), -1)
