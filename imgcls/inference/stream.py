"""The predict stream: decoded images in, samples with their predictions out.

In: `Decoded`, in any order; a Predictor. Out: those that gave no crops, as they are; of the others
`Predicted`, several samples at a time. Invariant: every crop that comes in is predicted once, and
every sample comes out once, when all of its crops are predicted.

Scoring, evaluation, and the measurement at the end of a training all predict by this:

    requests -> crops (DecoderPool) -> batches -> Predictor -> samples

A sample is one crop, or, of a bundle that pools, all crops of one image with the same
`Crop.sample`: its *instances*, such as the tiles of a picture. Batches are filled over the borders
of images; while some are being predicted the next one fills.

Shape legend: B sample or crop, I instance, K classes, E embedding.
"""

import heapq
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from imgcls.image.decoded import Pixels
from imgcls.image.decoders.pool import Crop, Decoded
from imgcls.inference.predictor import Predictions, Predictor
from imgcls.metrics.pooling import best_instance, loudness, pool


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What gets one answer."""

    index: int
    """That of the `Decoded` it is of."""
    format: str | None
    """That of the `Decoded`."""
    crop: Crop
    """What the model saw; of several instances the one that speaks loudest."""
    instances: "Instances | None" = None
    """Where the bundle pools."""

    @property
    def looked_at(self) -> Crop:
        """The crop that carries what was seen of the frame that speaks loudest."""
        if self.instances is None or self.crop.looks is not None:
            return self.crop
        same = (crop for crop in self.instances.crops if crop.frame == self.crop.frame)
        return next((crop for crop in same if crop.looks is not None), self.crop)


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The crops of one sample and what the model says of each."""

    crops: Sequence[Crop]
    probs_IK: npt.NDArray[np.float32]
    best: int
    """The one that speaks loudest."""
    loudest: Sequence[Crop] = ()
    """Those that speak loudest, with their pixels, where they are wanted."""


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Some samples, and their predictions, a row each."""

    samples: Sequence[Sample]
    predictions: Predictions
    num_crops: int
    """How many crops were predicted for them."""


def predict_stream(
    found: Iterable[Decoded], predictor: Predictor, *, num_kept: int = 0
) -> Generator[Decoded | Predicted]:
    """Predict what was decoded; yield failures at once, and samples as they are done.

    Args:
        found: what was decoded.
        predictor: of a bundle that decoded so.
        num_kept: of how many instances of a sample the pixels are kept, those that speak loudest.

    Raises:
        DeviceFailedError: the model does not run here any more, whatever the image.
    """
    batches = _Batches(predictor)
    samples = _Pooled(predictor, num_kept) if predictor.bundle.pooling else _Single()
    try:
        for decoded in found:
            if decoded.error is not None:
                yield decoded
                continue
            samples.expect(decoded)
            for crop in decoded.crops:
                for done in batches.add(decoded, crop):
                    yield samples.take(*done)
        for done in batches.finish():
            yield samples.take(*done)
    finally:
        batches.cancel()


_Crops = list[tuple[Decoded, Crop]]
_Done = tuple[_Crops, Predictions]


class _Single:
    """Makes a sample of every crop."""

    def expect(self, decoded: Decoded) -> None:
        """Be told of an image before its crops."""

    def take(self, crops: _Crops, predictions: Predictions) -> Predicted:
        """Return the samples of a batch."""
        samples = [Sample(decoded.index, decoded.format, crop) for decoded, crop in crops]
        return Predicted(samples, predictions, len(crops))


@dataclass(slots=True)
class _Open:
    """A sample, some of whose instances are not predicted yet."""

    num_crops: int = 0
    crops: list[Crop] = field(default_factory=list)
    probs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    embeddings: list[npt.NDArray[np.float32]] = field(default_factory=list)
    sketches: list[npt.NDArray[np.float32]] = field(default_factory=list)
    kept: list[tuple[float, float, int, Crop]] = field(default_factory=list)
    """A heap of the loudest instances."""
    error: str = ""


class _Pooled:
    """Makes a sample of all crops of an image with one number, once they are predicted.

    A sample of which one instance cannot be predicted has no prediction: a picture is not "good"
    because its only scratch was not looked at. Its embedding is the mean of its instances', and so
    is its sketch.
    """

    def __init__(self, predictor: Predictor, num_kept: int) -> None:
        self._bundle, self._top_k = predictor.bundle, predictor.top_k
        self._num_kept = num_kept
        self._open: dict[tuple[int, int], _Open] = {}

    def expect(self, decoded: Decoded) -> None:
        """Count an image's instances, before they come."""
        for crop in decoded.crops:
            self._open.setdefault((decoded.index, crop.sample), _Open()).num_crops += 1

    def take(self, crops: _Crops, predictions: Predictions) -> Predicted:
        """Return the samples of which a batch had the last instance."""
        whole: list[tuple[Sample, _Open]] = []
        bundle = self._bundle
        loudness_B2 = loudness(
            predictions.probs_BK, multi_label=bundle.multi_label, background=bundle.background
        )
        for row, (decoded, crop) in enumerate(crops):
            key = (decoded.index, crop.sample)
            found = self._open[key]
            # Without its pixels: a picture may have a thousand tiles.
            found.crops.append(replace(crop, x_CHW=crop.x_CHW[:0]))
            found.probs.append(predictions.probs_BK[row])
            if self._num_kept:
                self._keep(found, crop, loudness_B2[row])
            if predictions.embedding_BE is not None:
                found.embeddings.append(predictions.embedding_BE[row])
            if predictions.sketch_BS is not None:
                found.sketches.append(predictions.sketch_BS[row])
            if row in predictions.error_by_row and not found.error:
                found.error = _describe_failure(predictions.error_by_row[row], crop)
            if len(found.crops) == found.num_crops:
                del self._open[key]
                whole.append((self._close(decoded, found), found))
        return Predicted([sample for sample, _ in whole], self._pool(whole), len(crops))

    def _keep(self, found: _Open, crop: Crop, loudness_2: npt.NDArray[np.float64]) -> None:
        """Keep the pixels of the latest instance while it is among the loudest."""
        first, second = loudness_2.tolist()
        push = heapq.heappush if len(found.kept) < self._num_kept else heapq.heappushpop
        push(found.kept, (first, second, -len(found.probs), crop))

    def _close(self, decoded: Decoded, found: _Open) -> Sample:
        probs_IK = np.stack(found.probs)
        bundle = self._bundle
        best = best_instance(probs_IK, multi_label=bundle.multi_label, background=bundle.background)
        # Copies: all tiles of a picture lie in one piece of memory.
        loudest = tuple(
            replace(crop, x_CHW=crop.x_CHW.copy()) for *_, crop in sorted(found.kept, reverse=True)
        )
        instances = Instances(found.crops, probs_IK, best, loudest)
        return Sample(decoded.index, decoded.format, found.crops[best], instances)

    def _pool(self, whole: list[tuple[Sample, _Open]]) -> Predictions:
        bundle = self._bundle
        assert bundle.pooling, "such samples are pooled"
        pooled, embeddings = [np.zeros((0, len(bundle.class_names)), np.float32)], []
        sketches: list[npt.NDArray[np.float32]] = []
        for sample, found in whole:
            assert sample.instances is not None
            probs_K = pool(
                sample.instances.probs_IK,
                bundle.pooling,
                multi_label=bundle.multi_label,
                background=bundle.background,
            )
            pooled.append(probs_K[None])
            if found.embeddings:
                embeddings.append(np.mean(found.embeddings, axis=0, dtype=np.float32))
            if found.sketches:
                sketches.append(np.mean(found.sketches, axis=0, dtype=np.float32))
        return Predictions.of_probs(
            np.concatenate(pooled),
            self._top_k,
            embedding_BE=np.stack(embeddings) if embeddings else None,
            sketch_BS=np.stack(sketches) if sketches and len(sketches) == len(whole) else None,
            error_by_row={row: of.error for row, (_, of) in enumerate(whole) if of.error},
        )


