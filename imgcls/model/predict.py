"""Run a bundle on batches: uint8 images in, classes and probabilities out.

In: a Bundle, uint8 [n,C,P,P]. Out: Predictions, numpy arrays of n rows, in the order of the batch.
Invariant: one image's prediction does not depend on what else is in its batch: every forward pass
has the same shape, a short batch is padded and its padding thrown away.

Shape legend: B batch, C channel, P image_px, K top-k, N classes, E embedding.
"""

import threading
from dataclasses import dataclass

import numpy as np
import torch

from imgcls.config.values import Precision
from imgcls.errors import ConfigError
from imgcls.model.artifact import Bundle
from imgcls.model.build import register_embedding_hook
from imgcls.model.engine import choose_engine, pad


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row per image of the batch.

    label_B int64, confidence_B float32, topk_label_BK int32, topk_prob_BK float32 (falling),
    probs_BN float32, embedding_BE float32 or None. A row whose logits are not finite has `finite_B`
    False.
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

    `engine` names it: `compiled bf16 on cpu`.

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
    ) -> None:
        self.device = pick_device(device)
        self.batch_size = batch_size
        self.num_classes = len(bundle.class_names)
        self.top_k = min(top_k, self.num_classes)
        engine = choose_engine(
            bundle,
            self.device,
            precision=precision,
            batch_size=batch_size,
            num_images=num_images,
            embedding=embedding,
        )
        self.engine = engine.name
        self._model = engine.forward
        # One batch at a time: shards overlap in threads, and two forward passes only share cores.
        self._lock = threading.Lock()
        self._embedding = register_embedding_hook(engine.module, bundle.arch) if embedding else None

    def predict(self, x_BCHW: np.ndarray | torch.Tensor) -> Predictions:
        """Classify uint8 [n,C,P,P], 1 <= n <= batch_size.

        The forward pass always has batch_size rows, so that one shape is compiled and a row's
        numbers do not depend on how full its batch was.
        """
        num_rows = len(x_BCHW)
        if not 1 <= num_rows <= self.batch_size:
            raise ValueError(f"a batch has 1 to {self.batch_size} images, not {num_rows}")
        x_BCHW = pad(torch.as_tensor(x_BCHW), self.batch_size).to(self.device)
        embedding_BE = None
        with self._lock, torch.inference_mode():
            logits_BN = self._model(x_BCHW)[:num_rows]
            if self._embedding is not None:
                embedding_BE = self._embedding()[:num_rows].float().cpu().numpy()
            probs_BN = logits_BN.softmax(dim=1)
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

    def run_network(self, x_BCHW: torch.Tensor, num_times: int) -> None:
        """Run the network alone on a full batch, for measurements: the limit of `predict`."""
        x_BCHW = x_BCHW.to(self.device)
        with self._lock, torch.inference_mode():
            for _ in range(num_times):
                self._model(x_BCHW)
            if self.device.type == "cuda":
                torch.cuda.synchronize()


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
