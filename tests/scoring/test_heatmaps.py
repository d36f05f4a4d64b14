"""A night with --heatmaps: peaks in the rows, pictures beside them, and nothing else changed."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imgcls.config.scoring import GcConfig, RollbackConfig, ScoreConfig, VerifyConfig
from imgcls.errors import ConfigError
from imgcls.image.spec import PreprocessSpec
from imgcls.model.bundle import Bundle
from imgcls.model.registry import register
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import read_facts
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from tests.inference.heatmaps.planted import draw, jpeg, train_planted
from tests.scoring.tiny import published_rows

PEAK = ("peak_x_px", "peak_y_px")
NUM_IMAGES = 24
SPECS = {
    "stretch": PreprocessSpec(64, 64, fit="stretch", resize="exact"),
    "pad": PreprocessSpec(64, 64, fit="pad", resize="longest", pad_color=(120,)),
    "crop": PreprocessSpec(64, 64, fit="crop"),
    "tiles": PreprocessSpec(64, 64, fit="tiles", overlap_px=16),
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return train_planted("spot_cnn", 64, epochs=3)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Pictures of many sizes, some of which are stored turned, by EXIF; where the object is."""
    folder, rng = tmp_path_factory.mktemp("night"), np.random.default_rng(11)
    boxes = {}
    for number in range(NUM_IMAGES):
        size = [(160, 120), (120, 160), (128, 128), (200, 140)][number % 4]
        image, box = draw(size, (0, 2)[number % 2], rng)
        name, options = f"{number:02d}.jpg", {}
        if number % 3 == 0:  # stored on its side; a reader turns it back by a quarter
            exif = Image.Exif()
            exif[274] = 6
            image, options = image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
        (folder / name).write_bytes(jpeg(image, **options))
        boxes[name] = box
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return {"source": str(folder), "boxes": boxes}


def config_of(bundle: Bundle, night: dict[str, Any], folder: Path, **flags: Any) -> ScoreConfig:
    registry = str(folder / "registry")
    uri = register(registry, "planted", bundle).uri
    flags = {"heatmaps": "all", "executor": "local", "run_id": "r", "num_decoders": 1} | flags
    return ScoreConfig(night["source"], uri, str(folder / "out"), **flags)


@pytest.mark.parametrize("fit", sorted(SPECS))
def test_the_peak_is_where_the_object_is_in_the_source(
    bundle: Bundle, night: dict[str, Any], tmp_path: Path, fit: Any
) -> None:
    spec = SPECS[fit]
    if fit == "tiles":
        bundle = replace(bundle, pooling="max", background_class="none")
    config = config_of(replace(bundle, preprocess_spec=spec), night, tmp_path)
    score(config)
    rows = {Path(row["uri"]).name: row for row in published_rows(config.output).to_pylist()}
    assert [rows["broken.jpg"][name] for name in PEAK] == [None, None]
    inside, seen = [], 0
    for name, (left, top, right, bottom) in night["boxes"].items():
        row = rows[name]
        width, height = row["width_px"], row["height_px"]
        if fit == "crop":  # what the model does not see it cannot mark
            side = min(width, height)
            x0, y0 = (width - side) // 2, (height - side) // 2
            middle = ((left + right) / 2, (top + bottom) / 2)
            if not (x0 < middle[0] < x0 + side and y0 < middle[1] < y0 + side):
                continue
        if row["class_name"] == "none":
            continue
        seen += 1
        x, y = row["peak_x_px"], row["peak_y_px"]
        assert 0 <= x < width
        assert 0 <= y < height
        inside.append(left - 4 <= x <= right + 4 and top - 4 <= y <= bottom + 4)
    assert seen > 12
    assert np.mean(inside) >= 0.9, inside


def test_flagged_makes_some_all_makes_all_and_rows_stay_equal(
    bundle: Bundle, night: dict[str, Any], tmp_path: Path
) -> None:
    rows, num_maps = {}, {}
    for which in ("none", "flagged", "all"):
        config = config_of(bundle, night, tmp_path / which, heatmaps=which)
        score(config)
        rows[which] = published_rows(config.output)
        [commit] = read_commits(Run(config.output, "r"))
        facts = read_facts(Run(config.output, "r"), commit)
        maps = facts["heatmap"].drop_null().to_pylist()
        num_maps[which] = len(maps)
        for data in maps:
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "PNG"
                assert max(image.size) == 160
                pixels = np.asarray(image.convert("RGBA"))
            assert (pixels[:, :, 3] == 0).any(), "what says nothing is not covered"
            assert (pixels == 255).all(axis=2).any(), "the peak has a white ring"
        assert verify(VerifyConfig(config.output))["rows"] == NUM_IMAGES + 1
    assert num_maps["none"] == 0
    assert num_maps["flagged"] == num_maps["all"] == NUM_IMAGES, "a small night shows all"
    assert not set(PEAK) & set(rows["none"].column_names)
    own = [
        name
        for name in rows["none"].column_names
        if name not in ("scored_at", "model", "model_digest")
    ]
    for which in ("flagged", "all"):
        assert rows[which].select(own).equals(rows["none"].select(own))
    assert rows["all"].select(PEAK).equals(rows["flagged"].select(PEAK))


def test_gc_keeps_the_maps_rollback_takes_them_and_no_other_flag_continues(
    bundle: Bundle, night: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(bundle, night, tmp_path)
    score(config)
    with pytest.raises(ConfigError, match="heatmaps"):
        score(replace(config, heatmaps="none"))
    run = Run(config.output, "r")
    gc(GcConfig(config.output, older_than="0s"))
    [commit] = read_commits(run)
    assert read_facts(run, commit)["heatmap"].null_count < NUM_IMAGES
    rollback(RollbackConfig(config.output, "r"))
    assert not list(Path(run.uri).rglob("facts/*"))
