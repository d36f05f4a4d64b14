"""Nights over small folders, as in the tests of scoring."""

from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig
from tests.scoring.conftest import model_ref, night
from tests.scoring.nights import make_night

__all__ = ["model_ref", "night", "small_night"]


@pytest.fixture
def small_night(tmp_path: Path) -> NightlyConfig:
    """A night over 9 images."""
    return make_night(tmp_path, num_images=9)
