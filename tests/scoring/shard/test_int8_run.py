"""The int8 network of a run is made once, whoever starts it and however often."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, ScoreConfig
from imgcls.errors import ConfigError
from imgcls.image.decoders.pool import DecoderPool
from imgcls.inference.backends.int8 import MIN_CALIBRATION
from imgcls.model.registry import register
from imgcls.nightly import nightly
from imgcls.runs.plan import PlannedRows
from imgcls.runs.run import Run
from imgcls.scoring.driver import make_plan, score
from imgcls.scoring.shard.int8_run import take_sample
from imgcls.storage.objects import list_objects, put, read
from tests.scoring.tiny import (
    image_bytes,
    make_bundle,
    make_sure_bundle,
    published_rows,
    write_images,
)


def register_sure(registry: Path) -> str:
    return register(str(registry), "m", make_sure_bundle()).uri


def test_sample_is_the_same_every_time_and_comes_from_all_over_the_plan(tmp_path: Path) -> None:
    uris = write_images(str(tmp_path / "images"), 150)
    Path(uris[0]).write_bytes(b"damaged")
    model = register_sure(tmp_path / "registry")
    config = ScoreConfig(
        str(tmp_path / "images"), model, str(tmp_path / "out"), shard_size=64, device="cpu"
    )
    plan = make_plan(config, Run(config.output, "night"), 1)
    bundle = make_bundle()
    with DecoderPool(bundle.decode_spec, bundle.preprocess_spec, 1) as pool:
        first, second = (take_sample(PlannedRows(plan), pool) for _ in range(2))
    assert first.equal(second)
    assert len(first) == 149, "all that decode"


def test_int8_without_openvino_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]  # None: not there
    write_images(str(tmp_path / "images"), 70)
    model = register_sure(tmp_path / "registry")
    with pytest.raises(ConfigError, match=r"pip install \"imgcls\[int8\]\""):
        score(
            ScoreConfig(
                str(tmp_path / "images"),
                model,
                str(tmp_path / "out"),
                precision="int8",
                device="cpu",
            )
        )
    assert not [info for info in list_objects(str(tmp_path / "out")) if "attempts" in info.uri]


@pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")), reason="the extra int8 is not installed"
)
def test_run_is_calibrated_once_and_resumed_with_the_same_network(tmp_path: Path) -> None:
    write_images(str(tmp_path / "images"), 3 * MIN_CALIBRATION)
    model = register_sure(tmp_path / "registry")
    out = tmp_path / "out"
    config = ScoreConfig(
        str(tmp_path / "images"), model, str(out), run_id="night", precision="int8", device="cpu"
    )
    result = score(config)
    assert result["engines"] == ["openvino int8 on cpu"]
    stored = read(str(next((out / "_runs" / "night").glob("int8-*.zip"))))
    before = published_rows(str(out)).drop_columns(["scored_at"]).to_pylist()
    for path in [*out.glob("date=*/run=*/*"), *out.glob("_runs/night/commits/*")]:
        path.unlink()
    score(config)
    assert read(str(next((out / "_runs" / "night").glob("int8-*.zip")))) == stored
    assert published_rows(str(out)).drop_columns(["scored_at"]).to_pylist() == before


@pytest.mark.skipif(
    not (find_spec("openvino") and find_spec("nncf")), reason="the extra int8 is not installed"
)
def test_small_night_takes_over_the_last_nights_network_or_is_refused_before_it_is_planned(
    tmp_path: Path,
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    model = register_sure(tmp_path / "registry")
    config = NightlyConfig(
        str(images), model, str(out), date="2026-11-22", precision="int8", device="cpu"
    )
    write_images(str(images), 5)
    with pytest.raises(ConfigError, match=r"not 5, and no published run in .* --precision auto"):
        nightly(config)
    assert not (out / "_runs").exists()
    write_images(str(images), 2 * MIN_CALIBRATION)
    nightly(config)
    for number in range(5):
        put(f"{images}/new-{number}.png", b"damaged" if number == 0 else image_bytes(number))
    second = nightly(replace(config, max_failed_fraction=1.0))
    assert second["difference"]["new"] == 5
    assert second["engines"] == ["openvino int8 on cpu"]
    first, taken_over = sorted(out.glob("_runs/*/int8-*.zip"))
    assert "nightly-2026-11-22-2" in str(taken_over)
    assert taken_over.read_bytes() == first.read_bytes()
    # Another model's network is of no use.
    other = register(str(tmp_path / "registry"), "m", make_bundle()).uri
    put(f"{images}/only/newest.png", image_bytes(9))
    with pytest.raises(ConfigError, match="not 1, and no published run"):
        score(ScoreConfig(f"{images}/only", other, str(out), precision="int8", device="cpu"))
