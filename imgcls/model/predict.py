"""Run a bundle on batches: uint8 images in, classes and probabilities out.

In: a Bundle, uint8 [n,C,P,P]. Out: Predictions, numpy arrays of n rows, in the order of the batch.
Invariant: one image's prediction does not depend on what else is in its batch: every forward pass
has the same shape, a short batch is padded and its padding thrown away.

A CPU runs several batches at a time, a core or more each: threads that share a batch wait for the
slowest of them at every layer, and a decoder that takes a core for a moment makes all of them wait.
A GPU runs two, so that one is copied while the other is computed.

Shape legend: B batch, C channel, P image_px, K top-k, N classes, E embedding.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from imgcls.config.values import Precision
from imgcls.errors import ConfigError
from imgcls.model import int8
from imgcls.model.artifact import Bundle, to_probs
from imgcls.model.build import register_embedding_hook
from imgcls.model.engine import choose_engine, pad

# Images per forward pass. A CPU's should fit its caches: ResNet-18 in bf16 on 2 cores runs at 87
# images/s by 32, at 92 by 16. A GPU must be filled.
_CPU_BATCH_SIZE: Final = 16
_GPU_BATCH_SIZE: Final = 128
# Batches at a time on a CPU: each holds its own activations, a few hundred MB for large networks.
_MAX_CPU_STREAMS: Final = 8
_GPU_STREAMS: Final = 2


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row per image of the batch.

    label_B int64, confidence_B float32, topk_label_BK int32, topk_prob_BK float32 (falling),
    probs_BN float32, embedding_BE float32 or None. A row whose logits are not finite has `finite_B`
    False. label_B is the class with the highest probability, of multi-label models too.
    """

    label_B: np.ndarray
    confidence_B: np.ndarray
    topk_label_BK: np.ndarray
    topk_prob_BK: np.ndarray
    probs_BN: np.ndarray
    finite_B: np.ndarray
    embedding_BE: np.ndarray | None


class Predictor:
    """A bundle's model on one device, run by the engine that `choose_engine` proved.

    `engine` names it: `compiled bf16 on cpu`; `precision` is its arithmetic. `num_streams` batches
    run at a time, on threads of its own, which share out the cores that torch may use where it is
    made. Thread-safe.

    Raises:
        ConfigError: `device` is "cuda" and there is none.
        BundleError: the model does not reproduce the bundle's golden probabilities on this device,
            or not in the precision asked for.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
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
        engine = self._streams.submit(
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
        ).result()
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # the weights came by another stream than the batches will
        self.engine, self.precision = engine.name, engine.precision
        self._model = engine.forward
        self._embedding = register_embedding_hook(engine.module, bundle.arch) if embedding else None

    def predict(self, x_BCHW: np.ndarray | torch.Tensor) -> Predictions:
        """Classify uint8 [n,C,P,P], 1 <= n <= batch_size.

        The forward pass always has batch_size rows, so that one shape is compiled and a row's
        numbers do not depend on how full its batch was.
        """
        return self.submit(x_BCHW).result()

    def submit(self, x_BCHW: np.ndarray | torch.Tensor) -> Future[Predictions]:
        """Begin to `predict`; batches beyond `num_streams` wait for their turn, in order."""
        num_rows = len(x_BCHW)
        if not 1 <= num_rows <= self.batch_size:
            raise ValueError(f"a batch has 1 to {self.batch_size} images, not {num_rows}")
        # Outside of inference mode: code is compiled anew for tensors that were made inside.
        padded_BCHW = pad(torch.as_tensor(x_BCHW), self.batch_size)
        return self._streams.submit(self._predict, padded_BCHW, num_rows)

    def close(self) -> None:
        """Let the threads go, without waiting for batches at work; those that wait are dropped."""
        self._streams.shutdown(wait=False, cancel_futures=True)

    def busy_s(self) -> float:
        """Return the seconds that all streams together were at work so far, for statistics."""
        with self._lock:
            now_s = time.perf_counter()
            return self._busy_s + sum(now_s - start_s for start_s in self._started_s.values())

    def _predict(self, x_BCHW: torch.Tensor, num_rows: int) -> Predictions:
        embedding_BE = None
        with self._counted(), self._on_own_cuda_stream(), torch.inference_mode():
            logits_BN = self._model(self._to_device(x_BCHW))[:num_rows]
            if self._embedding is not None:
                embedding_BE = self._embedding()[:num_rows].float().cpu().numpy()
            probs_BN = to_probs(logits_BN, multi_label=self._multi_label)
            top = probs_BN.topk(self.top_k, dim=1)
            finite_B = logits_BN.isfinite().all(dim=1)
            return Predictions(
                label_B=top.indices[:, 0].cpu().numpy(),
                confidence_B=top.values[:, 0].cpu().numpy(),
                topk_label_BK=top.indices.to(torch.int32).cpu().numpy(),
                topk_prob_BK=top.values.cpu().numpy(),
                probs_BN=probs_BN.cpu().numpy(),
                finite_B=finite_B.cpu().numpy(),
                embedding_BE=embedding_BE,
            )

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
    device: str,
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


def pick_device(device: str) -> torch.device:
    """Resolve "auto", "cpu" or "cuda"; ConfigError when "cuda" is asked for and absent."""
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda: this machine has no CUDA device; use --device cpu or auto"
        )
    return torch.device(device)
