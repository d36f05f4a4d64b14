"""A model made elsewhere, taken apart: what a bundle needs, and its own way to compute the answer.

In: what one of the readers of this room found. Out: `Foreign`. Invariant: `reference` is the
foreign library's preprocessing and runtime, never ours: against it the bundle is proven.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imgcls.image.spec import PreprocessSpec

# uint8 [H,W,3] RGB or [H,W,1] -> the model's input, float32 [C,H,W]
Prepare = Callable[[npt.NDArray[np.uint8]], Tensor]
# float32 [B,C,H,W] -> logits float32 [B,K], in the foreign runtime
Run = Callable[[Tensor], Tensor]


def run_by_torch(model: nn.Module) -> Run:
    """Return what runs a foreign module as its own library does."""

    def run(x_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            logits_BK: Tensor = model(x_BCHW)
        return logits_BK.float()

    return run


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model made elsewhere."""

    kind: str
    """As a person calls it: "a timm folder"."""
    arch: str
    class_names: tuple[str, ...]
    """Empty where nothing names the outputs; of a backbone always."""
    num_outputs: int
    preprocess_spec: PreprocessSpec
    state_dict: dict[str, Tensor]
    run: Run
    runtime: str
    """What `run` is, with its version."""
    prepare: Prepare | None = None
    """The foreign preprocessing; None where no library defines it, but a file or flags do."""
    preprocessing: str = ""
    """What `prepare` is, or who said how, with its version."""
    arch_options: dict[str, Any] = field(default_factory=dict)
    multi_label: bool = False
    is_backbone: bool = False
    attachments: dict[str, bytes] = field(default_factory=dict)
    license: str = ""
    """Of the weights, as their own files say it; "" where they do not."""
    files: tuple[Path, ...] = ()
    """What was read, for the digests."""
    nights_need: str = ""
    """The extra that scoring with the bundle needs; "" where a plain install will do."""
    notes: tuple[str, ...] = ()
    """What a person should know, in sentences."""


def digests(files: tuple[Path, ...]) -> dict[str, str]:
    """Return the sha256 of each file, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def with_version(package: str) -> str:
    """Return a package and its version, for people."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
