"""Run a bundle on batches: uint8 images in, classes and probabilities out.

In: a Bundle, uint8 [n,C,P,P]. Out: Predictions, numpy arrays of n rows, in the order of the batch.
Invariant: one image's prediction does not depend on what else is in its batch: every forward pass
has the same shape, a short batch is padded and its padding thrown away. Where memory is short, that
shape is a smaller one from then on: probabilities then differ in their last digits, as they do
between two machines.

A CPU runs several batches at a time, a core or more each: threads that share a batch wait for the
slowest of them at every layer, and a decoder that takes a core for a moment makes all of them wait.
A GPU runs two, so that one is copied while the other is computed.

Shape legend: B batch, C channel, P image_px, K top-k, N classes, E embedding.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from imgcls.config.choices import Precision
from imgcls.errors import ConfigError, DeviceFailedError
from imgcls.inference import int8
from imgcls.inference.backend import choose_engine, describe_miss, pad
from imgcls.inference.passes import Failure, Found, Passes, describe_error
from imgcls.metrics.top_classes import top_labels
from imgcls.model.architectures import register_embedding_hook
from imgcls.model.bundle import Bundle, to_probs

# Images per forward pass. A CPU's should fit its caches: ResNet-18 in bf16 on 2 cores runs at 87
# images/s by 32, at 92 by 16. A GPU must be filled.
_CPU_BATCH_SIZE: Final = 16
_GPU_BATCH_SIZE: Final = 128
# Batches at a time on a CPU: each holds its own activations, a few hundred MB for large networks.
_MAX_CPU_STREAMS: Final = 8
_GPU_STREAMS: Final = 2
_NOT_FINITE: Final = "the model's output is not finite"
# Where the driver of NVIDIA GPUs shows them.
_NVIDIA_DEVICES: Final = ("/dev", "nvidia[0-9]*")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row per image of the batch.

    label_B int64, confidence_B float32, topk_label_BK int32, topk_prob_BK float32 (falling),
    probs_BN float32, embedding_BE float32 or None. label_B is the class with the highest
    probability, of multi-label models too. A row in `error_by_row` has no prediction, but the
    reason for that, and no meaning otherwise.
    """

    label_B: np.ndarray
    confidence_B: np.ndarray
    topk_label_BK: np.ndarray
    topk_prob_BK: np.ndarray
    probs_BN: np.ndarray
    embedding_BE: np.ndarray | None
    error_by_row: Mapping[int, str] = field(default_factory=dict)

    @property
    def ok_B(self) -> npt.NDArray[np.bool_]:
        """Whether each row is a prediction."""
        ok_B = np.ones(len(self.label_B), bool)
        ok_B[list(self.error_by_row)] = False
        return ok_B


