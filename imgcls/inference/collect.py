"""Predict labelled images, all of them, and keep what came of each.

In: what was decoded, a Predictor. Out: `Collected`: probabilities in the order of the images, and a
status for every image without any. Invariant: each image is in one of the two, whatever the order
in which they were done: equal data give equal numbers.

Shape legend: B sample with a prediction, K classes, E embedding.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from imgcls.image.decoders.pool import Decoded
from imgcls.image.outcome import outcome_of
from imgcls.inference.predictor import Predictor
from imgcls.inference.stream import predict_stream
from imgcls.schema import Status


@dataclass(frozen=True, slots=True)
class NoPrediction:
    """Why an image, or a frame of it, has no prediction."""

    index: int
    status: Status
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """What a model says of many images; index_B is the place of each among them, rising."""

    index_B: npt.NDArray[np.int64]
    probs_BK: npt.NDArray[np.float32]
    embedding_BE: npt.NDArray[np.float32] | None = None
    failures: Sequence[NoPrediction] = field(default_factory=list)


def collect(found: Iterable[Decoded], predictor: Predictor, uris: Sequence[str]) -> Collected:
    """Predict all that was decoded.

    Args:
        found: in any order; `index` is a place in `uris`.
        predictor: of a bundle that decoded so.
        uris: of the images.

    Raises:
        DeviceFailedError: the model does not run here any more, whatever the image.
        StorageError: the store failed after all retries.
    """
    place_B: list[tuple[int, int]] = []  # of the image, of the sample in it
    probs = [np.zeros((0, predictor.num_classes), np.float32)]
    embeddings: list[npt.NDArray[np.float32]] = []
    failures: list[tuple[int, NoPrediction]] = []
    with closing(predict_stream(found, predictor)) as stream:
        for one in stream:
            if isinstance(one, Decoded):
                assert one.error is not None, "else it has samples"
                outcome = outcome_of(one.error, uris[one.index], one.format)
                failures.append((0, NoPrediction(one.index, *outcome)))
                continue
            ok_B = one.predictions.ok_B
            for row, sample in enumerate(one.samples):
                if ok_B[row]:
                    place_B.append((sample.index, sample.crop.sample))
                else:
                    reason = one.predictions.error_by_row[row]
                    failure = NoPrediction(sample.index, Status.MODEL_ERROR, reason)
                    failures.append((sample.crop.sample, failure))
            probs.append(one.predictions.probs_BK[ok_B])
            if one.predictions.embedding_BE is not None:
                embeddings.append(one.predictions.embedding_BE[ok_B])
    order_B = sorted(range(len(place_B)), key=place_B.__getitem__)
    return Collected(
        index_B=np.array([place_B[row][0] for row in order_B], np.int64),
        probs_BK=np.concatenate(probs)[order_B],
        embedding_BE=np.concatenate(embeddings)[order_B] if embeddings else None,
        failures=[one for _, one in sorted(failures, key=lambda item: (item[1].index, item[0]))],
    )
