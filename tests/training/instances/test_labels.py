"""What a tile is said to show: never more than DATA says."""

from dataclasses import dataclass

import numpy as np

from imgcls.data.boxes import LabelledBox
from imgcls.image.crops import Crop
from imgcls.training.instances.labels import InstanceTargets

PLACES = [(x, 0, 100, 100) for x in (0, 80, 160, 240)]
UNKNOWN = [np.nan, np.nan]


@dataclass(frozen=True)
class Picture:
    labels: tuple[int, ...]
    boxes: tuple[LabelledBox, ...] = ()


def targets(
    picture: Picture, background: int | None = 0, *, multi_label: bool = False
) -> np.ndarray:
    crops = [Crop(np.empty(0, np.uint8), 340, 100, None, place=place) for place in PLACES]
    return InstanceTargets(2, background, multi_label=multi_label).of(picture, crops)


def test_every_tile_of_a_good_picture_is_good() -> None:
    assert targets(Picture((0,))).tolist() == [[1, 0]] * 4


def test_of_a_picture_with_a_label_alone_no_tile_is_known() -> None:
    assert np.isnan(targets(Picture((1,)))).all()


def test_without_a_background_no_tile_is_known() -> None:
    assert np.isnan(targets(Picture((0,)), None)).all()


def test_a_tile_with_half_a_box_shows_it_with_less_nobody_knows_and_without_it_is_good() -> None:
    # 85..105: a quarter of it is in the first tile, all of it in the second.
    picture = Picture((1,), (LabelledBox(85, 40, 20, 10, (1,), ""),))
    assert targets(picture)[:2].tolist() == [[0, 1], [0, 1]]
    picture = Picture((1,), (LabelledBox(95, 40, 20, 10, (1,), ""),))
    found_IK = targets(picture)
    assert np.isnan(found_IK[0]).all()
    assert found_IK[1:].tolist() == [[0, 1], [1, 0], [1, 0]]


def test_a_box_larger_than_a_tile_is_shown_by_the_tiles_in_it() -> None:
    picture = Picture((1,), (LabelledBox(0, 0, 340, 100, (1,), ""),))
    assert targets(picture).tolist() == [[0, 1]] * 4


def test_of_several_labels_a_tile_shows_those_of_its_boxes() -> None:
    boxes = (LabelledBox(10, 10, 10, 10, (0,), ""), LabelledBox(85, 10, 10, 10, (1,), ""))
    found_IK = targets(Picture((0, 1), boxes), None, multi_label=True)
    assert found_IK.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert targets(Picture(()), None, multi_label=True).tolist() == [[0, 0]] * 4
