import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, ScoreConfig
from imgcls.image.formats.abilities import NEEDED
from imgcls.image.versions import DECODER_VERSIONS
from imgcls.nightly import nightly
from imgcls.runs.latest import read_latest_units
from imgcls.scoring.driver import score
from imgcls.storage.objects import put
from tests.scoring.tiny import comparable, published_rows, write_images

NUM_IMAGES = 200


@pytest.mark.ray
@pytest.mark.s3
def test_ray_and_local_write_identical_rows(model_ref: str, s3_bucket: str) -> None:
    write_images(f"{s3_bucket}/images", NUM_IMAGES)
    for executor in ("local", "ray"):
        score(
            ScoreConfig(
                f"{s3_bucket}/images",
                model_ref,
                f"{s3_bucket}/{executor}",
                run_id="night",
                executor=executor,  # type: ignore[arg-type]
                unit="name:([0-9]{2})[.]",
                shard_size=64,
            )
        )
    local = comparable(published_rows(f"{s3_bucket}/local"))
    assert len(local) == NUM_IMAGES
    assert comparable(published_rows(f"{s3_bucket}/ray")) == local
    # A unit here is of two images, a hundred apart, in two shards.
    units = {
        executor: read_latest_units(f"{s3_bucket}/{executor}").drop_columns("scored_at").to_pylist()
        for executor in ("local", "ray")
    }
    assert [unit["num_ok"] for unit in units["local"]] == [2] * (NUM_IMAGES // 2)
    assert units["ray"] == units["local"]


@pytest.mark.ray
def test_a_night_on_ray_judges_and_remembers_as_a_local_one_does(
    model_ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDED, "heif", "not_installed")
    source = tmp_path / "bucket"
    write_images(str(source), 110)
    for number in range(18):
        put(str(source / f"z{number:02d}.json"), b"{}")
    put(str(source / "lot-0/refused.psd"), b"8BPS" + bytes([7] * 60))
    results = {}
    for executor in ("local", "ray"):
        night = NightlyConfig(
            str(source), model_ref, str(tmp_path / executor), executor=executor, shard_size=64
        )
        results[executor] = nightly(night)
        [manifest] = (tmp_path / executor).glob("date=*/run=*/_manifest.json")
        assert "read" in json.loads(manifest.read_text())["decoders"]["reads"]["png"]
    told = {name: results["ray"][name] for name in ("status_counts", "not_an_image")}
    assert told == {name: results["local"][name] for name in told}
    assert told["status_counts"] == {"not_an_image": 18, "ok": 110, "unsupported": 1}
    # The nodes are asked, not this process: what it alone reads is not a reason to try again.
    monkeypatch.setitem(DECODER_VERSIONS, "psd", 1)
    assert nightly(night)["rows"] == 0
    assert nightly(NightlyConfig(**{**vars(night), "executor": "local"}))["rows"] == 1


@pytest.mark.ray
def test_log_handlers_of_others_keep_their_level(
    model_ref: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(str(tmp_path / "bucket"), 3)
    of_others = logging.StreamHandler(io.StringIO())
    logging.getLogger("ray.data").addHandler(of_others)
    try:
        score(ScoreConfig(str(tmp_path / "bucket"), model_ref, str(tmp_path / "o"), executor="ray"))
    finally:
        logging.getLogger("ray.data").removeHandler(of_others)
    assert (of_others.level, caplog.handler.level) == (logging.NOTSET, logging.NOTSET)
    logging.getLogger("imgcls.any").warning("still heard")
    assert "still heard" in caplog.text


def test_local_executor_never_imports_ray(model_ref: str, tmp_path: Path) -> None:
    write_images(str(tmp_path / "bucket"), 3)
    code = (
        "import sys; from imgcls.config.scoring import ScoreConfig;"
        "from imgcls.scoring.driver import score;"
        f"score(ScoreConfig({str(tmp_path / 'bucket')!r}, {model_ref!r}, {str(tmp_path / 'o')!r},"
        " executor='local')); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
