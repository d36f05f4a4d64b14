"""Run a bundle on batches: images in, classes and probabilities out.

In: a bundle's facts, a backend, pixels 0..255 [n,C,H,W], uint8 or (depth 16)
float32. Out: Predictions, numpy arrays of n rows, in the
order of the batch. Invariant: one image's prediction does not depend on what else is in its batch:
every forward pass has the same shape, a short batch is padded and its padding thrown away. Where
memory is short, that shape is a smaller one from then on: probabilities then differ in their last
digits, as they do between two machines.

A CPU runs several batches at a time, a core or more each: threads that share a batch wait for the
slowest of them at every layer, and a decoder that takes a core for a moment makes all of them wait.
A GPU runs two, so that one is copied while the other is computed.

Shape legend: B batch, N images, C channels, H height, W width, K classes, T top-k, E embedding,
h w height and width of the feature map, S sketch.
"""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch

from imgcls.closing import Closing
from imgcls.errors import DeviceFailedError
from imgcls.image.decoded import Pixels
from imgcls.inference.backends.backend import Backend, pad
from imgcls.inference.backends.choose import choose_backend
from imgcls.inference.backends.demand import Demand
from imgcls.inference.backends.features import Features
from imgcls.inference.backends.golden_check import describe_miss
from imgcls.inference.device import set_num_threads
from imgcls.inference.passes import Failure, Found, Passes
from imgcls.inference.sketch import SKETCH_SIZE, projection_ES
from imgcls.metrics.top_classes import top_labels
from imgcls.model.bundle import Bundle, to_probs