def _describe_failure(reason: str, crop: Crop) -> str:
    where = "" if crop.frame is None else f" of frame {crop.frame}"
    if crop.place is not None:
        x_px, y_px, width_px, height_px = crop.place
        where += f" at x={x_px}, y={y_px}, {width_px}x{height_px} px"
    return f"one part of it{where}: {reason}"


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Memory for a batch, pinned where the model is on a GPU, and what lies in its first rows."""

    x_BCHW: Pixels
    crops: _Crops


class _Batches:
    """Batches on their way: filling, running through the model, done.

    Their memory is used again and again: to ask for 2 MB each time, and 19 MB for a GPU, costs more
    than to fill them.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._filling: _Batch | None = None
        self._running: deque[tuple[_Batch, Future[Predictions]]] = deque()
        self._free: list[Pixels] = []

    def add(self, decoded: Decoded, crop: Crop) -> Iterator[_Done]:
        """Add one crop; a full batch goes to the model, and waits when it has enough to do."""
        if self._filling is None:
            x_BCHW = self._free.pop() if self._free else self._predictor.new_batch(crop.x_CHW)
            self._filling = _Batch(x_BCHW, [])
        x_CHW = self._filling.x_BCHW[len(self._filling.crops)]
        assert crop.x_CHW.shape == x_CHW.shape, f"a crop of {crop.x_CHW.shape}, not {x_CHW.shape}"
        assert crop.x_CHW.dtype == x_CHW.dtype, f"a crop of {crop.x_CHW.dtype}, not {x_CHW.dtype}"
        x_CHW[:] = crop.x_CHW
        self._filling.crops.append((decoded, crop))
        if len(self._filling.crops) < self._predictor.batch_size:
            return
        self._submit()
        while len(self._running) > self._predictor.num_streams or self._is_first_done():
            yield self._take_first()

    def finish(self) -> Iterator[_Done]:
        """Predict what is left, and wait for all of it."""
        self._submit()
        while self._running:
            yield self._take_first()

    def cancel(self) -> None:
        """Let go of what is not predicted yet."""
        for _, predictions in self._running:
            predictions.cancel()

    def _submit(self) -> None:
        batch, self._filling = self._filling, None
        if batch is not None:
            x_BCHW = batch.x_BCHW[: len(batch.crops)]
            self._running.append((batch, self._predictor.submit(x_BCHW)))

    def _is_first_done(self) -> bool:
        return bool(self._running) and self._running[0][1].done()

    def _take_first(self) -> _Done:
        batch, running = self._running.popleft()
        predictions = running.result()
        self._free.append(batch.x_BCHW)  # the device has read it: its answers are here
        return batch.crops, predictions
