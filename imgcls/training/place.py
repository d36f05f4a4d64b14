"""Where this process stands: its device, its rank, and how the ranks add up what they know.

In: a device, and torch's process group where there is one. Out: sums and wrapped models. Invariant:
with one rank nothing is communicated and nothing is wrapped. Knows torch.distributed, not Ray.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from imgcls.errors import ConfigError

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of `world_size`; the default is the only one, on the CPU."""

    device: torch.device = _CPU
    rank: int = 0
    world_size: int = 1

    @staticmethod
    def of_process_group(device: torch.device) -> "Place":
        """Return this process's place in torch's process group, which must be initialised."""
        return Place(device, distributed.get_rank(), distributed.get_world_size())

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make a model on `device` average its gradients over the ranks during backward."""
        if self.world_size == 1:
            return model
        with warnings.catch_warnings():
            # torch 2.14 calls broadcast_buffers by another name, which 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            # Buffers are not sent from rank 0 at each step: `average_buffers` does better, once,
            # before they are used.
            return DistributedDataParallel(
                model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def without_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which backward only adds to this rank's own gradients."""
        if isinstance(wrapped, DistributedDataParallel):
            return _no_sync(wrapped)
        return nullcontext()

    def sum(self, *values: float) -> list[float]:
        """Return each value summed over the ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return list(total.tolist())

    def average_buffers(self, model: nn.Module) -> None:
        """Replace the running statistics of batch normalisation by their mean over the ranks."""
        if self.world_size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= self.world_size

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401  # any picklable value
        """Return the values of all ranks, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:  # noqa: ANN401  # any picklable value
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def refuse_mig_slices(place: Place) -> None:
    """Refuse several ranks of which one has but a slice of a GPU: NCCL connects whole GPUs alone.

    https://docs.nvidia.com/datacenter/tesla/mig-user-guide/ ("no GPU-to-GPU P2P").

    Raises:
        ConfigError: with the slice's name.
    """
    if place.world_size == 1 or place.device.type != "cuda":
        return
    name = torch.cuda.get_device_name(place.device)
    if " MIG " in name:
        raise ConfigError(
            f"rank {place.rank} of {place.world_size} has a MIG slice ({name}), and slices cannot "
            "exchange gradients: take --num-workers 0 or 1, or turn MIG off"
        )


@contextmanager
def _no_sync(wrapped: DistributedDataParallel) -> Iterator[None]:
    with wrapped.no_sync():
        yield