class Predictor:
    """A bundle's model on one device, run by the engine that `choose_engine` proved.

    `engine` names it: `compiled bf16 on cpu`; `precision` is its arithmetic. `num_streams` batches
    run at a time, on threads of its own, which share out the cores that torch may use where it is
    made. Thread-safe.

    Raises:
        ConfigError: `device` is "cuda" and there is none.
        BundleError: the model does not reproduce the bundle's golden probabilities on this device,
            or not in the precision asked for.
        DeviceFailedError: there is no memory for one image, or the device fails.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        top_k: int = 5,
        embedding: bool = False,
        precision: Precision = "fp32",
        num_images: int | None = None,
        num_streams: int = 1,
        int8_network: bytes | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.batch_size = batch_size
        # The embedding is what the latest forward pass left behind: there may be but one.
        self.num_streams = 1 if embedding else num_streams
        num_cores = torch.get_num_threads()
        self._streams = ThreadPoolExecutor(
            self.num_streams,
            thread_name_prefix="predict",
            initializer=set_num_threads,
            initargs=(max(1, num_cores // self.num_streams),),
        )
        self._of_thread = threading.local()
        self._lock = threading.Lock()  # of the seconds alone
        self._busy_s = 0.0
        self._started_s: dict[int, float] = {}  # of batches at work, by thread
        self.num_classes = len(bundle.class_names)
        self._multi_label = bundle.multi_label
        self.top_k = min(top_k, self.num_classes)
        # Where it will run: code is compiled for a number of threads.
        chosen = self._streams.submit(
            choose_engine,
            bundle,
            self.device,
            precision=precision,
            batch_size=batch_size,
            num_images=num_images,
            num_streams=self.num_streams,
            num_cores=num_cores,
            int8_network=int8_network,
            embedding=embedding,
        )
        try:
            engine = chosen.result()
        except Exception as error:
            self.close()
            if Failure.of(error).is_out_of_memory:
                raise DeviceFailedError(
                    f"out of memory while the model is made ready: {describe_error(error)}"
                ) from error
            raise
        self.engine, self.precision = engine.name, engine.precision
        self._proven, self._model = engine, engine.forward
        self._embedding = register_embedding_hook(engine.module, bundle.arch) if embedding else None
        # Without its weights, which the engine has.
        self._golden = replace(bundle, state_dict={}, attachments={})
        self._passes = Passes(engine.batch_size, self._check)
        if self.device.type != "cpu":
            # The weights came by another stream than the batches will.
            torch.cuda.synchronize(self.device)
            self._warm_up()

    def predict(self, x_BCHW: np.ndarray | torch.Tensor) -> Predictions:
        """Classify uint8 [n,C,P,P], 1 <= n <= batch_size.

        The forward pass always has batch_size rows, so that one shape is compiled and a row's
        numbers do not depend on how full its batch was; fewer where memory is short, see passes.py.

        Raises:
            DeviceFailedError: the model does not run here any more, whatever the image.
        """
        return self.submit(x_BCHW).result()

    def submit(self, x_BCHW: np.ndarray | torch.Tensor) -> Future[Predictions]:
        """Begin to `predict`; batches beyond `num_streams` wait for their turn, in order."""
        num_rows = len(x_BCHW)
        if not 1 <= num_rows <= self.batch_size:
            raise ValueError(f"a batch has 1 to {self.batch_size} images, not {num_rows}")
        return self._streams.submit(self._predict, torch.as_tensor(x_BCHW))

    def new_batch(self, shape_CHW: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Return memory for batch_size images, from which a GPU copies without waiting."""
        x_BCHW = torch.empty(
            (self.batch_size, *shape_CHW),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        memory: npt.NDArray[np.uint8] = x_BCHW.numpy()
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
        """Run some rows in a pass of `size`: probabilities, 0 if finite, embeddings."""
        # Outside of inference mode: code is compiled anew for tensors that were made inside.
        padded_BCHW, num_rows = pad(x_BCHW[rows], size), rows.stop - rows.start
        with self._on_own_cuda_stream(), torch.inference_mode():
            logits_BN = self._model(self._to_device(padded_BCHW))[:num_rows]
            # Exactly 0 where every logit is finite, else NaN.
            zero_B1 = (logits_BN * 0).sum(dim=1, keepdim=True)
            parts = [to_probs(logits_BN, multi_label=self._multi_label), zero_B1]
            if self._embedding is not None:
                parts.append(self._embedding()[:num_rows].float())
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
        probs_BN, zero_B = packed_BX[:, : self.num_classes], packed_BX[:, self.num_classes]
        if zero_B.any():
            error_by_row |= dict.fromkeys(np.flatnonzero(zero_B).tolist(), _NOT_FINITE)
        topk_label_BK = top_labels(probs_BN, self.top_k)
        topk_prob_BK = probs_BN[np.arange(len(probs_BN))[:, None], topk_label_BK]
        return Predictions(
            label_B=topk_label_BK[:, 0],
            confidence_B=topk_prob_BK[:, 0],
            topk_label_BK=topk_label_BK.astype(np.int32),
            topk_prob_BK=topk_prob_BK,
            probs_BN=probs_BN,
            embedding_BE=None if self._embedding is None else packed_BX[:, self.num_classes + 1 :],
            error_by_row=error_by_row,
        )

    def _check(self, size: int) -> None:
        """Raise DeviceFailedError unless the golden answers still come, in passes of `size`."""
        with self._on_own_cuda_stream():
            running = replace(self._proven, forward=self._model)
            miss, _ = describe_miss(running, self._golden, size)
        if miss:
            raise DeviceFailedError(f"{self.engine}, {size} images a pass: {miss}")

    def _warm_up(self) -> None:
        """Run all streams at a time: what memory they take together shows now, not in mid-run."""
        x_BCHW = self._golden.golden_x_BCHW[: self.batch_size]
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


def predictor_for_run(
    bundle: Bundle,
    *,
    device: str | torch.device,
    precision: Precision,
    batch_size: int,
    num_images: int,
    num_cpus: int,
    top_k: int = 5,
    embedding: bool = False,
    int8_network: bytes | None = None,
) -> Predictor:
    """Return the predictor of a worker: as its machine and the run suggest where nothing is asked.

    Args:
        bundle: the model.
        device: as for `Predictor`; so are `precision`, `top_k`, `embedding` and `int8_network`.
        precision: see `choose_engine`.
        batch_size: images per forward pass; 0 for what suits the device.
        num_images: how many the run has.
        num_cpus: how many cores this worker may use.
        top_k: how many classes to rank.
        embedding: give embeddings too.
        int8_network: the run's, for that precision.

    Raises:
        ConfigError, BundleError: as for `Predictor`.
    """
    place = pick_device(device)
    batch_size = choose_batch_size(place, batch_size, precision)
    if precision != "int8":
        # A forward pass has a fixed number of rows: of few images, no more than there are.
        batch_size = max(1, min(batch_size, num_images))
    return Predictor(
        bundle,
        device=device,
        batch_size=batch_size,
        top_k=top_k,
        embedding=embedding,
        precision=precision,
        num_images=num_images,
        num_streams=choose_num_streams(place, num_cpus, -(-num_images // batch_size)),
        int8_network=int8_network,
    )


def choose_batch_size(device: torch.device, batch_size: int, precision: Precision) -> int:
    """Return the images per forward pass: as asked, or, for 0, what suits the device."""
    if precision == "int8":
        return int8.BATCH_SIZE
    return batch_size or (_CPU_BATCH_SIZE if device.type == "cpu" else _GPU_BATCH_SIZE)


def choose_num_streams(device: torch.device, num_cpus: int, num_batches: int) -> int:
    """Return how many batches to run at a time: never more than there are."""
    most = min(num_cpus, _MAX_CPU_STREAMS) if device.type == "cpu" else _GPU_STREAMS
    return max(1, min(most, num_batches))


def set_num_threads(num_threads: int) -> None:
    """Let torch use this many CPU threads here; Ray and containers often say another number."""
    torch.set_num_threads(num_threads)


def pick_device(device: str | torch.device) -> torch.device:
    """Resolve "auto", "cpu" or "cuda"; ConfigError when "cuda" is asked for and absent.

    A device that is settled already is left as it is.
    """
    if isinstance(device, torch.device):
        return device
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
        folder, names = _NVIDIA_DEVICES
        if not has_cuda and any(Path(folder).glob(names)):
            _log.warning(
                "--device auto takes the CPU: this machine has an NVIDIA GPU (%s/%s), but torch "
                "cannot use it; look at its driver, or say --device cpu",
                folder,
                names,
            )
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda: this machine has no CUDA device; use --device cpu or auto"
        )
    return torch.device(device)
