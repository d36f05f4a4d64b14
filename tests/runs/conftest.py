"""Nights over small folders, as in the tests of scoring."""

from tests.scoring.conftest import model_ref, night, small_night

__all__ = ["model_ref", "night", "small_night"]
