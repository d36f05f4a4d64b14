"""Kill anything, run the same command again: proved at every write that a night makes."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import deltalake
import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import NightlyConfig, ScoreConfig, VerifyConfig
from imgcls.image.spec import PreprocessSpec
from imgcls.model.registry import register
from imgcls.nightly import nightly
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import read_facts
from imgcls.runs.run import Run, list_run_ids
from imgcls.scoring import driver
from imgcls.scoring.publishing.verify import verify
from tests.scoring.tiny import (
    IMAGE_PX,
    comparable,
    image_bytes,
    make_bundle,
    make_calibration,
    published_rows,
    write_images,
)

IMAGES_PER_SHARD = 12


def num_writes(num_shards: int) -> int:
    """Of a shard an attempt, its facts and its commit.

    Of a night: lease, plan file, plan.json, lease renewed, part, manifest, lease let go;
    precision.json; progress.json at the start and at the end, report.json, observed.zip,
    drift.json, counts.json, the page, latest.sql, the log.
    """
    return 17 + 3 * num_shards


def run_campaign(bucket: Path, model: str, nights: Path, *flags: str) -> list[dict[str, Any]]:
    """Kill a night at each of its writes, and start it again; return what became of each."""
    command = [sys.executable, "-m", "tests.scoring.faults.crash_points", str(bucket), model]
    campaign = subprocess.run(
        [*command, str(nights), *flags], capture_output=True, text=True, check=True
    )
    points = [json.loads(line) for line in campaign.stdout.splitlines()]
    assert [point["killed"] for point in points].count(0) == 2
    assert {point["killed"] for point in points} == {0, -signal.SIGKILL}
    return points


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("num_shards", "step"),
    [
        pytest.param(3, 3, id="every third"),
        pytest.param(3, 1, id="3", marks=pytest.mark.slow),
        pytest.param(8, 1, id="8", marks=pytest.mark.slow),
    ],
)
def test_killed_before_and_after_every_write_the_same_command_finishes(
    num_shards: int, step: int, model_ref: str, tmp_path: Path
) -> None:
    num_images = num_shards * IMAGES_PER_SHARD
    write_images(str(tmp_path / "bucket"), num_images)
    # The oracle: one undisturbed run, one process, one shard.
    driver.score(
        ScoreConfig(str(tmp_path / "bucket"), model_ref, str(tmp_path / "oracle"), executor="local")
    )
    undisturbed = comparable(published_rows(str(tmp_path / "oracle")))
    assert len(undisturbed) == num_images
    for_people = pages_of(str(tmp_path / "oracle"))
    # Beyond the last write a night is untouched, which shows that there are no more.
    killed_at = [*range(1, num_writes(num_shards) + 1, step), num_writes(num_shards) + 1]
    points = run_campaign(tmp_path / "bucket", model_ref, tmp_path / "nights", *map(str, killed_at))
    assert len(points) == 2 * len(killed_at), "each before and after, and twice untouched"
    for point in points:
        assert point["finished"] == 0, point
        assert comparable(published_rows(point["output"])) == undisturbed, point
        assert verify(VerifyConfig(point["output"]))["rows"] == num_images
        assert pages_of(point["output"]) == for_people, point


def pages_of(output: str) -> dict[str, Any]:
    """Return what a person finds: of each page its sentence and its cards, of each CSV its rows."""
    found: dict[str, Any] = {}
    for path in Path(output).glob("_runs/*/pages/*"):
        text = path.read_text("utf-8-sig")
        if path.suffix == ".csv":
            rows = [row | {"run_id": ""} for row in csv.DictReader(io.StringIO(text))]
            found[path.name] = sorted(rows, key=lambda row: row["uri"])
            continue
        assert text.endswith("</html>"), path
        cards = re.findall(r'<li class="card.*?</li>', text, re.DOTALL)
        found[path.name] = re.findall("<h1>.*</h1>", text), sorted(cards)
    assert "report.html" in found, f"{output} has no page"
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_a_page_the_next_start_makes_the_same_one(tmp_path: Path) -> None:
    bundle = make_bundle(calibration=make_calibration(1e-4, 3e-4, 6e-4))
    model = f"{tmp_path}/registry/m@v{register(f'{tmp_path}/registry', 'm', bundle).version}"
    bucket, unit = tmp_path / "bucket", "name:0*([0-9]+)[0-9]"
    write_images(str(bucket), 24)
    (bucket / "lot-0" / "00030.png").write_bytes(image_bytes(30)[:400])
    oracle = str(tmp_path / "oracle")
    driver.score(ScoreConfig(str(bucket), model, oracle, executor="local", unit=unit))
    for_people = pages_of(oracle)
    assert {"report.html", "units.html", "positive.csv", "failed.csv"} <= set(for_people)
    flags = ("--about", "/pages/", "--unit", unit)
    every = run_campaign(bucket, model, tmp_path / "nights", *flags)
    assert len(every) == 2 * len(for_people) + 2
    for point in every:
        assert point["finished"] == 0, point
        assert pages_of(point["output"]) == for_people, point
        assert len(published_rows(point["output"])) == 25


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("about", "num_points"),
    [
        pytest.param("", 2 * (num_writes(1) + 2 + 1), marks=pytest.mark.slow, id="every write"),
        # The table beside the attempt, and its copy that the manifest names.
        pytest.param("tiles", 2 * (2 + 1), id="tables of tiles"),
    ],
)
def test_killed_at_the_tables_of_tiles_the_same_command_finishes(
    tmp_path: Path, about: str, num_points: int
) -> None:
    spec = PreprocessSpec(IMAGE_PX, IMAGE_PX, fit="tiles", overlap_px=8)
    bundle = replace(make_bundle(), preprocess_spec=spec, pooling="max", background_class="class-0")
    model = (
        f"{tmp_path}/registry/tiles@v{register(f'{tmp_path}/registry', 'tiles', bundle).version}"
    )
    bucket = tmp_path / "bucket"
    write_images(str(bucket), 12)
    oracle = str(tmp_path / "oracle")
    driver.score(ScoreConfig(str(bucket), model, oracle, executor="local", write_tiles=True))
    undisturbed, tiles = comparable(published_rows(oracle)), tiles_of(oracle)
    assert len(undisturbed) == 12
    assert len(tiles) > 12
    points = run_campaign(
        bucket, model, tmp_path / "nights", "--write-tiles", *(["--about", about] if about else [])
    )
    assert len(points) == num_points
    for point in points:
        assert point["finished"] == 0, point
        assert comparable(published_rows(point["output"])) == undisturbed, point
        assert tiles_of(point["output"]) == tiles, point
        assert verify(VerifyConfig(point["output"]))["rows"] == 12


def tiles_of(output: str) -> list[tuple[object, ...]]:
    """Return every tile that is published: where it is, and what the model said of it."""
    files = sorted(Path(output).glob("_tiles/date=*/run=*/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    place = ("uri", "x_px", "y_px", "w_px", "h_px")
    return sorted((*(row[name] for name in place), *row["probs"]) for row in rows)


def write_parts(source: Path, numbers: range) -> None:
    """Write images of parts, which four cameras see; of a part some come on a later night."""
    source.mkdir(exist_ok=True)
    for number in numbers:
        name = f"part{number * 5 % 8}-cam{number}.png"
        (source / name).write_bytes(image_bytes(number))


def units_of(output: str) -> list[tuple[object, ...]]:
    """Return every published row of a unit, of all nights."""
    files = sorted(Path(output).glob("_groups/date=*/run=*/*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]
    kept = ("unit", "run_id", "version", "replaces_run_id", "num_ok", "statuses", "uri", "label")
    return sorted((*(row[name] for name in kept), *row["probs"]) for row in rows)


def check_with_units(model_ref: str, folder: Path, *flags: str) -> list[int]:
    """Kill the second night, with units and Delta; return the exit codes of the killed."""
    source, key = folder / "bucket", "name:part([0-9]+)"
    write_parts(source, range(20))
    first = NightlyConfig(
        str(source), model_ref, str(folder / "first"), date="2026-11-21", executor="local",
        num_decoders=1, unit=key, delta=True,
    )  # fmt: skip
    nightly(first)
    write_parts(source, range(20, 32))
    shutil.copytree(first.output, folder / "oracle")
    nightly(replace(first, output=str(folder / "oracle"), date="2026-11-22"))
    rows, units = (of(str(folder / "oracle")) for of in (published_rows, units_of))
    undisturbed = comparable(rows)
    assert (len(undisturbed), len(units)) == (32, 16)
    found = run_campaign(
        source, model_ref, folder / "nights",
        "--unit", key, "--delta", "--earlier", first.output, *flags,
    )  # fmt: skip
    for point in found:
        assert point["finished"] == 0, point
        assert comparable(published_rows(point["output"])) == undisturbed, point
        assert units_of(point["output"]) == units, point
        assert verify(VerifyConfig(point["output"]))["rows"] == 32
        table = deltalake.DeltaTable(point["output"]).to_pyarrow_table()
        assert sorted(table["uri"].to_pylist()) == sorted(row["uri"] for row in undisturbed), point
    return [point["killed"] for point in found]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_night_killed_at_its_table_of_units_is_finished_with_the_same_one(
    model_ref: str, tmp_path: Path
) -> None:
    assert check_with_units(model_ref, tmp_path, "--about", "_groups") == [-signal.SIGKILL, 0] * 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_night_with_units_and_delta_is_finished_from_every_write(
    model_ref: str, tmp_path: Path
) -> None:
    # The table and the page of units besides; deltalake's own writes are killed in tests/results.
    assert len(check_with_units(model_ref, tmp_path)) > 2 * (num_writes(1) + 1)


def check_with_heatmaps(model_ref: str, folder: Path, *points: str) -> list[int]:
    """Kill nights with heatmaps at these points; return the exit codes of the killed."""
    source, num_images = folder / "bucket", 24
    write_images(str(source), num_images)
    config = ScoreConfig(
        str(source), model_ref, str(folder / "oracle"), executor="local", heatmaps="all"
    )
    driver.score(config)
    undisturbed = comparable(published_rows(config.output))
    assert any(row["peak_x_px"] is not None for row in undisturbed)
    command = [sys.executable, "-m", "tests.scoring.faults.crash_points", str(source), model_ref]
    command += [str(folder / "nights"), *points, "--heatmaps", "all"]
    campaign = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in campaign.stdout.splitlines()]
    for point in found:
        assert point["finished"] == 0, point
        assert comparable(published_rows(point["output"])) == undisturbed, point
        assert verify(VerifyConfig(point["output"]))["rows"] == num_images
        run = next(list_run_ids(point["output"]))
        commits = list(read_commits(Run(point["output"], run)))
        maps = [read_facts(Run(point["output"], run), commit)["heatmap"] for commit in commits]
        assert sum(len(part.drop_null()) for part in maps) == sum(
            row["peak_x_px"] is not None for row in undisturbed
        )
    return [point["killed"] for point in found]


def test_a_night_with_heatmaps_is_finished_with_the_same_ones(
    model_ref: str, tmp_path: Path
) -> None:
    """Killed at the facts of its first shard: the first one that its pictures are in."""
    assert check_with_heatmaps(model_ref, tmp_path, "6") == [-signal.SIGKILL] * 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_night_with_heatmaps_is_finished_from_every_write(model_ref: str, tmp_path: Path) -> None:
    killed = check_with_heatmaps(model_ref, tmp_path)
    assert killed.count(0) == 2
    assert len(killed) > 40
