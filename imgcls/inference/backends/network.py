"""The network as a backend runs it: normalised inside, in one precision, folded or compiled.

In: a trained classifier. Out: a module, or a compiled function, uint8 [B,C,H,W] -> logits float32
[B,K]. Invariant: only the arithmetic changes, never the weights that went in.

Shape legend: B batch, C channels, H height, W width, K classes.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from imgcls.image.preprocess import normalize
from imgcls.image.spec import PreprocessSpec

_log = logging.getLogger(__name__)

_DTYPES: Final = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # see arithmetic.py
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Network(nn.Module):
    """The classifier with its normalisation before it and its precision inside it."""

    def __init__(self, classifier: nn.Module, spec: PreprocessSpec, precision: str) -> None:
        super().__init__()
        self.classifier = classifier.to(_DTYPES[precision]).to(memory_format=torch.channels_last)
        self.spec, self._dtype = spec, _DTYPES[precision]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits float32 [B,K] of uint8 [B,C,H,W]."""
        x_BCHW = normalize(x_BCHW, self.spec).to(self._dtype)
        logits_BK: Tensor = self.classifier(x_BCHW.contiguous(memory_format=torch.channels_last))
        return logits_BK.float()


def fold_batchnorm(classifier: nn.Module) -> nn.Module:
    """Return a network with every batch norm folded into the convolution before it.

    Raises:
        Exception: whatever torch.fx raises for a network that it cannot trace.
    """
    # Takes half a second to import, and short runs do not fold.
    from torch.fx.experimental.optimization import fuse

    folded: nn.Module = fuse(classifier)
    return folded.eval()


def compile_network(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile for one batch shape, with the weights frozen into the code, at the first call."""
    # torch's own default is a folder below /tmp whose name anybody can guess and take first.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    compiled: Callable[[Tensor], Tensor] = torch.compile(
        network, fullgraph=True, dynamic=False, options={"freezing": True}
    )
    return compiled


def cache_folder() -> Path:
    """Return this user's own folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgcls"


def write_cache(path: Path, data: bytes) -> None:
    """Write whole or not at all; a cache that cannot be written costs time alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError as error:
        _log.info("%s cannot be written: %s", path, error)
