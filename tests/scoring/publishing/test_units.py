"""One answer per unit: over shards, archives and nights, whatever is killed, fails or moves."""

import logging
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import GcConfig, NightlyConfig, RollbackConfig, ScoreConfig, VerifyConfig
from imgcls.errors import ConfigError, ImgclsError
from imgcls.metrics.pooling import pool
from imgcls.nightly import nightly
from imgcls.runs.latest import read_latest
from imgcls.scoring.driver import score
from imgcls.scoring.publishing import publish
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from tests.scoring.nights import leave_unfinished
from tests.scoring.tiny import image_bytes, published_rows

NUM_UNITS, NUM_IMAGES = 40, 4


def unit_rows(output: str) -> list[dict[str, Any]]:
    """Every published row of a unit, as a reader finds it by the pattern."""
    files = sorted(Path(output).glob("_groups/date=*/run=*/part-*.parquet"))
    tables = [pq.read_table(file, partitioning=None) for file in files]
    return pa.concat_tables(tables).to_pylist() if tables else []


def latest_units(output: str) -> dict[str | None, dict[str, Any]]:
    found: dict[str | None, dict[str, Any]] = {}
    for row in sorted(unit_rows(output), key=lambda row: row["version"]):
        found[row["unit"]] = row
    return found


@pytest.fixture
def parts(tmp_path: Path, model_ref: str) -> NightlyConfig:
    """A night whose units are named in the files' names."""
    (tmp_path / "in").mkdir()
    return NightlyConfig(
        str(tmp_path / "in"),
        model_ref,
        str(tmp_path / "out"),
        date="2026-11-22",
        executor="local",
        num_decoders=1,
        shard_size=64,
        unit="name:part([0-9]+)",
    )


def names() -> list[str]:
    return [f"part{u:03d}-cam{c}.png" for u in range(NUM_UNITS) for c in range(NUM_IMAGES)]


def bring(source: str, arrivals: list[str], archive: str = "") -> None:
    """Put images into the source, loose, or half of them in an archive."""
    loose, packed = (arrivals[::2], arrivals[1::2]) if archive else (arrivals, [])
    for name in loose:
        (Path(source) / name).write_bytes(image_bytes(hash_of(name)))
    if packed:
        with zipfile.ZipFile(Path(source) / archive, "w") as file:
            for name in packed:
                file.writestr(name, image_bytes(hash_of(name)))


def hash_of(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))


def test_a_unit_is_pooled_over_shards_archives_and_nights(parts: NightlyConfig) -> None:
    arrivals = names()
    random.Random(5).shuffle(arrivals)
    for number, night in enumerate(np.array_split(np.array(arrivals), 3)):
        bring(parts.source, night.tolist(), f"lot-{number}.zip")
        result = nightly(replace(parts, run_id=f"night-{number}"))
    rows = read_latest(parts.output).to_pylist()
    assert len(rows) == NUM_UNITS * NUM_IMAGES
    latest = latest_units(parts.output)
    assert len(latest) == NUM_UNITS
    assert result["units"]["ok"] == len(
        [r for r in unit_rows(parts.output) if r["run_id"] == "night-2"]
    )
    for unit, row in latest.items():
        ours = [r for r in rows if r["unit"] == unit]
        probs = np.array([r["probs"] for r in ours], np.float32)
        assert (row["status"], row["num_images"], row["num_ok"]) == ("ok", NUM_IMAGES, NUM_IMAGES)
        pooled = pool(probs, "max", multi_label=False, background=None)
        assert row["probs"] == pytest.approx(pooled, abs=1e-7)
        best = max(ours, key=lambda r: max(r["probs"]))
        assert (row["uri"], row["member"]) == (best["uri"], best["member"])
        assert row["runs"] == sorted({r["run_id"] for r in ours})
        assert row["statuses"] == f"ok {NUM_IMAGES}"
    # Each row of a later night names the one whose place it takes.
    by_place = {(row["unit"], row["run_id"]): row for row in unit_rows(parts.output)}
    for row in by_place.values():
        before = by_place.get((row["unit"], row["replaces_run_id"]))
        assert row["version"] == (before["version"] + 1 if before else 1)
    assert verify(VerifyConfig(parts.output))["rows"] == NUM_UNITS * NUM_IMAGES


