"""Labels beside plain fp32, and the memory of all processes of a scoring run.

In: a bundle, a predictor, crops; or a piece of work. Out: figures. Invariant: none of them is a
time, and what is timed does not wait for them.

Shape legend: B image, C channels, H height, W width, K classes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imgcls.inference.backends.network import Network
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.predictor import Predictor
from imgcls.model.bundle import Bundle, to_probs

_SAMPLE_EVERY_S = 0.25
_EAGER_BATCH_SIZE = 16


def label_agreement(bundle: Bundle, predictor: Predictor, x_BCHW: torch.Tensor) -> dict[str, Any]:
    """Compare the predictor with a plain eager fp32 loop on the CPU over the same crops.

    An image's label is the class on top; of a multi-label model it is all the classes that reach
    their thresholds.

    Args:
        bundle: the model.
        predictor: what scoring runs.
        x_BCHW: uint8 crops, any number.

    Returns:
        {"num_images", "num_equal_labels", "fraction", "largest_difference"}, the last of any
        probability.
    """
    network = Network(bundle.to_model(), bundle.preprocess_spec, "fp32").eval()
    with torch.inference_mode():
        starts = range(0, len(x_BCHW), _EAGER_BATCH_SIZE)
        parts = [network(x_BCHW[start : start + _EAGER_BATCH_SIZE]) for start in starts]
        expected_BK = to_probs(torch.cat(parts), multi_label=bundle.multi_label).numpy()
    probs_BK = predictor.predict_all(x_BCHW).probs_BK
    labels = map(DecisionRule.of(bundle).labels, (probs_BK, expected_BK))
    num_equal = sum(one == other for one, other in zip(*labels, strict=True))
    return {
        "num_images": len(x_BCHW),
        "num_equal_labels": num_equal,
        "fraction": round(num_equal / len(x_BCHW), 4),
        "largest_difference": float(np.abs(probs_BK - expected_BK).max()),
    }


class PeakMemory:
    """The most memory that this process and its children held together.

    Shared pages count once (PSS of /proc/PID/smaps_rollup, proc(5)), sampled four times a second.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._is_done = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample while the body runs."""
        thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_done.set()
            thread.join()

    def _sample(self) -> None:
        while True:
            pids = _with_children("self")
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, pids)))
            if self._is_done.wait(_SAMPLE_EVERY_S):
                return


def _with_children(pid: str) -> list[str]:
    """Return a process and all below it; one that ends meanwhile is left out."""
    pids = [pid]
    try:
        threads = list(Path("/proc", pid, "task").iterdir())
        for thread in threads:
            for child in (thread / "children").read_text().split():
                pids += _with_children(child)
    except OSError:
        return pids
    return pids


def _pss_bytes(pid: str) -> int:
    try:
        text = Path("/proc", pid, "smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))
