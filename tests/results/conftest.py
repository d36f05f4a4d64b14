"""A small real model for tests of what becomes of published rows."""

from tests.scoring.conftest import model_ref

__all__ = ["model_ref"]
