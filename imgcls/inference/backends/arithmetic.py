"""How a device multiplies: what "fp32" and "tf32" mean in this process, and where bf16 is real.

In: a precision, a device. Out: torch's switches, set in this one place for training, measuring and
scoring alike. Invariant: fp32 is IEEE float32 on every device. By torch's default convolutions on
an NVIDIA GPU from Ampere on are in TF32, which keeps 10 of float32's 23 bits of a product.
"""

from pathlib import Path
from typing import Final

import torch

# Other CPUs emulate bf16, several times slower than fp32. The last one is how Arm calls it.
_BF16_CPU_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}
# The first to multiply in bf16 and in TF32, by compute capability.
_AMPERE: Final = (8, 0)


def set_fp32_arithmetic(precision: str) -> None:
    """Have all of this process multiply float32 as `precision` says, from now on.

    Args:
        precision: "tf32" rounds products of CUDA devices to TF32; with any other, what is in
            float32 stays IEEE.
    """
    allow_tf32 = precision == "tf32"
    # Not by fp32_precision: it leaves these two unreadable, which torch.compile reads (torch 2.14).
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32


def has_tf32(device: torch.device) -> bool:
    """Tell whether a device multiplies in TF32."""
    return device.type == "cuda" and torch.version.hip is None and gpu_has_bf16(device)


def gpu_has_bf16(device: torch.device) -> bool:
    """Tell whether a GPU multiplies in bf16; older ones emulate it, slower than fp32."""
    # Not by torch.cuda.is_bf16_supported(): unless told otherwise it takes emulation for support,
    # and it asks about the current device instead of this one.
    is_nvidia = torch.version.hip is None
    return not is_nvidia or torch.cuda.get_device_capability(device) >= _AMPERE


def has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU multiplies in bf16; where it cannot be known, it does not."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _BF16_CPU_FLAGS.isdisjoint(flags.split())
    return False
