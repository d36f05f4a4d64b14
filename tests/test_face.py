"""`import imgcls`: light, typed, and the same answers as a night's rows."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import imgcls
from imgcls.errors import ConfigError, SourceError
from imgcls.image.png import encode_png
from imgcls.model.bundle import Bundle
from imgcls.model.registry import promote, register
from tests.kit.small_bundle import make_small_bundle

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def model(tmp_path: Path) -> str:
    register(str(tmp_path / "registry"), "m", make_small_bundle())
    promote(f"{tmp_path}/registry/m@v1", "production")
    return f"{tmp_path}/registry/m@production"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
    (folder / "broken.png").write_bytes(encode_png(pixels)[:60])
    return folder


def test_import_alone_loads_no_library() -> None:
    code = (
        "import sys, imgcls; "
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'PIL', 'duckdb', 'timm'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "assert set(imgcls.__all__) <= set(dir(imgcls)); "
        "import imgcls.cli; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_is_there_described_and_no_more_than_eight() -> None:
    assert len(imgcls.__all__) <= 8
    for name in imgcls.__all__:
        assert getattr(imgcls, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = imgcls.predict


def test_predict_gives_the_rows_of_a_night(model: str, images: Path, tmp_path: Path) -> None:
    imgcls.score(str(images), model, str(tmp_path / "out"), executor="local", precision="fp32")
    rows = {Path(row["uri"]).name: row for row in imgcls.read(str(tmp_path / "out")).to_pylist()}
    paths = sorted(images.iterdir())
    with imgcls.load(model) as loaded:
        found = loaded.predict(paths)
    assert [one.image for one in found] == list(range(len(paths)))
    for path, one in zip(paths, found, strict=True):
        row = rows[path.name]
        assert (one.status, one.error) == (row["status"], row["error"] or "")
        if one.status == "ok":
            assert one.class_name == row["class_name"]
            assert one.class_names == (row["class_name"],)
            assert one.confidence == pytest.approx(row["confidence"], abs=1e-6)
            assert math.fsum(one.probs.values()) == pytest.approx(1, abs=1e-5)
    assert [one.status for one in found if one.status != "ok"] == ["corrupt"]


def test_arrays_bytes_and_paths_give_the_same(model: str, images: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (21, 24, 3), dtype=np.uint8)
    (images / "same.png").write_bytes(data := encode_png(pixels))
    with imgcls.load(model) as loaded:
        given: list[imgcls.face.Image] = [str(images / "same.png"), data, pixels]
        found = loaded.predict(given)
        assert len({tuple(one.probs.values()) for one in found}) == 1
        assert loaded.predict(pixels)[0].probs == found[0].probs
        assert loaded.predict(pixels[..., 0])[0].status == "ok"
        with pytest.raises(ConfigError, match=r"float64 \[21, 24, 3\] is no picture"):
            loaded.predict(pixels.astype(float))


def test_read_gives_the_latest_row_of_each_image(model: str, images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(SourceError, match="nothing is published"):
        imgcls.read(out)
    first = imgcls.score(str(images), model, out, executor="local")
    (images / "new.png").write_bytes((images / "0.png").read_bytes())
    (images / "1.png").unlink()
    second = imgcls.score(str(images), model, out, executor="local", write_probs=True)
    table = imgcls.read(out)
    runs = {Path(row["uri"]).name: row["run_id"] for row in table.to_pylist()}
    assert len(table) == len(runs) == 7
    assert runs["1.png"] == first["run_id"]
    assert {run for name, run in runs.items() if name != "1.png"} == {second["run_id"]}
    assert table["uri"].to_pylist() == sorted(table["uri"].to_pylist())
    assert "probs" in table.column_names


def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no alias|there is no model"):
        imgcls.load(f"{tmp_path}/m@production")
