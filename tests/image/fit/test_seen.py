"""What the model sees, in numbers and in words."""

import pytest

from imgcls.image.fit.seen import measure_seen
from imgcls.image.spec import PreprocessSpec

STRIP = (1600, 400)
CUT = PreprocessSpec.for_image_px(224)
PAD = PreprocessSpec(224, 224, fit="pad", resize="longest")
STRETCH = PreprocessSpec(224, 224, fit="stretch", resize="exact")
TILES = PreprocessSpec(224, 224, fit="tiles", overlap_px=32)


@pytest.mark.parametrize(
    ("size", "fraction"), [(STRIP, 0.191), ((1920, 1080), 0.431), ((320, 288), 0.689)]
)
def test_a_cut_shows_what_it_leaves(size: tuple[int, int], fraction: float) -> None:
    assert measure_seen([size], CUT).median_fraction == pytest.approx(fraction, abs=0.002)
    for spec in (PAD, STRETCH, TILES):
        assert measure_seen([size], spec).median_fraction == 1


def test_the_smallest_share_is_that_of_the_widest() -> None:
    seen = measure_seen([(100, 100), (100, 100), STRIP], CUT)
    assert seen.median_fraction == pytest.approx(0.766, abs=0.001)
    assert seen.smallest_fraction == pytest.approx(0.191, abs=0.001)
    assert "77% of a picture (median of 3; of one only 19%), the rest is cut off" in seen.describe()


def test_an_object_must_survive_the_side_that_shrinks_more() -> None:
    pad, stretch = measure_seen([STRIP], PAD), measure_seen([STRIP], STRETCH)
    assert pad.shrink == stretch.shrink == pytest.approx(1600 / 224)
    assert pad.object_px == stretch.object_px == 22
    wide = PreprocessSpec(400, 1600, fit="stretch", resize="exact")
    assert measure_seen([STRIP], wide).object_px == 3
    assert measure_seen([STRIP], TILES).object_px == 3
    assert "nothing is cut off" in pad.describe()
    assert "at least 22 pixels wide in the picture to be 3 wide" in pad.describe()
