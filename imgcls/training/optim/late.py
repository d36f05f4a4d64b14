"""Numbers that a device is still computing, read when they are wanted and no sooner.

In: a tensor on any device. Out: its values. Invariant: reading waits for the work that was given to
the device before, and for none that was given to it since: so a step may be read while the next one
runs.
"""

from typing import Any

import torch


class LateRead:
    """A tensor on its way to the CPU."""

    def __init__(self, values: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            stream = torch.cuda.current_stream(values.device)
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch
            self._arrived.record(stream)
        self._values = values

    def read(self) -> list[Any]:
        """Wait for the values and return them, nested as the tensor was."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[Any] = self._values.tolist()
        return values
