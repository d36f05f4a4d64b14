"""The places of a run, and what of it stays."""

from inspect import getmembers
from pathlib import Path

import pytest

from imgcls.config.scoring import GcConfig, NightlyConfig, VerifyConfig
from imgcls.nightly import nightly
from imgcls.runs.run import (
    Run,
    attempt_path,
    facts_path,
    is_of_a_run,
    list_run_ids,
    plan_path,
    skipped_path,
)
from imgcls.scoring.publishing.retention import gc
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import exists, list_objects, put

RUN = Run("s3://b/out", "night")
WITH_NAME = {"commit": "000000", "int8_network": "d" * 64, "log": "start", "page": "index.html"}


def files_of(run: Run) -> dict[str, str]:
    """Return a place for every kind of file that a run has, by the name of the kind."""
    fields = ("output", "run_id", "uri", "commits", "facts", "pages")
    found = {name: uri for name, uri in getmembers(run) if isinstance(uri, str)}
    found = {n: uri for n, uri in found.items() if n not in fields and not n.startswith("_")}
    found |= {name: getattr(run, name)(value) for name, value in WITH_NAME.items()}
    paths = (attempt_path("000000", "w"), facts_path("000000", "w"), plan_path(0, "p"))
    return found | {path: run.file(path) for path in (*paths, skipped_path("p"))}


def test_every_place_of_a_run_is_below_its_folder_and_known_as_its_own() -> None:
    files = files_of(RUN)
    assert len(set(files.values())) == len(files) >= 14
    for uri in files.values():
        assert uri.startswith("s3://b/out/_runs/night/")
        assert is_of_a_run(uri), uri
    assert is_of_a_run(f"{RUN.published('2026-11-25')}/part-00000.parquet")
    assert is_of_a_run(f"{RUN.published('2026-11-25')}/_manifest.json")


@pytest.mark.parametrize(
    "uri", ["s3://b/_runs/scan.png", "s3://b/_runs/r/scan.png", "s3://b/date=2026/run=1/scan.png"]
)
def test_an_image_in_folders_of_such_names_is_not_of_a_run(uri: str) -> None:
    assert not is_of_a_run(uri)


def test_gc_of_a_published_run_removes_its_attempts_and_nothing_else(
    small_night: NightlyConfig,
) -> None:
    nightly(small_night)
    [run_id] = list_run_ids(small_night.output)
    run = Run(small_night.output, run_id)
    for uri in files_of(run).values():
        # The marker of a rollback makes it another run's end; what is there already is real.
        if uri != run.rolled_back and not exists(uri):
            put(uri, b"{}")
    put(run.file("of_a_later_version.json"), b"{}")
    before = {info.uri for info in list_objects(run.uri)}
    assert gc(GcConfig(small_night.output, older_than="0s"))["removed"] > 0
    gone = before - {info.uri for info in list_objects(run.uri)}
    assert gone == {uri for uri in before if "/attempts/" in uri}
    assert exists(run.gpu_decode), "the one record of how far a GPU-decoded night differs"


def test_ids_are_those_of_planned_runs(small_night: NightlyConfig, tmp_path: Path) -> None:
    nightly(small_night)
    put(Run(small_night.output, "unplanned").file("report.json"), b"{}")
    assert list(list_run_ids(small_night.output)) == ["nightly-2026-11-22"]
    assert list(list_run_ids(str(tmp_path / "nothing"))) == []
    assert verify(VerifyConfig(small_night.output))["runs"] == 1
