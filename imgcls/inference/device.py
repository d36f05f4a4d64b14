"""Which device runs the network, and how many cores torch may use beside it.

In: what was asked for. Out: a torch.device; torch's own setting. Invariant: a machine whose GPU
cannot be used says so, instead of being slow without a word.
"""

import logging
import os
from pathlib import Path
from typing import Final

import torch

from imgcls.errors import ConfigError

# Where the driver of NVIDIA GPUs shows them.
_NVIDIA_DEVICES: Final = ("/dev", "nvidia[0-9]*")

_log = logging.getLogger(__name__)


def num_cores_here() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def set_num_threads(num_threads: int) -> None:
    """Let torch use this many CPU threads here; Ray and containers often say another number."""
    torch.set_num_threads(num_threads)


def pick_device(device: str | torch.device) -> torch.device:
    """Resolve "auto", "cpu" or "cuda"; ConfigError when "cuda" is asked for and absent.

    A device that is settled already is left as it is.
    """
    if isinstance(device, torch.device):
        return device
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
        folder, names = _NVIDIA_DEVICES
        if not has_cuda and any(Path(folder).glob(names)):
            _log.warning(
                "--device auto takes the CPU: this machine has an NVIDIA GPU (%s/%s), but torch "
                "cannot use it; look at its driver, or say --device cpu",
                folder,
                names,
            )
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda: this machine has no CUDA device; use --device cpu or auto"
        )
    return torch.device(device)
