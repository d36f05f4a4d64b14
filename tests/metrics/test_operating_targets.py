from pathlib import Path
from typing import Any

import pytest

from imgcls.config.training import TrainConfig
from imgcls.data.class_names import ClassNames
from imgcls.data.dataset import Sample
from imgcls.errors import ConfigError
from imgcls.metrics.operating_targets import check_operating_points, operating_targets
from imgcls.training.planning.make_plan import make_plan

NAMES = ClassNames(("defect", "good"))


def make_config(**changes: Any) -> TrainConfig:
    return TrainConfig(data="d", registry="r", name="n", **changes)


def samples(*labels: int) -> list[Sample]:
    names = NAMES.names
    return [Sample(f"{i}", (k,), names[k], "val", "", f"{i}", 1.0) for i, k in enumerate(labels)]


def test_each_target_gives_a_point() -> None:
    both = make_config(positive_class="defect", target_recall=0.95, target_specificity=0.9)
    assert operating_targets(both) == [("defect", "recall", 0.95), ("defect", "specificity", 0.9)]
    assert operating_targets(make_config()) == []
    check_operating_points(both, NAMES, samples(*[0] * 60, *[1] * 30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_recall": 0.9}, "--target-recall 0.9 needs --positive-class"),
        ({"positive_class": "defect"}, "'defect' needs --target-recall or --target-specificity"),
        ({"positive_class": "defect", "target_recall": 1.5}, "--target-recall 1.5: must be"),
        ({"positive_class": "defect", "target_recall": -0.1}, "--target-recall -0.1: must be"),
        ({"positive_class": "defect", "target_specificity": float("nan")}, "nan: must be"),
        ({"positive_class": "scratch", "target_recall": 0.9}, "unknown class 'scratch'.*'defect'"),
    ],
)
def test_unusable_targets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_operating_points(make_config(**changes), NAMES, samples(0, 1))


@pytest.mark.parametrize("labels", [(), (0, 0), (1, 1)])
def test_validation_without_both_kinds_is_refused(labels: tuple[int, ...]) -> None:
    config = make_config(positive_class="defect", target_recall=0.9)
    with pytest.raises(ConfigError, match=rf"of {len(labels)} there, .*--val-fraction"):
        check_operating_points(config, NAMES, samples(*labels))


def test_a_target_beyond_the_data_is_refused_before_the_training() -> None:
    config = make_config(positive_class="defect", target_specificity=0.999)
    with pytest.raises(ConfigError, match="needs 3000 images of other classes, and there are 41"):
        check_operating_points(config, NAMES, samples(*[0] * 20, *[1] * 41))
    reachable = make_config(positive_class="defect", target_specificity=0.9)
    check_operating_points(reachable, NAMES, samples(*[0] * 20, *[1] * 41))
    bad = [f"{number}" for number in range(20, 40)]
    with pytest.raises(ConfigError, match=r"there are 21.*\(20 more give no pixels\)"):
        check_operating_points(reachable, NAMES, samples(*[0] * 20, *[1] * 41), bad)


def test_an_unknown_positive_class_is_found_before_an_image_is_read(tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "data" / NAMES.names[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    config = TrainConfig(
        data=str(tmp_path / "data"),
        registry=str(tmp_path / "registry"),
        name="n",
        arch="simple_cnn",
        image_px=12,
        batch_size=4,
        positive_class="Defect",
        target_recall=0.9,
    )
    with pytest.raises(ConfigError, match="--positive-class: unknown class 'Defect'"):
        make_plan(config)
    assert not (tmp_path / "registry").exists()
