"""Small labelled images that a small model can learn, and the parts that read them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec

SIDE_PX = 12
MakeTree = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in a fixed order, and no threads that fight for the cores with other processes."""
    torch.set_num_threads(1)


def draw(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 [H,W]: a bright bar whose place tells the class, in noise."""
    image_HW = rng.integers(0, 90, (SIDE_PX, SIDE_PX))
    image_HW[3 * label : 3 * label + 3] += 120
    return image_HW.astype(np.uint8)


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Return a function that writes `num_per_class` images of up to four classes."""

    def make(num_per_class: int, num_classes: int = 2, name: str = "data") -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / name
        for label in range(num_classes):
            folder = root / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(num_per_class):
                Image.fromarray(draw(label, rng)).save(folder / f"{number:03d}.png")
        return root

    return make


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    """A decoder pool for images of SIDE_PX."""
    with DecoderPool(DecodeSpec(), PreprocessSpec.for_image_px(SIDE_PX), 1) as pool:
        yield pool
