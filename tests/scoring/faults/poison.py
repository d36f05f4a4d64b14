"""A network that fails on white images, on too many at a time, or for good; here or in children.

`spoil(how)` spoils `Network` in this process. `environment(folder, how)` is that of processes whose
own network is to be spoilt: Python imports the `sitecustomize` that lies there.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import torch

from imgcls.image.png import encode_png
from imgcls.inference.backends.network import Network

ROOT = Path(__file__).parents[3]
MAX_ROWS = 8

_SITECUSTOMIZE = '''
import importlib.util
import sys


class Finder:
    """Spoils the network as soon as it is imported; the decoders of an actor never import it."""

    def find_spec(self, name, path=None, target=None):
        if name != "imgcls.inference.backends.network":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_spoil(module):
            load(module)
            from tests.scoring.faults.poison import spoil

            spoil({how!r})

        spec.loader.exec_module = load_and_spoil
        return spec


sys.meta_path.insert(0, Finder())
'''


def white_image() -> bytes:
    """A PNG that the network cannot look at."""
    return encode_png(np.full((40, 50, 3), 255, np.uint8))


def spoil(how: str) -> None:
    """Spoil the network of this process.

    Args:
        how: any of "white": it raises on white images; "memory": it has none for more than MAX_ROWS
            at a time, with "later" after some passes that went well; "accelerator": a white image
            breaks the accelerator until the process ends.
    """
    real, broken, num_passes = Network.forward, list[Exception](), itertools.count()
    num_well = 10 if "later" in how else 0

    def forward(self: Network, x_BCHW: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():  # what is converted runs elsewhere
            return real(self, x_BCHW)
        if broken:
            raise broken[0]
        is_short = "memory" in how and next(num_passes) >= num_well
        if is_short and len(x_BCHW) > MAX_ROWS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if (x_BCHW.flatten(1) == 255).all(dim=1).any():
            if "accelerator" in how:
                error = "CUDA error: an illegal memory access was encountered"
                broken.append(torch.AcceleratorError(error))
                raise broken[0]
            if "white" in how:
                raise ValueError("too bright to look at")
        return real(self, x_BCHW)

    Network.forward = forward  # type: ignore[method-assign]


def environment(folder: Path, how: str) -> dict[str, str]:
    """Return the environment of processes with a spoilt network."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.replace("{how!r}", repr(how)))
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
