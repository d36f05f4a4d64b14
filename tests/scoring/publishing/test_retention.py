import os
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from imgcls.config.scoring import (
    GcConfig,
    NightlyConfig,
    ReportConfig,
    RollbackConfig,
    ScoreConfig,
    VerifyConfig,
)
from imgcls.demo.embedded_s3 import EmbeddedS3
from imgcls.errors import ConfigError
from imgcls.nightly import nightly
from imgcls.report import make
from imgcls.report.make import report
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import read_facts
from imgcls.runs.published import list_published
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.publishing import publish as publishing
from imgcls.scoring.publishing import retention
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import list_objects, put
from tests.scoring.nights import leave_unfinished
from tests.scoring.tiny import published_rows


def test_rolled_back_night_is_gone_for_readers_and_for_the_ledger(night: NightlyConfig) -> None:
    nightly(night)
    result = rollback(RollbackConfig(night.output, "nightly-2026-11-22"))
    assert (result["rows"], result["parts_removed"]) == (70, 1)
    assert list(list_published(night.output)) == []
    assert not any("date=" in info.uri for info in list_objects(night.output))
    again = nightly(night)
    assert (again["run_id"], again["rows"]) == ("nightly-2026-11-22-2", 70)
    with pytest.raises(ConfigError, match="rolled back"):
        score(ScoreConfig(night.source, night.model, night.output, run_id="nightly-2026-11-22"))


def test_rollback_takes_the_pictures_of_a_night_with_it(night: NightlyConfig) -> None:
    page = nightly(night)["page"]
    assert Path(page).exists()
    rollback(RollbackConfig(night.output, "nightly-2026-11-22"))
    left = [info.uri for info in list_objects(night.output)]
    assert not any("/pages/" in uri or "/facts/" in uri for uri in left)


def test_rollback_takes_the_pages_away_that_show_the_night_among_others(
    night: NightlyConfig,
) -> None:
    nightly(night)
    page = Path(report(ReportConfig(night.output, last=30))["page"])
    assert page.stat().st_mode & 0o077 == 0
    rollback(RollbackConfig(night.output, "nightly-2026-11-22"))
    assert not page.exists()


def test_gc_takes_old_pictures_away_and_nothing_else(night: NightlyConfig) -> None:
    nightly(night)
    report(ReportConfig(night.output, last=2))
    run = Run(night.output, "nightly-2026-11-22")
    commit, other = read_commits(run)
    before = read_facts(run, commit)
    assert before["thumbnail"].null_count < before.num_rows
    old = time.time() - 100 * 86_400
    for info in list_objects(night.output):
        os.utime(info.uri, (old, old))
    config = GcConfig(night.output, older_than="1000d", pictures_older_than="90d")
    planned = gc(replace(config, dry_run=True))
    assert Path(run.page("report.html")).exists()
    result = gc(config)
    names = ("pages_and_pictures_removed", "shards_without_pictures", "removed")
    assert [planned[name] for name in names] == [result[name] for name in names]
    assert result["shards_without_pictures"] == 2
    assert result["removed"] == 0
    assert not any("pages/" in info.uri for info in list_objects(night.output))
    after = read_facts(run, commit)
    assert after["thumbnail"].null_count == after.num_rows
    assert read_facts(run, other)["thumbnail"].null_count == other.num_rows
    assert after.drop(["thumbnail"]).equals(before.drop(["thumbnail"]))
    assert Path(run.file(commit.facts)).stat().st_mode & 0o077 == 0
    assert verify(VerifyConfig(night.output))["problems"] == []
    # What is young stays.
    page = nightly(night)["page"]
    gc(config)
    assert Path(page).exists()
    with pytest.raises(ConfigError, match="pictures-older-than"):
        gc(replace(config, pictures_older_than="old"))


