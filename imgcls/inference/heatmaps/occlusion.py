"""Occlusion: hide part after part of a picture, and see how much its answer suffers.

In: a function that predicts, inputs, labels. Out: a map [h,w] for each input. Invariant: of the
network nothing is needed but its answers, so any network has such maps; each costs as many forward
passes as there are parts.

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks". What is hidden
becomes the mean colour of the input. The score is the logit less the mean of all logits, which
probabilities give, too; of multi-label models the logit itself.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.image.decoded import Pixels

_GRID: Final = 8
"""Cells along the longer side; what is hidden at a time is two by two of them."""
_LEAST_PROB: Final = 1e-30

Floats = npt.NDArray[np.float32]


class Occlusion:
    """Makes maps of inputs by what predicts them anyway.

    Args:
        predict: inputs [N,C,H,W] -> probabilities [N,K], any number at a time.
        shape_CHW: of an input.
        multi_label: each class is by itself.
    """

    name = "occlusion"

    def __init__(
        self,
        predict: Callable[[Pixels], Floats],
        shape_CHW: tuple[int, int, int],
        *,
        multi_label: bool,
    ) -> None:
        self._predict, self._multi_label = predict, multi_label
        _, height, width = shape_CHW
        longer = max(height, width)
        self._rows = max(2, min(height, round(_GRID * height / longer)))
        self._columns = max(2, min(width, round(_GRID * width / longer)))
        self._edges_y = np.linspace(0, height, self._rows + 1).round().astype(int)
        self._edges_x = np.linspace(0, width, self._columns + 1).round().astype(int)

    @property
    def num_passes(self) -> int:
        """Forward passes per map."""
        return (self._rows - 1) * (self._columns - 1) + 1

    def maps(self, x_BCHW: Pixels, label_B: npt.NDArray[np.int64]) -> list[Floats]:
        """Return a map of each input: above zero where its places speak for the label."""
        return [self._map(x_CHW, int(label)) for x_CHW, label in zip(x_BCHW, label_B, strict=True)]

    def _map(self, x_CHW: Pixels, label: int) -> Floats:
        mean_C = x_CHW.mean(axis=(1, 2)).astype(x_CHW.dtype)
        windows = [(y, x) for y in range(self._rows - 1) for x in range(self._columns - 1)]
        x_NCHW = np.repeat(x_CHW[None], len(windows) + 1, axis=0)
        for hidden_CHW, (y, x) in zip(x_NCHW[1:], windows, strict=True):
            rows = slice(self._edges_y[y], self._edges_y[y + 2])
            columns = slice(self._edges_x[x], self._edges_x[x + 2])
            hidden_CHW[:, rows, columns] = mean_C[:, None, None]
        score_N = self._scores(self._predict(x_NCHW), label)
        total = np.zeros((self._rows, self._columns))
        times = np.zeros_like(total)
        for (y, x), score in zip(windows, score_N[1:], strict=True):
            total[y : y + 2, x : x + 2] += score_N[0] - score
            times[y : y + 2, x : x + 2] += 1
        return (total / times).astype(np.float32)

    def _scores(self, probs_NK: Floats, label: int) -> npt.NDArray[np.float64]:
        p_NK = probs_NK.astype(np.float64).clip(_LEAST_PROB, 1.0)
        if self._multi_label:
            p_N = p_NK[:, label]
            return np.asarray(np.log(p_N) - np.log((1.0 - p_N).clip(_LEAST_PROB)))
        log_NK = np.log(p_NK)
        return np.asarray(log_NK[:, label] - log_NK.mean(axis=1))
