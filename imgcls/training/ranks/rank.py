"""Where this process stands: its device, its rank, and how the ranks add up what they know.

In: a device, and torch's process group where there is one. Out: sums and wrapped models.
Invariants: with one rank nothing is communicated and nothing is wrapped; what the CPU knows
(counts, objects, that a rank is still at work alone) travels between CPUs, over gloo, without a
word to the device, and may take as long as it takes. Only gradients, statistics and a step's own
flag are added up by the devices (NCCL), whose limit of half an hour is there to find a rank that
hangs: before each, the ranks have met over gloo. Knows torch.distributed, not Ray.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from imgcls.errors import ConfigError

_CPU = torch.device("cpu")
# One rank alone may compare millions of images or wait for a store. One that died is noticed at
# once: its connections end.
WAIT_FOR_A_RANK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of `world_size`; the default is the only one, on the CPU.

    `cpus` is the process group of the CPUs; None stands for torch's default one.
    """

    device: torch.device = _CPU
    rank: int = 0
    world_size: int = 1
    cpus: distributed.ProcessGroup | None = None

    @staticmethod
    def of_process_group(device: torch.device) -> "Place":
        """Return this process's place in torch's process group, which must be initialised.

        Every rank has to ask: they connect once more, over gloo.
        """
        cpus = distributed.new_group(backend="gloo", timeout=WAIT_FOR_A_RANK)
        assert isinstance(cpus, distributed.ProcessGroup), "no rank is left out"
        return Place(device, distributed.get_rank(), distributed.get_world_size(), cpus)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make a model on `device` average its gradients over the ranks during backward."""
        if self.world_size == 1:
            return model
        self.meet()  # the devices compare the models
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
        module = getattr(wrapped, "_orig_mod", wrapped)  # what torch.compile was given
        if isinstance(module, DistributedDataParallel):
            return _no_sync(module)
        return nullcontext()

    def meet(self) -> None:
        """Wait for all ranks, however long it takes."""
        self.sum(0.0)

    def sum(self, *values: float) -> list[float]:
        """Return each value summed over the ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total, group=self.cpus)
        return list(total.tolist())

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor on the device up over the ranks, in place; return it. Waits for nobody."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

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
        distributed.all_gather_object(values, value, group=self.cpus)
        return values

    def from_first(self, value: Any) -> Any:  # noqa: ANN401  # any picklable value
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self.cpus, device=_CPU)
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
