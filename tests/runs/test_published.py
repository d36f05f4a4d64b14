"""What a reader finds of published runs, and what rows and records of other versions mean to it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import NightlyConfig, RollbackConfig, VerifyConfig
from imgcls.errors import SourceError
from imgcls.nightly import nightly
from imgcls.runs.commits import read_commits
from imgcls.runs.ledger import published_keys
from imgcls.runs.plan import read_plan
from imgcls.runs.published import (
    MANIFEST,
    Part,
    list_published,
    read_columns,
    read_manifest,
    with_comparable_etags,
)
from imgcls.runs.run import Run
from imgcls.scoring.publishing.retention import rollback
from imgcls.scoring.publishing.verify import verify
from imgcls.sources import ranged_file
from imgcls.storage.info import ObjectInfo
from tests.scoring.nights import leave_unfinished, make_night

FIRST, SECOND = "nightly-2026-11-22", "nightly-2026-11-23"


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> NightlyConfig:
    """Config of two published nights of three images each, for copies alone."""
    night = make_night(tmp_path_factory.mktemp("nights"), num_images=3)
    nightly(night)
    shutil.copytree(night.source, f"{night.source}-b")
    nightly(replace(night, source=f"{night.source}-b", date="2026-11-23"))
    return night


@pytest.fixture
def night(two_nights: NightlyConfig, tmp_path: Path) -> NightlyConfig:
    """The first of the two nights, in an output of this test."""
    shutil.copytree(two_nights.output, tmp_path / "out")
    return replace(two_nights, output=str(tmp_path / "out"))


def folder_of(night: NightlyConfig, run_id: str) -> Path:
    return Path(night.output) / f"date={run_id.removeprefix('nightly-')}" / f"run={run_id}"


def names(night: NightlyConfig) -> list[str]:
    """The published runs, as a reader finds them."""
    return [manifest.run_id for _, manifest in list_published(night.output)]


def num_keys(night: NightlyConfig) -> int:
    """How many published rows the ledger finds."""
    _, manifest = next(list_published(night.output))
    tables = published_keys(night.output, manifest.digests)
    return sum(table.num_rows for table in tables)


def change(path: Path, edit: Callable[[dict[str, object]], object]) -> None:
    """Write a record as another version of imgcls might have written it."""
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def test_published_runs_are_found_with_what_they_say_oldest_first(night: NightlyConfig) -> None:
    assert names(night) == [FIRST, SECOND]
    [(folder, manifest), _] = list_published(night.output)
    assert folder == str(folder_of(night, FIRST))
    assert read_manifest(folder) == manifest
    assert [part.path for part in manifest.parts] == ["part-00000.parquet"]
    assert (manifest.counts["rows"], manifest.status_counts) == (3, {"ok": 3})
    assert num_keys(night) == 6


def test_parts_without_a_manifest_are_not_there(night: NightlyConfig) -> None:
    (folder_of(night, SECOND) / "_manifest.json").unlink()
    assert list(folder_of(night, SECOND).glob("part-*"))
    assert read_manifest(str(folder_of(night, SECOND))) is None
    assert names(night) == [FIRST]
    assert num_keys(night) == 3


def test_a_part_that_no_manifest_names_is_not_there(night: NightlyConfig) -> None:
    part = folder_of(night, FIRST) / "part-00000.parquet"
    shutil.copy(part, part.with_name("part-00001.parquet"))
    assert num_keys(night) == 6


@pytest.mark.parametrize("place", [".", "date=2026-11-24", "date=2026-11-24/run=x/copy", "runs/x"])
def test_a_manifest_elsewhere_is_not_one_of_a_run(night: NightlyConfig, place: str) -> None:
    (Path(night.output) / place).mkdir(parents=True, exist_ok=True)
    manifest = folder_of(night, FIRST) / "_manifest.json"
    shutil.copy(manifest, Path(night.output) / place / "_manifest.json")
    assert names(night) == [FIRST, SECOND]


def test_a_run_that_was_rolled_back_is_not_there(night: NightlyConfig) -> None:
    rollback(RollbackConfig(night.output, FIRST))
    assert names(night) == [SECOND]
    assert num_keys(night) == 3


def test_a_run_that_is_rolled_back_while_they_are_listed_is_passed_over(
    night: NightlyConfig,
) -> None:
    december = [f"nightly-2026-12-{day:02d}" for day in range(1, 32)]
    for run_id in december:
        folder_of(night, run_id).mkdir(parents=True)
        shutil.copy(folder_of(night, FIRST) / MANIFEST, folder_of(night, run_id))
    runs = list_published(night.output)
    assert next(runs)[1].run_id == FIRST
    # Some are read ahead, the last is not yet.
    (folder_of(night, december[-1]) / MANIFEST).unlink()
    assert [Path(folder).name for folder, _ in runs] == [
        f"run={run_id}" for run_id in (SECOND, *december[:-1])
    ]


def test_fields_that_a_later_version_added_are_passed_over(night: NightlyConfig) -> None:
    before = list(list_published(night.output))
    run = Path(Run(night.output, FIRST).uri)
    for path in (folder_of(night, FIRST) / "_manifest.json", *run.glob("commits/*")):
        change(path, lambda fields: fields.update(added_later={"any": ["thing"]}))
    assert list(list_published(night.output)) == before
    assert [commit.num_rows for commit in read_commits(Run(night.output, FIRST))] == [3]
    plan = read_plan(Run(night.output, FIRST))
    change(run / "plan.json", lambda fields: fields.update(added_later=1))
    assert read_plan(Run(night.output, FIRST)) == plan
    assert verify(VerifyConfig(night.output))["rows"] == 6
    assert nightly(night)["rows"] == 0


def test_an_unfinished_night_with_commits_of_a_later_version_is_finished(
    night: NightlyConfig, tmp_path: Path
) -> None:
    night = replace(night, output=str(tmp_path / "other"))
    leave_unfinished(night)
    [commit] = Path(Run(night.output, FIRST).uri).glob("commits/*")
    change(commit, lambda fields: fields.update(added_later=1))
    result = nightly(night)
    assert (result["rows"], result["rows_scored_now"]) == (3, 0)


def test_a_manifest_of_another_format_is_refused_as_such_whatever_its_fields(
    night: NightlyConfig,
) -> None:
    path = folder_of(night, FIRST) / "_manifest.json"
    path.write_text(json.dumps({"format_version": 2, "pieces": []}))
    with pytest.raises(SourceError, match=r"another version of imgcls \(format_version 2"):
        names(night)


@pytest.mark.parametrize("name", ["format_version", "parts", "counts", "model_digest"])
def test_a_manifest_that_lacks_a_field_is_refused_and_not_read_as_an_empty_night(
    night: NightlyConfig, name: str
) -> None:
    change(folder_of(night, FIRST) / "_manifest.json", lambda fields: fields.pop(name))
    with pytest.raises(SourceError, match=f"_manifest.json, which should be .*{name}"):
        names(night)


def test_only_a_local_etag_loses_its_inode() -> None:
    md5 = "d41d8cd98f00b204e9800998ecf8427e"
    told = [
        ("/in/x.png", "18a1-5f-1f2e", "18a1-5f"),
        ("/in/x.png", "18a1-5f", "18a1-5f"),
        ("/in/gone.png", "", ""),
        ("/in/odd.png", "W/odd-5f-1", "W/odd-5f-1"),
        ("s3://b/x.png", "18a1-5f-1f2e", "18a1-5f-1f2e"),
        ("s3://b/parts.png", f"{md5}-12", f"{md5}-12"),
        ("az://c/x.png", "0x8DE2C0FFEE", "0x8DE2C0FFEE"),
    ]
    uris, etags, expected = (list(column) for column in zip(*told, strict=True))
    table = with_comparable_etags(pa.table({"etag": etags, "uri": uris}))
    assert table.column_names == ["etag", "uri"]
    assert table["etag"].to_pylist() == expected


def test_columns_of_a_part_are_read_without_the_wide_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    wide = pa.array(list(rng.random((20_000, 64), dtype=np.float32)), pa.list_(pa.float32()))
    uris = pa.array([f"s3://b/{n:09d}" for n in range(20_000)])
    table = pa.table({"uri": uris, "probs": wide, "status": pa.array(["ok"] * 20_000)})
    pq.write_table(table, tmp_path / "part-00000.parquet")
    size_bytes = (tmp_path / "part-00000.parquet").stat().st_size
    part = Part("part-00000.parquet", "", 20_000, size_bytes, 1)
    num_bytes: list[int] = []
    real = ranged_file.read_span

    def counted(info: ObjectInfo, start: int, length: int) -> bytes:
        num_bytes.append(length)
        return real(info, start, length)

    monkeypatch.setattr(ranged_file, "read_span", counted)
    found = read_columns(str(tmp_path), part, ("uri", "status", "member"))
    assert found.equals(table.select(["uri", "status"]))
    assert sum(num_bytes) < size_bytes / 10
    with pytest.raises(SourceError, match="imgcls verify"):
        read_columns(str(tmp_path), replace(part, size_bytes=size_bytes - 9), ("uri",))
    # The part of a small night is one request.
    num_bytes.clear()
    pq.write_table(table.slice(0, 100), tmp_path / "small.parquet")
    size_bytes = (tmp_path / "small.parquet").stat().st_size
    small = Part("small.parquet", "", 100, size_bytes, 1)
    assert read_columns(str(tmp_path), small, ("uri",)).num_rows == 100
    assert num_bytes == []
