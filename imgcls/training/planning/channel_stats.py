"""A look at some training images: mean and spread of their channels, and their sizes.

In: training images. Out: mean and std per channel, of values 0..1; widths and heights.
Invariant: a function of
the images and the seed: sums of integers over a sample chosen by hash, so neither order nor number
of decoders matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imgcls.errors import ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.sources.located import Located, access_to, in_reading_order, request_for
from imgcls.training.augment.counter_rng import hash64

# 256 images fix a channel's mean to about 1 % of its spread, and take a second or two to read.
NUM_MEASURED = 256
# Of images that are all one grey: their noise must not be blown up to full range.
MIN_STD = 0.02
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class ImagesLook:
    """What a sample of the training images looks like."""

    mean: tuple[float, ...]
    """Per channel, of values 0..1."""
    std: tuple[float, ...]
    sizes: list[tuple[int, int]]
    """Width and height of each as displayed."""


def look_at_images(
    images: Sequence[Located],
    decode_spec: DecodeSpec,
    preprocess_spec: PreprocessSpec,
    *,
    seed: int,
    num_decoders: int,
) -> ImagesLook:
    """Look at a sample of the images.

    Raises:
        ConfigError: not one image of the sample gives pixels; names one and the reason.
        AccessDeniedError: not one image may be read.
    """
    order = np.argsort(hash64(seed, np.arange(len(images))), kind="stable")[:NUM_MEASURED]
    requests = in_reading_order(request_for(int(index), images[index]) for index in order)
    count, sums, squares = 0, np.zeros(decode_spec.num_channels), np.zeros(decode_spec.num_channels)
    reason, sizes = "", list[tuple[int, int]]()
    access = access_to(images)
    is_pooled = preprocess_spec.fit == "tiles" or decode_spec.frames == "pool"
    with DecoderPool(decode_spec, preprocess_spec, num_decoders or 1) as pool:
        for image in pool.decode_many(access.read(requests)):
            if image.error is not None:
                reason = f"{images[image.index].uri!r}: {image.error}"
                continue
            sizes.append(image.crops[0].size_px)
            for crop in image.crops if is_pooled else image.crops[:1]:
                x_CHW = crop.x_CHW.astype(np.float64)
                count += x_CHW[0].size
                sums += x_CHW.sum((1, 2))
                squares += (x_CHW**2).sum((1, 2))
    if count == 0:
        raise ConfigError(f"none of {len(order)} training images gives pixels, such as {reason}")
    mean = sums / count / 255.0
    variance = np.maximum(squares / count / 255.0**2 - mean**2, MIN_STD**2)
    return ImagesLook(_rounded(mean), _rounded(np.sqrt(variance)), sizes)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), _DIGITS) for value in values)
