"""Occlusion: hide part after part of a picture, and see how much its answer suffers.

In: a function that predicts, inputs, labels. Out: a map [h,w] for each input. Invariant: of the
network nothing is needed but its answers, so any network has such maps; each costs as many forward
passes as there are parts, or twice as many.

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks". What is hidden
becomes the mean colour of the input. A network may need but the rim of an object that is larger
than a part: then no part that is hidden changes its answer (of a small vision transformer the peak
lay in the object in 43 of 100 pictures). So where the answer hardly suffers, each part is also
shown by itself, with all others hidden (100 of 100).

The score is the logit less the mean of all logits, which probabilities give, too; of multi-label
models the logit itself.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from imgcls.image.decoded import Pixels

_GRID: Final = 8
"""Cells along the longer side; a part is two by two of them."""
_SUFFERS: Final = 0.25
"""Of what all parts together do to the score: so much one of them does alone."""
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
    shift_px = (0.0, 0.0)

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
        self._parts = [(y, x) for y in range(self._rows - 1) for x in range(self._columns - 1)]
        self._edges_y = np.linspace(0, height, self._rows + 1).round().astype(int)
        self._edges_x = np.linspace(0, width, self._columns + 1).round().astype(int)

    @property
    def num_passes(self) -> int:
        """Forward passes per map, at most."""
        return 2 * len(self._parts) + 2

    def maps(self, x_BCHW: Pixels, label_B: npt.NDArray[np.int64]) -> list[Floats]:
        """Return a map of each input: above zero where its places speak for the label."""
        return [self._map(x_CHW, int(label)) for x_CHW, label in zip(x_BCHW, label_B, strict=True)]

    def _map(self, x_CHW: Pixels, label: int) -> Floats:
        flat_CHW = np.empty_like(x_CHW)
        flat_CHW[:] = x_CHW.mean(axis=(1, 2)).astype(x_CHW.dtype)[:, None, None]
        hidden_NCHW = np.concatenate([x_CHW[None], flat_CHW[None], self._laid(flat_CHW, x_CHW)])
        whole, nothing, *hidden = self._scores(self._predict(hidden_NCHW), label)
        found_hw = self._spread(whole - np.array(hidden))
        if found_hw.max() < _SUFFERS * (whole - nothing):
            shown_N = self._scores(self._predict(self._laid(x_CHW, flat_CHW)), label)
            found_hw += self._spread(shown_N - nothing)
        return found_hw.astype(np.float32)

    def _laid(self, part_CHW: Pixels, over_CHW: Pixels) -> Pixels:
        """Return inputs [N,C,H,W]: each part of one picture laid over another one."""
        laid_NCHW = np.repeat(over_CHW[None], len(self._parts), axis=0)
        for laid_CHW, (y, x) in zip(laid_NCHW, self._parts, strict=True):
            rows = slice(self._edges_y[y], self._edges_y[y + 2])
            columns = slice(self._edges_x[x], self._edges_x[x + 2])
            laid_CHW[:, rows, columns] = part_CHW[:, rows, columns]
        return laid_NCHW

    def _spread(self, value_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the mean of all parts that a cell is in, for each cell."""
        total_hw, times_hw = np.zeros((2, self._rows, self._columns))
        for (y, x), value in zip(self._parts, value_N, strict=True):
            total_hw[y : y + 2, x : x + 2] += value
            times_hw[y : y + 2, x : x + 2] += 1
        return total_hw / times_hw

    def _scores(self, probs_NK: Floats, label: int) -> npt.NDArray[np.float64]:
        p_NK = probs_NK.astype(np.float64).clip(_LEAST_PROB, 1.0)
        if self._multi_label:
            p_N = p_NK[:, label]
            return np.asarray(np.log(p_N) - np.log((1.0 - p_N).clip(_LEAST_PROB)))
        log_NK = np.log(p_NK)
        return np.asarray(log_NK[:, label] - log_NK.mean(axis=1))
