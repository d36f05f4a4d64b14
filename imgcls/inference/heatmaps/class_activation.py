"""Class activation: the share that each place of the last feature map has in a logit, in one pass.

In: a network, inputs, labels. Out: a map [h,w] for each input. Invariant: it is used only where it
was seen to be exact: the network's own embedding must come from the last feature map by one of the
`Readout`s, on the golden images of the bundle. So a network is allowed by what it computes, not by
its name, and one whose last layers do something else is refused.

Zhou et al. 2016, "Learning Deep Features for Discriminative Localization"; of networks that end in
a mean and one linear layer Grad-CAM (Selvaraju et al. 2017) is the same without its gradient.

Where classes exclude each other, the mean of all logits is taken off a logit: to add one number to
all of them changes no answer, so it must not change a map.

Shape legend: B batch, E embedding, h w height and width of the feature map, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imgcls.image.decoded import Pixels
from imgcls.inference.backends.features import Tap, TapPoints

# Of the largest value; fp32 sums of a few thousand places differ by less.
_TOLERANCE: Final = 1e-3
_NUM_SEEN: Final = 2  # golden images that tell what a place sees

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """How an embedding comes from the last feature map.

    mean: of all places. max: over all places. norm_mean: the mean, then a layer norm.
    """

    kind: Literal["mean", "max", "norm_mean"]
    norm: nn.LayerNorm | None = None

    def embedding(self, map_BEhw: Tensor) -> Tensor:
        """Return what it makes of a feature map, [B,E]."""
        match self.kind:
            case "mean":
                return map_BEhw.mean(dim=(2, 3))
            case "max":
                return map_BEhw.amax(dim=(2, 3))
            case "norm_mean":
                assert self.norm is not None
                shape = self.norm.normalized_shape
                of_map_BE = map_BEhw.mean(dim=(2, 3))
                norm = self.norm
                return nn.functional.layer_norm(of_map_BE, shape, norm.weight, norm.bias, norm.eps)

    def shares(self, map_BEhw: Tensor, weight_BE: Tensor) -> Tensor:
        """Return [B,h,w], which sum to the logit up to a constant of the input.

        Args:
            map_BEhw: the last feature map.
            weight_BE: of the logit that is asked for.
        """
        match self.kind:
            case "mean":
                seen = map_BEhw
            case "max":  # a channel is the vote of the place where it is highest
                flat = map_BEhw.flatten(2)
                best = flat.argmax(dim=2, keepdim=True)
                votes = torch.zeros_like(flat).scatter(2, best, flat.gather(2, best))
                seen = votes.view_as(map_BEhw)
            case "norm_mean":  # by the scale that the norm has for this input
                assert self.norm is not None
                of_map_BE = map_BEhw.mean(dim=(2, 3))
                scale_B1 = (
                    of_map_BE.var(dim=1, keepdim=True, correction=0) + self.norm.eps
                ).rsqrt()
                if self.norm.elementwise_affine:
                    weight_BE = weight_BE * self.norm.weight
                weight_BE = weight_BE * scale_B1
                seen = map_BEhw - map_BEhw.mean(dim=1, keepdim=True)
        num_added = 1 if self.kind == "max" else map_BEhw.shape[2] * map_BEhw.shape[3]
        return torch.einsum("behw,be->bhw", seen, weight_BE) / num_added


class ClassActivation:
    """Makes maps of inputs with a network of its own, so that others run as fast as they can.

    Args:
        network: uint8 or float32 [B,C,H,W] -> logits, in fp32, on its device.
        points: where it is tapped.
        readout: what `find_readout` found.
        multi_label: each class is by itself.
        shift_px: what `find_shift` found.
    """

    name = "class activation"
    num_passes = 1

    def __init__(
        self,
        network: nn.Module,
        points: TapPoints,
        readout: Readout,
        *,
        multi_label: bool,
        shift_px: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.shift_px = shift_px
        self._network, self._tap, self._readout = network, Tap(network, points), readout
        head = network.get_submodule(points.head)
        weight_KE = torch.as_tensor(head.weight).detach().flatten(1).float()
        self._weight_KE = weight_KE if multi_label else weight_KE - weight_KE.mean(dim=0)

    def maps(self, x_BCHW: Pixels, label_B: npt.NDArray[np.int64]) -> list[Floats]:
        """Return a map of each input: what speaks for its label is above zero."""
        device = self._weight_KE.device
        with torch.inference_mode():
            self._network(torch.from_numpy(x_BCHW).to(device))
            map_BEhw = self._tap.read().map_BEhw
            assert map_BEhw is not None, "such a network has one"
            weight_BE = self._weight_KE[torch.from_numpy(label_B).to(device)]
            shares_Bhw = self._readout.shares(map_BEhw, weight_BE)
        return list(shares_Bhw.cpu().numpy())


def find_readout(network: nn.Module, points: TapPoints, x_BCHW: Tensor) -> Readout | None:
    """Return how the network's embedding comes from its last feature map, None for in no such way.

    Args:
        network: in evaluation mode.
        points: where it is tapped.
        x_BCHW: the inputs to see it by, on its device.
    """
    # In a transformer each place has seen all others: what it holds need not be of that place.
    head = network.get_submodule(points.head)
    if not points.last_map or points.layout == "tokens" or not isinstance(head, nn.Linear):
        return None
    tap = Tap(network, points)
    with torch.inference_mode():
        logits_BK = network(x_BCHW)
        found = tap.read()
        tap.remove()
        assert found.map_BEhw is not None
        width = found.map_BEhw.shape[1]
        is_last = _are_close(head(found.embedding_BE), logits_BK)
        if found.embedding_BE.shape[1] != width or not is_last:
            return None
        for readout in _candidates(network, width):
            if _are_close(readout.embedding(found.map_BEhw), found.embedding_BE):
                return readout
    return None


def find_shift(network: nn.Module, points: TapPoints, x_BCHW: Tensor) -> tuple[float, float]:
    """Return how far right and below of its cell lies what a place of the feature map sees.

    A convolution of 3 x 3 with stride 2, padded on both sides, sees around the first pixel of each
    two and not between them: after five of them that is half a cell, 16 pixels. So it is measured,
    by where the gradient of two cells in the middle lies. What an input shows where moves that,
    too: each is also seen turned by half, which cancels it.

    Args:
        network: in evaluation mode.
        points: where it is tapped.
        x_BCHW: the inputs to see it by, on its device; the first few are enough.
    """
    tap = Tap(network, points)
    x_BCHW = x_BCHW[:_NUM_SEEN].float()
    x_BCHW = torch.cat([x_BCHW, x_BCHW.flip(2, 3)]).requires_grad_()
    with torch.enable_grad():
        network(x_BCHW)
        map_BEhw = tap.read().map_BEhw
    tap.remove()
    assert map_BEhw is not None
    rows, columns = map_BEhw.shape[2:]
    middle = rows // 2, columns // 2
    found = []
    for row, column in (middle, (rows - 1 - middle[0], columns - 1 - middle[1])):
        cell = map_BEhw[:, :, row, column].square().sum()
        [gradient_BCHW] = torch.autograd.grad(cell, x_BCHW, retain_graph=True)
        weight_BHW = gradient_BCHW.square().sum(dim=1).double().cpu().numpy()
        x_B = _beside(weight_BHW.sum(axis=1), column, columns)
        found.append((x_B.mean(), _beside(weight_BHW.sum(axis=2), row, rows).mean()))
    x, y = np.mean(found, axis=0)
    half_x, half_y = x_BCHW.shape[3] / columns / 2, x_BCHW.shape[2] / rows / 2
    return float(np.clip(x, -half_x, half_x)), float(np.clip(y, -half_y, half_y))


def _beside(weight_BS: npt.NDArray[np.float64], at: int, num_cells: int) -> npt.NDArray[np.float64]:
    """Return how far the middle of the weights of each input lies beside a cell."""
    side = weight_BS.shape[1]
    total_B = weight_BS.sum(axis=1)
    cell_px = (at + 0.5) * side / num_cells
    sees_B = weight_BS @ (np.arange(side) + 0.5) / np.where(total_B > 0, total_B, 1.0)
    return np.where(total_B > 0, sees_B - cell_px, 0.0)


def _are_close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max())


def _candidates(network: nn.Module, width: int) -> Iterator[Readout]:
    yield from (Readout("mean"), Readout("max"))
    for module in network.modules():
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == (width,):
            yield Readout("norm_mean", module)
