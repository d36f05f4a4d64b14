"""A small real model for every test that scores."""

import pytest

from imgcls.model.registry import register
from tests.scoring.tiny import make_bundle


@pytest.fixture(scope="session")
def model_ref(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`REG/tiny@v1`, a registered model."""
    registry = str(tmp_path_factory.mktemp("registry"))
    version = register(registry, "tiny", make_bundle())
    return f"{registry}/tiny@v{version.version}"
