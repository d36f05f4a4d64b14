"""Image trees without image content."""

from collections.abc import Callable
from pathlib import Path

import pytest


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
