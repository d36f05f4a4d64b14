"""A way to run a network, ready to be called: what `choose_backend` hands to a Predictor.

Shape legend: B batch, C channels, H height, W width, K classes, E embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgcls.inference.backends.demand import Demand, Kind
from imgcls.inference.backends.features import Features, TapPoints


@dataclass(frozen=True, eq=False)
class Backend:
    """A way to run a network on a device: pixels [B,C,H,W] 0..255 -> logits float32 [B,K].

    It was proven with B = `batch_size`: what was asked for, or less where memory is short.
    """

    forward: Callable[[Tensor], Tensor]
    module: nn.Module
    precision: str
    kind: Kind
    demand: Demand
    batch_size: int
    features: Callable[[], Features] | None = None
    """Gives the features of the calling thread's latest forward pass, where they are wanted."""
    points: TapPoints | None = None
    """Where the network is tapped for them."""
    why_no_features: str = ""
    """Why they are not there although they are wanted; "" where all are."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.demand.device

    @property
    def name(self) -> str:
        """What runs, for logs and results: `compiled bf16 on cpu`."""
        return f"{self.kind} {self.precision} on {self.device.type}"


def pad(x_BCHW: Tensor, batch_size: int) -> Tensor:
    """Fill a batch up with black images, so that every forward pass has the same shape."""
    num_rows = len(x_BCHW)
    if num_rows == batch_size:
        return x_BCHW
    return torch.cat([x_BCHW, x_BCHW.new_zeros((batch_size - num_rows, *x_BCHW.shape[1:]))])
