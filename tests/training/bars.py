"""A training of a small model on the images of `make_tree`, for tests of who does the work."""

from pathlib import Path
from typing import Any

from imgcls.config.training import TrainConfig


def bars_config(folder: Path, **changes: Any) -> TrainConfig:
    """Return the config of a training on `folder`, its registry beside it."""
    values: dict[str, Any] = {
        "data": str(folder),
        "registry": str(folder.parent / "registry"),
        "name": "bars",
        "arch": "simple_cnn",
        "image_px": 12,
        "batch_size": 8,
        "lr": 5e-3,
    }
    return TrainConfig(**values | changes)
