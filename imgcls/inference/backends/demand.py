"""What is asked of a backend: where it runs, in which precision, how much at a time, for how many.

In: flags, the run's length, the machine. Out: a Demand. Invariant: a demand and a bundle decide on
the backend; two workers alike make the same demand.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

import torch

from imgcls.config.choices import Precision
from imgcls.inference.backends import int8
from imgcls.inference.device import pick_device

# Images per forward pass. A CPU's should fit its caches: ResNet-18 in bf16 on 2 cores runs at 87
# images/s by 32, at 92 by 16. A GPU must be filled.
_CPU_BATCH_SIZE: Final = 16
_GPU_BATCH_SIZE: Final = 128
# Batches at a time on a CPU: each holds its own activations, a few hundred MB for large networks.
_MAX_CPU_STREAMS: Final = 8
_GPU_STREAMS: Final = 2

Kind = Literal["eager", "folded", "compiled", "openvino"]


@dataclass(frozen=True, slots=True)
class Demand:
    """Where a network shall run, how, and for what."""

    device: torch.device
    precision: Precision = "fp32"
    """`auto` takes less than fp32 where that is faster here and proves itself; any other is taken
    or refused.
    """
    kind: Kind | None = None
    """What is to run it, settled by the worker that came first; another is taken where it cannot.
    """
    batch_size: int = 32
    """Rows of a forward pass; a backend takes fewer where memory is short."""
    num_images: int | None = None
    """How many will be predicted; None if unknown, which is taken for few."""
    num_streams: int = 1
    """Batches that run at a time."""
    num_cores: int = field(default_factory=torch.get_num_threads)
    """How many cores all of them share."""
    embedding: bool = False
    """Whether the input of the last layer is wanted."""
    feature_map: bool = False
    """Whether the last feature map is wanted."""
    sketch: bool = False
    """Whether a sketch of the embedding is welcome: it is taken where it costs nothing, and decides
    on no backend.
    """

    @property
    def wants_features(self) -> bool:
        """Whether anything is wanted beside probabilities."""
        return self.embedding or self.feature_map

    @property
    def num_threads(self) -> int:
        """Threads of one stream."""
        return max(1, self.num_cores // self.num_streams)


def demand_of_run(
    *,
    device: str | torch.device,
    precision: Precision,
    batch_size: int,
    num_images: int,
    num_cores: int,
    embedding: bool = False,
    sketch: bool = False,
) -> Demand:
    """Return what a worker asks for: as its machine and the run suggest where no flag does.

    Args:
        device: "auto", "cpu" or "cuda", or a device.
        precision: as for `Demand`.
        batch_size: images per forward pass; 0 for what suits the device.
        num_images: how many the run has.
        num_cores: how many cores this worker may use.
        embedding: give embeddings too.
        sketch: give sketches of them where that costs nothing.

    Raises:
        ConfigError: `device` is "cuda" and there is none.
    """
    place = pick_device(device)
    batch_size = choose_batch_size(place, batch_size, precision)
    if precision != "int8":
        # A forward pass has a fixed number of rows: of few images, no more than there are.
        batch_size = max(1, min(batch_size, num_images))
    num_streams = choose_num_streams(place, num_cores, -(-num_images // batch_size))
    return Demand(
        device=place,
        precision=precision,
        batch_size=batch_size,
        num_images=num_images,
        # What a row's embedding is depends in its last digits on the threads that share its batch.
        num_streams=1 if embedding else num_streams,
        num_cores=num_cores,
        embedding=embedding,
        sketch=sketch,
    )


def choose_batch_size(device: torch.device, batch_size: int, precision: Precision) -> int:
    """Return the images per forward pass: as asked, or, for 0, what suits the device."""
    if precision == "int8":
        return int8.BATCH_SIZE
    return batch_size or (_CPU_BATCH_SIZE if device.type == "cpu" else _GPU_BATCH_SIZE)


def choose_num_streams(device: torch.device, num_cores: int, num_batches: int) -> int:
    """Return how many batches to run at a time: never more than there are."""
    most = min(num_cores, _MAX_CPU_STREAMS) if device.type == "cpu" else _GPU_STREAMS
    return max(1, min(most, num_batches))
