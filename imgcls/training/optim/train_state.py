"""Everything that training changes, in one place, as tensors and plain values.

In: a model and its optimizer. Out: the same, further on; or a Snapshot, to write down. Invariant:
what a snapshot holds is all that the rest of the run depends on, so that training from it gives the
same weights, bit by bit on one CPU worker. Random numbers are not state: they are hashes of the
step (counter_rng.py).
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from imgcls.training.optim.precision import LossScale


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state on the CPU: tensors by name, and values that JSON keeps exactly."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


@dataclass(slots=True)
class TrainState:
    """The run so far; `run_id` stays the same however often the run is resumed.

    `epoch` and `step` (within the epoch) say what comes next. `best` holds the weights of the best
    validation, on the CPU; `best_metrics` its numbers. Sums of the epoch so far are this rank's; a
    checkpoint holds those of the first rank, which after a resume stand for every rank's.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module | None = None
    run_id: str = field(default_factory=lambda: uuid4().hex)
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0  # of the epoch so far, on this rank
    weight_sum: float = 0.0
    num_right: int = 0  # of num_seen training images, as they were trained on
    num_seen: int = 0
    num_images: int = 0  # of the epoch so far, on all ranks
    epoch_s: float = 0.0  # that its steps took, and of these the time waited for data
    waited_s: float = 0.0
    epochs_since_best: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    train_s: float = 0.0
    loss_scale: LossScale | None = None
    """Of a training in fp16, from its first step on."""
    first_guess: list[int] = field(default_factory=list)
    """An instance of each training sample, see instances/first_guess.py; empty without any."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the bundle shall say of the training; not kept in checkpoints."""

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated and kept: the moving average where there is one."""
        return self.ema if self.ema is not None else self.model

    def keep_as_best(self, metrics: dict[str, Any]) -> None:
        """Copy the evaluated weights to the CPU as the best so far."""
        self.best = copy_to_cpu(self.evaluated.state_dict())
        self.best_metrics = metrics
        self.epochs_since_best = 0

    def begin_next_epoch(self) -> None:
        """Continue to the first step of the next epoch, with nothing summed up yet."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.weight_sum, self.num_right, self.num_seen = 0.0, 0.0, 0, 0
        self.num_images, self.epoch_s, self.waited_s = 0, 0.0, 0.0

    def snapshot(self) -> Snapshot:
        """Copy the state; training may continue while the copy is written."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer.{key}.{name}"] = value
        if self.loss_scale is not None:
            tensors["loss_scale"] = self.loss_scale.state_3
        values = deepcopy({name: getattr(self, name) for name in _VALUES})
        return Snapshot(copy_to_cpu(tensors), values)

    def restore(self, snapshot: Snapshot) -> None:
        """Become the state that `snapshot` was taken of."""
        self.model.load_state_dict(_under("model.", snapshot.tensors))
        if self.ema is not None:
            self.ema.load_state_dict(_under("ema.", snapshot.tensors))
        self.best = _under("best.", snapshot.tensors)
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                tensor = snapshot.tensors.get(f"optimizer.{key}.{name}")
                if tensor is not None:
                    state[key] = _like(tensor, parameter)
        if (scale_3 := snapshot.tensors.get("loss_scale")) is not None:
            device = next(self.model.parameters()).device
            self.loss_scale = LossScale(device)
            self.loss_scale.state_3 = scale_3.to(device, copy=True)
        values = _ABSENT_IN_OLDER | snapshot.values
        for name in _VALUES:
            setattr(self, name, values[name])
        # Those of earlier versions may have been written when their epoch had ended meanwhile.
        self.history = [numbers for numbers in self.history if numbers["epoch"] <= self.epoch]


_VALUES = (
    "run_id",
    "epoch",
    "step",
    "total_steps",
    "loss_sum",
    "weight_sum",
    "num_right",
    "num_seen",
    "num_images",
    "epoch_s",
    "waited_s",
    "epochs_since_best",
    "best_metrics",
    "history",
    "train_s",
    "first_guess",
)
# Checkpoints of before there was a training accuracy: that of their epoch counts what comes after.
# And of before samples had instances; and of before an epoch was timed over its parts together.
_ABSENT_IN_OLDER: dict[str, Any] = {
    "num_right": 0,
    "num_seen": 0,
    "first_guess": [],
    "num_images": 0,
    "epoch_s": 0.0,
    "waited_s": 0.0,
}


def copy_to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return contiguous copies that share no memory with the originals."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


def _like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a copy on the parameter's device, laid out in memory as the parameter is.

    A fused optimizer steps through both in the order of memory.
    """
    if tensor.shape != parameter.shape:
        return tensor.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
