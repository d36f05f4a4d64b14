"""A small real model and a small night for every test that scores."""

from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig
from imgcls.model.registry import register
from tests.scoring.nights import make_night
from tests.scoring.tiny import make_bundle


@pytest.fixture(scope="session")
def model_ref(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`REG/tiny@v1`, a registered model."""
    registry = str(tmp_path_factory.mktemp("registry"))
    version = register(registry, "tiny", make_bundle())
    return f"{registry}/tiny@v{version.version}"


@pytest.fixture
def night(tmp_path: Path) -> NightlyConfig:
    """Config of a night over 70 images, with a promoted model."""
    return make_night(tmp_path)


@pytest.fixture
def small_night(tmp_path: Path) -> NightlyConfig:
    """The same over 9 images."""
    return make_night(tmp_path, num_images=9)
