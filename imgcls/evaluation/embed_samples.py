"""The embedding that a model has of labelled images, by the way that `score` takes.

In: a model, samples. Out: numbers for each image. Invariant: those of the predict stream; a model
without features is refused by name.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.evaluation.predict_samples import RunFlags, predict_samples
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve


def embed_samples(
    model: str, samples: Sequence[Sample], num_decoders: int
) -> npt.NDArray[np.float32]:
    """Return the embedding of each image, [N,E]; of several frames their mean.

    Args:
        model: Bundle URI or registry reference.
        samples: The images.
        num_decoders: Decoder processes; 0 takes the cores of this machine.

    Raises:
        ConfigError: the model gives no features, or none of an image.
    """
    bundle = read_bundle(resolve(model))
    flags = RunFlags(device="auto", precision="auto", batch_size=0, num_decoders=num_decoders)
    found = predict_samples(bundle, samples, flags, embedding=True).found
    if found.embedding_BE is None:
        raise ConfigError(f"--model {model} gives no features; take another, or leave it out")
    if found.failures:
        first = found.failures[0]
        raise ConfigError(
            f"--model {model} gives nothing for {samples[first.index].uri}: {first.reason}"
        )
    sums_NE = np.zeros((len(samples), found.embedding_BE.shape[1]), np.float64)
    np.add.at(sums_NE, found.index_B, found.embedding_BE)
    count_N = np.bincount(found.index_B, minlength=len(samples))
    return (sums_NE / count_N[:, None]).astype(np.float32)