def test_a_page_that_is_made_while_its_night_is_rolled_back_does_not_stay(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = make.put

    def roll_back_before_page(uri: str, data: bytes, **values: Any) -> str:
        if uri.endswith("report.html"):
            rollback(RollbackConfig(night.output, "nightly-2026-11-22"))
        return real(uri, data, **values)

    with monkeypatch.context() as patched:
        patched.setattr(make, "put", roll_back_before_page)
        assert nightly(night)["page"] == ""
    assert "rolled back while its page was made" in caplog.text
    assert not any("/pages/" in info.uri for info in list_objects(night.output))


def test_rollback_while_a_twin_publishes_leaves_nothing_visible(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publishing.put_new

    def roll_back_before_manifest(uri: str, data: bytes) -> str:
        if uri.endswith("_manifest.json"):
            rollback(RollbackConfig(night.output, "nightly-2026-11-22"))
        return real(uri, data)

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "put_new", roll_back_before_manifest)
        with pytest.raises(ConfigError, match="rolled back while it published"):
            nightly(night)
    assert list(list_published(night.output)) == []
    assert nightly(night)["run_id"] == "nightly-2026-11-22-2"


def test_gc_removes_attempts_of_published_runs_and_nothing_a_manifest_names(
    night: NightlyConfig,
) -> None:
    nightly(night)
    rows = published_rows(night.output)
    assert gc(GcConfig(night.output))["removed"] == 0, "younger than a day"
    assert gc(GcConfig(night.output, older_than="0s", dry_run=True))["removed"] == 2
    assert gc(GcConfig(night.output, older_than="0s"))["removed"] == 2
    assert not any("/attempts/" in info.uri for info in list_objects(night.output))
    assert published_rows(night.output).equals(rows)
    assert verify(VerifyConfig(night.output))["rows"] == 70
    assert nightly(night)["rows"] == 0


def test_gc_removes_abandoned_runs_only_on_request(night: NightlyConfig) -> None:
    leave_unfinished(night)
    assert gc(GcConfig(night.output, older_than="0s"))["removed"] == 0
    assert gc(GcConfig(night.output, older_than="0s", abandoned=True))["removed"] > 0
    assert not any("/_runs/" in info.uri for info in list_objects(night.output))


@pytest.mark.s3
def test_gc_aborts_uploads_that_nobody_finished(s3_bucket: str, s3_server: EmbeddedS3) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    for key in ("out/_runs/night/attempts/000000-x.parquet", "other/x"):
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=key)
    assert gc(GcConfig(f"{s3_bucket}/out"))["uploads_aborted"] == 0, "younger than a day"
    assert gc(GcConfig(f"{s3_bucket}/out", older_than="0s"))["uploads_aborted"] == 1
    pending = s3_server.client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in pending] == ["other/x"]


@pytest.mark.parametrize("store", ["local", pytest.param("s3", marks=pytest.mark.s3)])
@pytest.mark.parametrize("hours", [-25, 25])
def test_gc_goes_by_the_time_of_the_store_whatever_this_machine_says(
    store: str,
    hours: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = str(tmp_path / "out")
    if store == "s3":
        output = f"{request.getfixturevalue('s3_bucket')}/out"

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(retention, "datetime", Shifted)
    put(f"{output}/_runs/killed/attempts/000000-x.parquet", b"rows")
    for older_than, removed in (("24h", 0), ("0s", 1)):
        asked = GcConfig(output, older_than=older_than, abandoned=True, dry_run=True)
        assert gc(asked)["removed"] == removed


def test_gc_of_an_empty_output_writes_nothing(tmp_path: Path) -> None:
    assert gc(GcConfig(str(tmp_path / "typo")))["removed"] == 0
    assert list(tmp_path.iterdir()) == []


def test_gc_refuses_an_age_that_is_none(night: NightlyConfig) -> None:
    with pytest.raises(ConfigError, match="'yesterday'"):
        gc(GcConfig(night.output, older_than="yesterday"))
