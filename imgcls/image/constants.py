"""Small constants of a network or a spec, kept on each device that computes with them.

In: numbers, and the tensor that they are to meet. Out: float32 [n] beside it. Invariant: a device
gets each of them once: made at every use, they are a copy from the CPU each time, and the CPU waits
for it.
"""

from functools import lru_cache

import torch


def constant(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """Return the values as a tensor of the device and dtype of `like`; not to be written to."""
    if torch.compiler.is_compiling():  # then it becomes a part of what is compiled
        return like.new_tensor(values)
    return _kept(values, like.device, like.dtype)


@lru_cache(maxsize=256)
def _kept(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    # Outside of inference mode, or training could not compute with what scoring made first.
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device, dtype=dtype)