def test_a_failed_image_makes_its_unit_incomplete_and_a_unit_of_those_alone_failed(
    parts: NightlyConfig,
) -> None:
    bring(parts.source, ["part001-a.png", "part001-b.png", "part002-a.png"])
    (Path(parts.source) / "part001-c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (Path(parts.source) / "part003-a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (Path(parts.source) / "part002-report.pdf").write_bytes(b"%PDF-1.4")
    result = nightly(parts)
    latest = latest_units(parts.output)
    assert {unit: row["status"] for unit, row in latest.items()} == {
        "001": "incomplete",
        "002": "ok",
        "003": "failed",
    }
    assert latest["001"]["statuses"] == "corrupt 1, ok 2"
    assert (latest["001"]["num_ok"], latest["001"]["num_failed"]) == (2, 1)
    assert latest["002"]["statuses"] == "not_an_image 1, ok 1"
    assert latest["003"]["class_name"] is None
    assert latest["003"]["uri"].endswith("part003-a.png")
    assert result["units"] == {"failed": 1, "incomplete": 1, "ok": 1}


def test_an_image_of_no_unit_answers_for_itself_and_is_counted(parts: NightlyConfig) -> None:
    bring(parts.source, ["part001-a.png", "loose-7.png", "loose-8.png"])
    result = nightly(parts)
    rows = unit_rows(parts.output)
    assert sorted(row["unit"] or Path(row["uri"]).name for row in rows) == [
        "001",
        "loose-7.png",
        "loose-8.png",
    ]
    assert result["units"]["images_without_unit"] == 2
    assert any(line.startswith("Images of no unit: 2.") for line in result["lines"])


def test_an_image_that_moves_to_another_unit_leaves_its_old_one(parts: NightlyConfig) -> None:
    manifest = Path(parts.source).parent / "list.csv"
    bring(parts.source, ["a1.png", "a2.png", "b3.png"])
    config = replace(parts, source=str(manifest), unit="study")
    uris = {name: f"{parts.source}/{name}" for name in ("a1.png", "a2.png", "b3.png")}
    lines = [f"{uris['a1.png']},7", f"{uris['a2.png']},7", f"{uris['b3.png']},8"]
    manifest.write_text("\n".join(["uri,study", *lines]))
    nightly(replace(config, run_id="one"))
    assert {unit: row["num_images"] for unit, row in latest_units(parts.output).items()} == {
        "7": 2,
        "8": 1,
    }
    # Another version of the image, now of study 8; and then the last one of study 7.
    for number, name in enumerate(("a2.png", "a1.png")):
        Path(uris[name]).write_bytes(image_bytes(100 + number))
        text = manifest.read_text().replace(f"{uris[name]},7", f"{uris[name]},8")
        manifest.write_text(text)
        nightly(replace(config, run_id=f"more-{number}"))
    latest = latest_units(parts.output)
    assert (latest["8"]["num_images"], latest["8"]["status"]) == (3, "ok")
    assert (latest["7"]["num_images"], latest["7"]["status"]) == (0, "empty")
    assert latest["7"]["replaces_run_id"] == "more-0"


def test_killed_before_its_manifest_a_run_publishes_each_unit_once(
    parts: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(parts.source, names()[:40])
    config = ScoreConfig(**{k: v for k, v in vars(parts).items() if k != "retry_failed"})
    config = replace(config, run_id="one")

    def die() -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(publish, "record_text", lambda *_, **__: die())
        with pytest.raises(SystemExit):
            score(config)
    # Another run publishes images of the same units meanwhile: what is left behind is another text.
    bring(parts.source, names()[40:42])
    score(replace(config, run_id="two"))
    score(config)
    ours = [row for row in unit_rows(parts.output) if row["run_id"] == "one"]
    assert len(ours) == len({row["unit"] for row in ours}) == 10
    assert verify(VerifyConfig(parts.output))["runs_published"] == 2


def test_rollback_takes_the_units_along_and_gc_what_no_manifest_names(
    parts: NightlyConfig,
) -> None:
    bring(parts.source, names()[:8])
    nightly(replace(parts, run_id="one"))
    bring(parts.source, names()[8:10])
    nightly(replace(parts, run_id="two"))
    [named] = Path(parts.output).glob("_groups/*/run=two/*.parquet")
    (named.parent / "part-00000-00000000.parquet").write_bytes(named.read_bytes())
    with pytest.raises(ImgclsError, match="does not name it: imgcls gc removes it"):
        verify(VerifyConfig(parts.output))
    gc(GcConfig(parts.output, older_than="0s"))
    assert list(named.parent.iterdir()) == [named]
    verify(VerifyConfig(parts.output))
    rollback(RollbackConfig(parts.output, "two"))
    assert {row["run_id"] for row in unit_rows(parts.output)} == {"one"}


def test_earlier_runs_without_units_are_told_and_not_mixed_in(
    parts: NightlyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    bring(parts.source, ["part001-a.png"])
    nightly(replace(parts, unit="", run_id="one"))
    bring(parts.source, ["part001-b.png"])
    with caplog.at_level(logging.WARNING):
        nightly(replace(parts, run_id="two"))
    assert "1 earlier runs of this output have no units" in caplog.text
    [row] = unit_rows(parts.output)
    assert row["num_images"] == 1


def test_flags_that_cannot_work_are_refused(parts: NightlyConfig) -> None:
    bring(parts.source, ["part001-a.png"])
    with pytest.raises(ConfigError, match="--unit-rule mean: needs --unit"):
        nightly(replace(parts, unit="", unit_rule="mean"))
    with pytest.raises(ConfigError, match="IMGCLS_IDENTITY_KEY"):
        nightly(replace(parts, unit="dicom:StudyInstanceUID"))
    with pytest.raises(ConfigError, match="--unit dicom:PatientName: it may tell who"):
        nightly(replace(parts, unit="dicom:PatientName"))
    leave_unfinished(parts, run_id="one")
    config = ScoreConfig(**{k: v for k, v in vars(parts).items() if k != "retry_failed"})
    score(replace(config, run_id="two"))
    with pytest.raises(ConfigError, match="--unit"):
        score(replace(config, run_id="two", unit="folder:1"))


def test_a_reader_of_predictions_finds_no_units_among_them(parts: NightlyConfig) -> None:
    bring(parts.source, names()[:8])
    nightly(parts)
    files = list(Path(parts.output).glob("date=*/run=*/*.parquet"))
    assert sum(pq.read_metadata(file).num_rows for file in files) == 8
    rows = published_rows(parts.output)
    assert set(rows["unit"].to_pylist()) == {"000", "001"}
    assert all(rows["probs"].to_pylist())