_NOT_FINITE: Final = "the model's output is not finite"


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row per image of the batch.

    label_B int64, confidence_B float32, topk_label_BT int32, topk_prob_BT float32 (falling),
    probs_BK float32; embedding_BE and feature_map_BEhw float32, None where not asked for, or where
    the model has none (`Predictor.why_no_features`); sketch_BS likewise, see sketch.py. label_B is
    the class with the highest probability, of multi-label models too. A row in `error_by_row` has
    no prediction, but the reason for that, and no meaning otherwise.
    """

    label_B: npt.NDArray[np.int64]
    confidence_B: npt.NDArray[np.float32]
    topk_label_BT: npt.NDArray[np.int32]
    topk_prob_BT: npt.NDArray[np.float32]
    probs_BK: npt.NDArray[np.float32]
    embedding_BE: npt.NDArray[np.float32] | None = None
    feature_map_BEhw: npt.NDArray[np.float32] | None = None
    sketch_BS: npt.NDArray[np.float32] | None = None
    error_by_row: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of_probs(
        cls,
        probs_BK: npt.NDArray[np.float32],
        top_k: int,
        *,
        embedding_BE: npt.NDArray[np.float32] | None = None,
        feature_map_BEhw: npt.NDArray[np.float32] | None = None,
        sketch_BS: npt.NDArray[np.float32] | None = None,
        error_by_row: Mapping[int, str] | None = None,
    ) -> Self:
        """Rank the classes of each row, at most `top_k` of them."""
        topk_label_BT = top_labels(probs_BK, top_k)
        topk_prob_BT = probs_BK[np.arange(len(probs_BK))[:, None], topk_label_BT]
        return cls(
            label_B=topk_label_BT[:, 0],
            confidence_B=topk_prob_BT[:, 0],
            topk_label_BT=topk_label_BT.astype(np.int32),
            topk_prob_BT=topk_prob_BT,
            probs_BK=probs_BK,
            embedding_BE=embedding_BE,
            feature_map_BEhw=feature_map_BEhw,
            sketch_BS=sketch_BS,
            error_by_row=error_by_row or {},
        )

    @property
    def ok_B(self) -> npt.NDArray[np.bool_]:
        """Whether each row is a prediction."""
        ok_B = np.ones(len(self.label_B), bool)
        ok_B[list(self.error_by_row)] = False
        return ok_B


class Predictor(Closing):
    """A bundle's model as one backend runs it.

    `num_streams` batches run at a time, on threads of its own. Thread-safe. Use it as a context
    manager, or call `close`.

    Args:
        bundle: what the model says of itself, and the golden images to prove it with again; its
            weights are not kept.
        backend: what `choose_backend` returned for this bundle.
        top_k: how many classes to rank.

    Raises:
        DeviceFailedError: there is no memory for one image, or the device fails.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, top_k: int = 5) -> None:
        demand = backend.demand
        self.backend, self.device, self.batch_size = backend, demand.device, demand.batch_size
        self.num_streams = demand.num_streams
        self._streams = ThreadPoolExecutor(
            self.num_streams,
            thread_name_prefix="predict",
            initializer=set_num_threads,
            initargs=(demand.num_threads,),
        )
        self._of_thread = threading.local()
        self._lock = threading.Lock()  # of the seconds alone
        self._busy_s = 0.0
        self._started_s: dict[int, float] = {}  # of batches at work, by thread
        self.num_classes = len(bundle.class_names)
        self.top_k = min(top_k, self.num_classes)
        self._model, self._features = backend.forward, backend.features
        self._gives_sketch = demand.sketch and backend.features is not None
        self._signs_ES: torch.Tensor | None = None  # of sketches
        self._map_shape: tuple[int, ...] = ()  # of one image's feature map, once it was seen
        # Without its weights, which the backend has.
        self.bundle = replace(bundle, state_dict={}, attachments={})
        self._passes = Passes(backend.batch_size, self._check)
        if self.device.type != "cpu":
            # The weights came by another stream than the batches will.
            torch.cuda.synchronize(self.device)
            self._warm_up()

    @property
    def name(self) -> str:
        """What runs, for logs and results: `compiled bf16 on cpu`."""
        return self.backend.name

    @property
    def why_no_features(self) -> str:
        """Why features that were asked for are not there; "" where all are."""
        return self.backend.why_no_features

    @property
    def precision(self) -> str:
        """Its arithmetic."""
        return self.backend.precision

    def predict(self, x_BCHW: Pixels | torch.Tensor) -> Predictions:
        """Classify pixels [n,C,H,W], 1 <= n <= batch_size.

        The forward pass always has batch_size rows, so that one shape is compiled and a row's
        numbers do not depend on how full its batch was; fewer where memory is short, see passes.py.

        Raises:
            DeviceFailedError: the model does not run here any more, whatever the image.
        """
        return self.submit(x_BCHW).result()

    def submit(self, x_BCHW: Pixels | torch.Tensor) -> Future[Predictions]:
        """Begin to `predict`; batches beyond `num_streams` wait for their turn, in order."""
        num_rows = len(x_BCHW)
        if not 1 <= num_rows <= self.batch_size:
            raise ValueError(f"a batch has 1 to {self.batch_size} images, not {num_rows}")
        return self._streams.submit(self._predict, torch.as_tensor(x_BCHW))

    def predict_all(self, x_NCHW: Pixels | torch.Tensor) -> Predictions:
        """Classify any number of images that are in memory, one or more.

        Raises:
            DeviceFailedError: the model does not run here any more, whatever the image.
        """
        starts = range(0, len(x_NCHW), self.batch_size)
        running = [self.submit(x_NCHW[start : start + self.batch_size]) for start in starts]
        return join([done.result() for done in running], self.top_k)

    def new_batch(self, like_CHW: Pixels) -> Pixels:
        """Return memory for batch_size images like one, from which a GPU copies without waiting."""
        x_BCHW = torch.empty(
            (self.batch_size, *like_CHW.shape),
            dtype=getattr(torch, like_CHW.dtype.name),
            pin_memory=self.device.type == "cuda",
        )
        memory: Pixels = x_BCHW.numpy()
        return memory

    def close(self) -> None:
        """Let the threads go, without waiting for batches at work; those that wait are dropped."""
        self._streams.shutdown(wait=False, cancel_futures=True)

    def busy_s(self) -> float:
        """Return the seconds that all streams together were at work so far, for statistics."""
        with self._lock:
            now_s = time.perf_counter()
            return self._busy_s + sum(now_s - start_s for start_s in self._started_s.values())

    def _predict(self, x_BCHW: torch.Tensor) -> Predictions:
        with self._counted():
            found = self._passes.run(len(x_BCHW), partial(self._forward, x_BCHW))
            return self._to_predictions(found)

    def _forward(self, x_BCHW: torch.Tensor, rows: slice, size: int) -> npt.NDArray[np.float32]:
        """Run some rows in a pass of `size`: probabilities, 0 if finite, features."""
        # Outside of inference mode: for tensors that were made inside, code is compiled again.
        padded_BCHW, num_rows = pad(x_BCHW[rows], size), rows.stop - rows.start
        with self._on_own_cuda_stream(), torch.inference_mode():
            logits_BK = self._model(self._to_device(padded_BCHW))[:num_rows]
            # Exactly 0 where every logit is finite, else NaN.
            zero_B1 = (logits_BK * 0).sum(dim=1, keepdim=True)
            parts = [to_probs(logits_BK, multi_label=self.bundle.multi_label), zero_B1]
            if self._features is not None:
                parts += self._wanted(self._features(), num_rows)
            # In one piece: each copy from a device waits for all that it has to do.
            packed: npt.NDArray[np.float32] = torch.cat(parts, dim=1).cpu().numpy()
            return packed

    def _to_predictions(self, found: Found[npt.NDArray[np.float32]]) -> Predictions:
        error_by_row: dict[int, str] = {}
        parts: list[npt.NDArray[np.float32]] = []
        width = next((r.shape[1] for _, r in found if not isinstance(r, Failure)), None)
        for rows, result in found:
            if isinstance(result, Failure):
                error_by_row[rows.start] = f"the model fails on it: {result.reason}"
                result = np.zeros((1, width or self.num_classes + 1), np.float32)
            parts.append(result)
        packed_BX = parts[0] if len(parts) == 1 else np.concatenate(parts)
        probs_BK, zero_B = packed_BX[:, : self.num_classes], packed_BX[:, self.num_classes]
        if zero_B.any():
            error_by_row |= dict.fromkeys(np.flatnonzero(zero_B).tolist(), _NOT_FINITE)
        rest_BX, sketch_BS = packed_BX[:, self.num_classes + 1 :], None
        if self._gives_sketch and rest_BX.shape[1]:  # else the model failed on every image
            sketch_BS, rest_BX = rest_BX[:, :SKETCH_SIZE], rest_BX[:, SKETCH_SIZE:]
        embedding_BE, feature_map_BEhw = self._unpack(rest_BX)
        return Predictions.of_probs(
            probs_BK,
            self.top_k,
            embedding_BE=embedding_BE,
            feature_map_BEhw=feature_map_BEhw,
            sketch_BS=sketch_BS,
            error_by_row=error_by_row,
        )

    def _wanted(self, features: Features, num_rows: int) -> list[torch.Tensor]:
        """Return the features that were asked for, a row per image."""
        demand, wanted = self.backend.demand, []
        if demand.sketch:
            embedding_BE = features.embedding_BE[:num_rows]
            if self._signs_ES is None:  # once: the device waits for a copy
                signs_ES = torch.from_numpy(projection_ES(embedding_BE.shape[1]))
                self._signs_ES = signs_ES.to(embedding_BE.device)
            wanted.append(embedding_BE @ self._signs_ES)
        if demand.embedding:
            wanted.append(features.embedding_BE[:num_rows])
        if demand.feature_map and features.map_BEhw is not None:
            self._map_shape = tuple(features.map_BEhw.shape[1:])
            wanted.append(features.map_BEhw[:num_rows].flatten(1))
        return wanted

    def _unpack(
        self, packed_BX: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
        """Return embedding and feature map of what `_wanted` packed; None for what was not."""
        if self._features is None or not self.backend.demand.wants_features:
            return None, None
        start = packed_BX.shape[1] - math.prod(self._map_shape) if self._map_shape else None
        embedding_BE = packed_BX[:, :start] if self.backend.demand.embedding else None
        if not self._map_shape:
            return embedding_BE, None
        return embedding_BE, packed_BX[:, start:].reshape(-1, *self._map_shape)

    def _check(self, size: int) -> None:
        """Raise DeviceFailedError unless the golden answers still come, in passes of `size`."""
        with self._on_own_cuda_stream():
            running = replace(self.backend, forward=self._model)
            miss, _ = describe_miss(running, self.bundle, size)
        if miss:
            raise DeviceFailedError(f"{self.name}, {size} images a pass: {miss}")

    def _warm_up(self) -> None:
        """Run all streams at a time: what memory they take together shows now, not in mid-run."""
        x_BCHW = self.bundle.golden_x_BCHW[: self.batch_size]
        for done in [self.submit(x_BCHW) for _ in range(self.num_streams)]:
            done.result()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time inside as work, from its beginning on."""
        thread = threading.get_ident()
        with self._lock:
            self._started_s[thread] = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._busy_s += time.perf_counter() - self._started_s.pop(thread)

    def _to_device(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return x_BCHW.to(self.device)
        # From pinned memory, or else the copy waits for what the GPU computes.
        return x_BCHW.pin_memory().to(self.device, non_blocking=True)

    def _on_own_cuda_stream(self) -> AbstractContextManager[None]:
        """Let this thread's copies and kernels run beside those of the others."""
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._of_thread, "cuda_stream"):
            # type: torch leaves it untyped.
            self._of_thread.cuda_stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream: AbstractContextManager[None] = torch.cuda.stream(self._of_thread.cuda_stream)
        return stream

    def run_network(self, x_BCHW: torch.Tensor, num_times: int) -> None:
        """Run the network alone on full batches, for measurements: the limit of `predict`."""
        x_BCHW = x_BCHW.to(self.device)

        def run() -> None:
            with self._on_own_cuda_stream(), torch.inference_mode():
                self._model(x_BCHW)
                if self.device.type == "cuda":
                    torch.cuda.current_stream().synchronize()

        for done in [self._streams.submit(run) for _ in range(num_times)]:
            done.result()


