"""A model of tiles, from labels per picture to rows that say where."""

import logging
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import GcConfig, RollbackConfig, ScoreConfig, VerifyConfig
from imgcls.errors import ConfigError, ImgclsError
from imgcls.image.fit.tiles import tile_places
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.retention import gc, rollback
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


@pytest.fixture
def night(tmp_path: Path) -> Path:
    """Six pictures to score."""
    write_plates(tmp_path / "night", 3, seed=3)
    (tmp_path / "night" / "labels.csv").unlink()
    return tmp_path / "night"


def test_all_tiles_are_written_apart_from_the_rows_and_cover_each_picture(
    trained: dict[str, Any], night: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    score(config_of(night, trained, output, write_tiles=True))
    spec = read_bundle(resolve(trained["model"])).preprocess_spec
    rows = {row["uri"]: row for row in published_rows(str(output)).to_pylist()}
    files = sorted((output / "_tiles").rglob("*.parquet"))
    assert [f.relative_to(output).as_posix() for f in files] == [
        "_tiles/date=2026-11-22/run=night/000000.parquet"
    ]
    tiles = pq.read_table(files[0], partitioning=None).to_pylist()
    assert {tile["uri"] for tile in tiles} == rows.keys()
    for uri, row in rows.items():
        ours = [tile for tile in tiles if tile["uri"] == uri]
        places = [tuple(tile[name] for name in PLACE) for tile in ours]
        assert places == tile_places(row["width_px"], row["height_px"], spec)
        # Label 1 is good: the row points to the tile that is least so.
        best = min(ours, key=lambda tile: tile["probs"][1])
        assert tuple(best[name] for name in PLACE) == tuple(row[name] for name in PLACE)
        assert row["confidence"] == pytest.approx(max(best["probs"]), abs=1e-6)
    # Whoever reads the night by its pattern reads predictions alone.
    parts = list(output.glob("date=*/run=*/*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == len(rows)
    assert verify(VerifyConfig(str(output)))["rows"] == len(rows)


def test_verify_finds_a_changed_table_of_tiles_and_one_that_nobody_named(
    trained: dict[str, Any], night: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    score(config_of(night, trained, output, write_tiles=True))
    [file] = (output / "_tiles").rglob("*.parquet")
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    with pytest.raises(ImgclsError, match="not the bytes that the manifest names"):
        verify(VerifyConfig(str(output)))
    file.write_bytes(data)
    (file.parent / "000009.parquet").write_bytes(data)
    with pytest.raises(ImgclsError, match="does not name it"):
        verify(VerifyConfig(str(output)))
    (file.parent / "000009.parquet").unlink()
    file.unlink()
    with pytest.raises(ImgclsError, match="named by the manifest and missing"):
        verify(VerifyConfig(str(output)))


def test_gc_keeps_the_tables_of_tiles_and_rollback_removes_them(
    trained: dict[str, Any], night: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    score(config_of(night, trained, output, write_tiles=True))
    assert list((output / "_runs").rglob("*.tiles.parquet"))
    time.sleep(2.1)  # a store tells whole seconds
    gc(GcConfig(str(output), older_than="0s"))
    assert not list((output / "_runs").rglob("*.tiles.parquet"))
    assert len(list((output / "_tiles").rglob("*.parquet"))) == 1
    assert verify(VerifyConfig(str(output)))["rows"] == 6
    rollback(RollbackConfig(str(output), "night"))
    assert not list((output / "_tiles").rglob("*.parquet"))


def test_a_run_goes_on_with_the_tiles_that_it_was_planned_with(
    trained: dict[str, Any], night: Path, tmp_path: Path
) -> None:
    score(config_of(night, trained, tmp_path / "out", write_tiles=True))
    with pytest.raises(ConfigError, match="--write-tiles"):
        score(config_of(night, trained, tmp_path / "out"))


def test_a_plain_model_has_no_tiles_to_write(night: Path, tmp_path: Path, model_ref: str) -> None:
    with pytest.raises(ConfigError, match=r"--write-tiles: .* looks at a picture as a whole"):
        score(ScoreConfig(str(night), model_ref, str(tmp_path / "out"), write_tiles=True))
