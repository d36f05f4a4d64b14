"""Pictures unlike all that a model knows: named in their rows, and sent to review where asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.drift.reference import observe
from imgcls.errors import ConfigError
from imgcls.image.png import encode_png
from imgcls.model.registry import register
from imgcls.scoring.driver import score
from imgcls.storage.bulk_get import GetRequest
from imgcls.storage.objects import put
from tests.drift.cameras import make_line, write_pictures
from tests.scoring.tiny import make_bundle, make_calibration, published_rows


def test_the_unfamiliar_go_to_review_by_flag_and_nothing_else_moves(tmp_path: Path) -> None:
    # No picture is unsure: whatever is sent to review is sent for being unfamiliar.
    line = make_line(tmp_path, calibration=make_calibration(0.5, 0.5, 0.5))
    write_pictures(Path(line.source), "known", 40)
    rng = np.random.default_rng(0)
    for number in range(20):
        noise = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        put(f"{line.source}/camera=0/noise-{number:02d}.png", encode_png(noise))
    config = ScoreConfig(line.source, line.model, str(tmp_path / "plain"), executor="local")
    score(config)
    score(replace(config, output=str(tmp_path / "review"), review_unfamiliar=True))
    plain, review = (
        sorted(published_rows(str(tmp_path / name)).to_pylist(), key=lambda row: row["uri"])
        for name in ("plain", "review")
    )
    unfamiliar = {row["uri"] for row in review if row["unfamiliar"]}
    assert sum("noise-" in uri for uri in unfamiliar) == 20
    # One known picture in a hundred, by what was promised.
    assert sum("known-" in uri for uri in unfamiliar) <= 3
    assert all((row["unfamiliarity"] > 1) == (row["uri"] in unfamiliar) for row in review)
    assert "review" not in {row["decision"] for row in plain}
    for before, after in zip(plain, review, strict=True):
        decision = "review" if before["uri"] in unfamiliar else before["decision"]
        assert after["decision"] == decision
        assert after["unfamiliarity"] == before["unfamiliarity"]
        assert after["confidence"] == before["confidence"]


def test_a_model_that_decides_nothing_or_knows_nothing_is_refused(tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    write_pictures(tmp_path / "in", "one", 1)
    register(registry, "m", make_bundle())
    register(registry, "m", make_bundle(calibration=make_calibration(0.4, 0.5, 0.6)))
    for version, told in ((1, "has no thresholds"), (2, "has no reference")):
        config = ScoreConfig(
            str(tmp_path / "in"), f"{registry}/m@v{version}", str(tmp_path / "out")
        )
        with pytest.raises(ConfigError, match=told):
            score(replace(config, review_unfamiliar=True, executor="local"))
    assert not (tmp_path / "out" / "_runs").exists()


def test_features_beyond_float16_are_kept_by_a_reference_as_nights_keep_them(
    tmp_path: Path,
) -> None:
    bundle = make_bundle()
    weights = dict(bundle.state_dict)
    for name, times in (("1.weight", 1e7), ("1.bias", 1e7), ("4.weight", 1e-7)):
        weights[f"classifier.{name}"] = weights[f"classifier.{name}"] * times
    bundle = replace(bundle, state_dict=weights)
    write_pictures(tmp_path, "one", 4)
    requests = [GetRequest(n, str(path)) for n, path in enumerate(sorted(tmp_path.rglob("*.png")))]
    sketch_BS = observe(bundle, requests, 1, "cpu", 1, {}).sketches()
    assert sketch_BS.shape == (4, 32)
    assert np.abs(sketch_BS).max() == np.finfo(np.float16).max