def make_predictor(bundle: Bundle, demand: Demand, *, top_k: int = 5) -> Predictor:
    """Choose the backend that a demand asks for, and return what predicts with it.

    Raises:
        ConfigError, BundleError, DeviceFailedError: as for `choose_backend`.
    """
    return Predictor(bundle, choose_backend(bundle, demand), top_k=top_k)


def join(parts: list[Predictions], top_k: int) -> Predictions:
    """Return the rows of several predictions as one, in order."""
    if len(parts) == 1:
        return parts[0]
    embeddings = [part.embedding_BE for part in parts if part.embedding_BE is not None]
    maps = [part.feature_map_BEhw for part in parts if part.feature_map_BEhw is not None]
    sketches = [part.sketch_BS for part in parts if part.sketch_BS is not None]
    starts = np.cumsum([0, *(len(part.label_B) for part in parts)]).tolist()
    errors = {
        start + row: reason
        for start, part in zip(starts, parts, strict=False)
        for row, reason in part.error_by_row.items()
    }
    return Predictions.of_probs(
        np.concatenate([part.probs_BK for part in parts]),
        top_k,
        embedding_BE=np.concatenate(embeddings) if embeddings else None,
        feature_map_BEhw=np.concatenate(maps) if maps else None,
        sketch_BS=np.concatenate(sketches) if len(sketches) == len(parts) else None,
        error_by_row=errors,
    )
