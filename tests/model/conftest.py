"""A small real bundle, and image trees and manifests without image content."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.artifact import Bundle, make_golden
from imgcls.model.build import build_model
from imgcls.model.labels import ClassNames

CLASS_NAMES = ClassNames(("bad", "good", "unsure"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """Build an untrained simple_cnn bundle of 3 classes at 8 px; another seed, other weights."""

    def make(seed: int = 0, image_px: int = 8) -> Bundle:
        torch.manual_seed(seed)
        model = build_model("simple_cnn", len(CLASS_NAMES), image_px=image_px)
        spec = PreprocessSpec.for_image_px(image_px)
        x_BCHW = torch.randint(0, 256, (2, 3, image_px, image_px), dtype=torch.uint8)
        return Bundle(
            arch="simple_cnn",
            class_names=CLASS_NAMES,
            decode_spec=DecodeSpec(),
            preprocess_spec=spec,
            state_dict=model.state_dict(),
            metrics={
                "test": {
                    "accuracy": 0.5,
                    "num_images": 4,
                    "intervals": {"accuracy": [0.25, 0.75]},
                }
            },
            split_digest="0" * 64,
            training={"seed": seed, "counts": {"train": {"bad": 2}}, "versions": {"torch": "x"}},
            golden_x_BCHW=x_BCHW,
            golden_probs_BK=make_golden(model, x_BCHW, spec),
        )

    return make


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., str]:
    """Write files of one byte below a new folder; returns the folder."""

    def make(*keys: str, name: str = "data") -> str:
        for key in keys:
            path = tmp_path / name / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return str(tmp_path / name)

    return make
