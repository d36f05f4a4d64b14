"""The peak of a map lies where the row says that it was decided."""

import numpy as np
import pytest

from imgcls.image.facts.overlay import Patch, draw_overlay
from imgcls.image.spec import PreprocessSpec

TILES = PreprocessSpec(64, 64, fit="tiles")
SIZE = (128, 64)


def patch(left: int, peak: float) -> Patch:
    heat_hw = np.zeros((8, 8), np.float32)
    heat_hw[4, 2] = peak
    return Patch.of(heat_hw, SIZE, (left, 0, 64, 64), TILES)


def test_the_peak_lies_in_the_tile_that_decided_though_another_has_a_louder_place() -> None:
    overlay = draw_overlay([patch(64, 1.0), patch(0, 3.0)], SIZE)
    assert overlay is not None
    assert overlay.peak_px == (64 + 20, 36)


def test_where_that_tile_is_silent_another_has_the_peak() -> None:
    overlay = draw_overlay([patch(64, 0.0), patch(0, 3.0)], SIZE)
    assert overlay is not None
    assert overlay.peak_px == (20, 36)
    assert draw_overlay([patch(64, 0.0)], SIZE) is None


def test_of_a_coarse_map_the_peak_is_the_middle_of_what_is_high_around_it() -> None:
    """An object over two by two cells in the corner, of which the outer one is the loudest."""
    heat_hw = np.full((5, 5), -0.1, np.float32)
    heat_hw[3:, 3:] = [[2.0, 2.1], [2.0, 2.4]]
    patch = Patch(heat_hw, (160, 160), (0, 0, 160, 160), (0.0, 0.0, 160.0, 160.0))
    highest, at = patch.peak()
    assert highest == pytest.approx(2.4)
    assert at == pytest.approx((128, 128), abs=3)
