"""A model of tiles, from labels per picture to rows that say where."""

import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import ScoreConfig, VerifyConfig
from imgcls.errors import ConfigError
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.verify import verify
from imgcls.training.driver import train
from tests.scoring.tiny import published_rows
from tests.training.instances.plates import plates_config, write_plates

PLACE = ("x_px", "y_px", "w_px", "h_px")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of 12 px tiles, trained on 120 pictures that say good or bad and not where."""
    root = tmp_path_factory.mktemp("tiles")
    write_plates(root / "data", 60)
    return train(plates_config(root / "data"))


def config_of(source: Path, trained: dict[str, Any], output: Path, **changes: Any) -> ScoreConfig:
    values = {"run_id": "night", "date": "2026-11-22", "executor": "local", **changes}
    return ScoreConfig(str(source), trained["model"], str(output), **values)


def test_labels_per_picture_give_rows_that_say_where(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    assert trained["test_accuracy"] >= 0.9
    places = write_plates(tmp_path / "night", 30, seed=7)
    (tmp_path / "night" / "labels.csv").unlink()
    (tmp_path / "night" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    score(config_of(tmp_path / "night", trained, tmp_path / "out"))
    rows = {Path(row["uri"]).name: row for row in published_rows(str(tmp_path / "out")).to_pylist()}
    assert rows.keys() == places.keys() | {"broken.png"}
    assert [rows["broken.png"][name] for name in PLACE] == [None] * 4
    num_right = num_there = 0
    for name, box in places.items():
        row = rows[name]
        num_right += row["class_name"] == ("bad" if box else "good")
        x, y, w, h = (row[column] for column in PLACE)
        assert 0 <= x <= row["width_px"] - w
        assert 0 <= y <= row["height_px"] - h
        if box:
            num_there += x <= box[0] + 2 <= x + w and y <= box[1] + 2 <= y + h
    assert num_right >= 0.9 * len(places)
    assert num_there >= 0.9 * len(places) / 2
    assert verify(VerifyConfig(str(tmp_path / "out")))["rows"] == len(rows)


def test_a_bundle_of_tiles_says_how_it_pools_and_a_plain_one_has_no_such_columns(
    trained: dict[str, Any], tmp_path: Path, model_ref: str
) -> None:
    bundle = read_bundle(resolve(trained["model"]))
    assert (bundle.pooling, bundle.background_class) == ("max", "good")
    assert (bundle.preprocess_spec.fit, bundle.preprocess_spec.overlap_px) == ("tiles", 4)
    write_plates(tmp_path / "night", 2)
    (tmp_path / "night" / "labels.csv").unlink()
    source, output = str(tmp_path / "night"), tmp_path / "out"
    score(ScoreConfig(source, model_ref, str(output), executor="local"))
    [part] = output.rglob("date=*/run=*/*.parquet")
    assert not set(PLACE) & set(pq.read_schema(part).names)


def test_boxes_train_too_and_without_tiles_are_said_to_be_unused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_plates(tmp_path / "data", 40, with_boxes=True)
    with caplog.at_level(logging.INFO):
        result = train(plates_config(tmp_path / "data", epochs=6))
    assert result["test_accuracy"] >= 0.9
    assert "say where (x,y,w,h)" in caplog.text
    train(plates_config(tmp_path / "data", epochs=1, fit="crop"))
    assert "this training does not use them; --fit tiles does" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overlap": 12}, "--overlap 12: must be 0 to 11"),
        ({"mixup": 0.2}, "--mixup: mixes whole pictures"),
        ({"compile": True}, "--compile: needs batches of one size"),
        ({"fit": "crop", "pooling": "mean"}, "--pooling mean: only of --fit tiles"),
    ],
)
def test_flags_that_mean_nothing_for_tiles_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_plates(tmp_path / "data", 4)
    with pytest.raises(ConfigError, match=said):
        train(plates_config(tmp_path / "data", **changes))


def test_classes_of_which_none_is_known_to_be_nothing_are_refused(tmp_path: Path) -> None:
    write_plates(tmp_path / "data", 10)
    labels = tmp_path / "data" / "labels.csv"
    labels.write_text(labels.read_text().replace("good", "left").replace("bad", "right"))
    with pytest.raises(ConfigError, match="which of 'left', 'right' is the class of a picture"):
        train(plates_config(tmp_path / "data"))
