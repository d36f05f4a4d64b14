import io
import itertools
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from imgcls.config.scoring import (
    GcConfig,
    NightlyConfig,
    PlanConfig,
    ScoreConfig,
    VerifyConfig,
)
from imgcls.errors import (
    BudgetExceededError,
    ConfigError,
    ImgclsError,
    LeaseHeldError,
    SourceError,
)
from imgcls.image.formats.abilities import LEARNT, NEEDED
from imgcls.model.registry import promote, register
from imgcls.nightly import nightly
from imgcls.runs.ledger import published_keys
from imgcls.runs.plan import ModelDigests, Plan, read_plan
from imgcls.runs.published import list_published
from imgcls.runs.run import Run
from imgcls.scoring.driver import score, write_run_plan
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.publishing.lease import Lease
from imgcls.scoring.publishing.retention import gc
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import delete, list_objects, put
from tests.scoring.nights import leave_unfinished, make_night, rows_by_run
from tests.scoring.tiny import image_bytes, make_bundle, published_rows, write_images


@pytest.fixture
def night(tmp_path: Path) -> NightlyConfig:
    """Config of a night over 70 images, with a promoted model."""
    return make_night(tmp_path)


@pytest.fixture
def small_night(tmp_path: Path) -> NightlyConfig:
    """The same over 9 images."""
    return make_night(tmp_path, num_images=9)


def test_second_night_scores_only_what_is_new_or_changed(night: NightlyConfig) -> None:
    first = nightly(night)
    assert (first["run_id"], first["rows"], first["verified"]) == ("nightly-2026-11-22", 70, True)
    put(f"{night.source}/new.png", image_bytes(500))
    put(f"{night.source}/lot-0/00000.png", image_bytes(501))
    second = nightly(night)
    assert second["difference"] == {"new": 1, "changed": 1, "failed_before": 0, "unchanged": 69}
    assert rows_by_run(night)["nightly-2026-11-22-2"] == ["lot-0/00000.png", "new.png"]


def test_night_without_news_ends_at_once_and_writes_nothing(night: NightlyConfig) -> None:
    nightly(night)
    before = [(i.uri, i.etag) for i in list_objects(night.output) if "_lease" not in i.uri]
    start_s = time.monotonic()
    result = nightly(night)
    assert time.monotonic() - start_s < 5
    assert result["rows"] == 0
    assert [(i.uri, i.etag) for i in list_objects(night.output) if "_lease" not in i.uri] == before


def test_promoted_model_rescores_everything_by_itself(night: NightlyConfig) -> None:
    nightly(night)
    registry = night.model.partition("/tiny@")[0]
    register(registry, "tiny", make_bundle(seed=1))
    promote(f"{registry}/tiny@v2", "production")
    assert nightly(night)["rows"] == 70
    assert nightly(night)["rows"] == 0


def test_failed_rows_are_replayed_only_on_request(night: NightlyConfig) -> None:
    put(f"{night.source}/bad.png", b"no image")
    assert nightly(night)["status_counts"] == {"ok": 70, "unsupported": 1}
    assert nightly(night)["rows"] == 0
    again = nightly(NightlyConfig(**{**vars(night), "retry_failed": True}))
    assert (again["rows"], again["status_counts"]) == (1, {"unsupported": 1})


def test_plan_counts_what_a_night_would_do_and_writes_nothing(night: NightlyConfig) -> None:
    nightly(night)
    put(f"{night.source}/new.png", image_bytes(500))
    before = sorted(i.uri for i in list_objects(night.output))
    plan = show_plan(PlanConfig(night.source, night.model, night.output))
    assert (plan["to_score"], plan["new"], plan["unchanged"], plan["shards"]) == (1, 1, 70, 1)
    assert plan["size_bytes"] == len(image_bytes(500))
    assert sorted(i.uri for i in list_objects(night.output)) == before


def test_unfinished_night_is_finished_not_planned_again(night: NightlyConfig) -> None:
    leave_unfinished(night)
    put(f"{night.source}/new.png", image_bytes(500))
    result = nightly(night)
    assert (result["run_id"], result["rows"]) == ("nightly-2026-11-22", 70)
    assert result["rows_scored_now"] == 0
    assert nightly(night)["rows"] == 1


@pytest.mark.parametrize(
    "flags",
    [
        {"top_k": 3},
        {"write_probs": True},
        {"write_embedding": True},
        {"precision": "fp32"},
        {"retry_failed": True},
    ],
)
def test_unfinished_night_is_not_gone_on_with_by_flags_that_give_other_rows(
    small_night: NightlyConfig, flags: dict[str, Any]
) -> None:
    leave_unfinished(small_night)
    result = nightly(replace(small_night, **flags))
    assert (result["run_id"], result["rows"]) == ("nightly-2026-11-22-2", 9)
    row = published_rows(small_night.output).to_pylist()[0]
    assert len(row["topk_prob"]) == flags.get("top_k", 5)
    assert ("probs" in row, "embedding" in row) == (
        "write_probs" in flags,
        "write_embedding" in flags,
    )


def test_ledger_knows_a_row_by_its_decode_spec_too(
    small_night: NightlyConfig,
) -> None:
    published = nightly(small_night)
    other = published_keys(
        small_night.output, ModelDigests(published["model_digest"], "another spec")
    )
    assert list(other) == []
    spec_digest = read_plan_of(small_night).spec_digest
    [keys] = published_keys(
        small_night.output, ModelDigests(published["model_digest"], spec_digest)
    )
    assert keys.num_rows == 9


def read_plan_of(night: NightlyConfig) -> Plan:
    plan = read_plan(Run(night.output, f"nightly-{night.date}"))
    assert plan is not None
    return plan


def test_second_run_is_told_who_holds_the_lease(night: NightlyConfig) -> None:
    with (
        Lease(night.output, "somebody"),
        pytest.raises(LeaseHeldError, match=r"held by somebody on .* since 20"),
    ):
        nightly(night)
    assert nightly(night)["rows"] == 70


def test_lost_lease_publishes_nothing(night: NightlyConfig) -> None:
    lease_uri = Path(night.output) / "_lease.json"

    class Thief(NightlyConfig):
        """Steals the lease when the run asks for its batch size, that is after it was taken."""

        def __getattribute__(self, name: str) -> object:
            if name == "batch_size" and lease_uri.exists():
                lease_uri.write_text(lease_uri.read_text().replace('"token": "', '"token": "x'))
            return super().__getattribute__(name)

    with pytest.raises(LeaseHeldError, match="lost"):
        nightly(Thief(**vars(night)))
    assert list(list_published(night.output)) == []


def test_commits_of_another_plan_are_never_published(night: NightlyConfig, tmp_path: Path) -> None:
    nightly(night)
    plan = tmp_path / "out" / "_runs" / "nightly-2026-11-22" / "plan.json"
    plan.unlink()
    for path in (tmp_path / "out").glob("date=*/run=*/*"):
        path.unlink()
    registry = night.model.partition("/tiny@")[0]
    register(registry, "tiny", make_bundle(seed=1))
    promote(f"{registry}/tiny@v2", "production")
    with pytest.raises(ImgclsError, match="rows have model_digest"):
        nightly(night)
    assert list(list_published(night.output)) == []


def test_relative_output_is_the_same_output(
    night: NightlyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = NightlyConfig(**{**vars(night), "output": "./out/", "source": "bucket"})
    assert nightly(relative)["rows"] == 70
    assert nightly(night)["rows"] == 0
    assert gc(GcConfig("out", older_than="0s", abandoned=True))["removed"] == 2
    assert verify(VerifyConfig("out/"))["rows"] == 70


def test_nested_output_is_another_output(night: NightlyConfig) -> None:
    nightly(NightlyConfig(**{**vars(night), "output": f"{night.output}/team-b"}))
    assert nightly(night)["rows"] == 70


def test_image_that_was_missing_while_its_night_ran_is_scored_when_it_is_back(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    [lost, *_] = sorted(Path(night.source).rglob("*.png"))
    aside = Path(night.output).with_name("aside.png")
    write_plan = write_run_plan

    def plan_then_move(*arguments: object) -> object:
        plan = write_plan(*arguments)  # type: ignore[arg-type]
        lost.rename(aside)
        return plan

    with monkeypatch.context() as patched:
        patched.setattr("imgcls.nightly.write_run_plan", plan_then_move)
        assert nightly(night)["status_counts"] == {"missing": 1, "ok": 69}
    aside.rename(lost)
    assert nightly(night)["status_counts"] == {"ok": 1}


def test_night_that_began_before_midnight_is_finished_after_it(night: NightlyConfig) -> None:
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"

    leave_unfinished(night, date=yesterday)
    result = nightly(NightlyConfig(**{**vars(night), "date": ""}))
    assert (result["run_id"], result["rows_scored_now"]) == (f"nightly-{yesterday}", 0)
    assert result["rows"] == 70


def test_ledger_differences_in_duckdb_match_a_plain_set_difference(tmp_path: Path) -> None:
    from imgcls.scoring.planning.staging import stage
    from imgcls.storage.objects import ObjectInfo

    now = datetime(2026, 11, 22, tzinfo=UTC)
    listed = [ObjectInfo(f"k{n:03d}", f"e{n % 3}", 1, now, None) for n in range(300)]
    published = [(f"k{n:03d}", f"e{n % 2}", "ok" if n % 5 else "corrupt") for n in range(150)]
    table = pa.table(
        {
            name: list(column)
            for name, column in zip(
                ("uri", "etag", "status"), zip(*published, strict=True), strict=True
            )
        }
    )
    with stage(iter(listed)) as staging:
        counts = staging.exclude(iter([table]), retry_failed=False)
        left = [
            uri
            for part in staging.sorted_tables(itertools.repeat(7))
            for uri in part["uri"].to_pylist()
        ]
    known = {(uri, etag): status for uri, etag, status in published}
    uris = {uri for uri, _ in known}
    keys = [(info.uri, info.etag) for info in listed]
    assert left == [uri for uri, etag in keys if (uri, etag) not in known]
    assert counts == {
        "new": sum(uri not in uris for uri, _ in keys),
        "changed": sum(key not in known and key[0] in uris for key in keys),
        "failed_before": sum(known.get(key) == "corrupt" for key in keys),
        "unchanged": sum(known.get(key) == "ok" for key in keys),
    }


def test_night_over_an_empty_folder_is_a_night_of_nothing(
    night: NightlyConfig, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "empty" / "*.png"):
        result = nightly(NightlyConfig(**{**vars(night), "source": str(source)}))
        assert (result["run_id"], result["rows"], result["skipped"]) == (None, 0, 0)
    with pytest.raises(SourceError, match="nowhere"):
        nightly(NightlyConfig(**{**vars(night), "source": f"{tmp_path}/nowhere"}))
    with pytest.raises(SourceError, match="no objects found"):
        nightly(NightlyConfig(**{**vars(night), "source": f"{night.source}/**/*.pgn"}))
    with pytest.raises(SourceError, match="empty"):
        score(ScoreConfig(str(tmp_path / "empty"), night.model, night.output))


def test_night_over_a_prefix_that_was_emptied_is_one_and_a_wrong_prefix_is_not(
    night: NightlyConfig, s3_bucket: str
) -> None:
    source = f"{s3_bucket}/incoming"
    on_s3 = NightlyConfig(**{**vars(night), "source": source, "output": f"{s3_bucket}/out"})
    with pytest.raises(SourceError, match="incoming"):
        nightly(on_s3)
    write_images(source, 3)
    assert nightly(on_s3)["rows"] == 3
    for info in list(list_objects(source)):
        delete(info.uri)
    assert nightly(on_s3)["rows"] == 0
    assert show_plan(PlanConfig(source, on_s3.model, on_s3.output))["to_score"] == 0
    with pytest.raises(SourceError, match="incomming"):
        nightly(NightlyConfig(**{**vars(on_s3), "source": f"{s3_bucket}/incomming"}))


def test_sidecars_and_reports_are_no_failures_and_are_not_planned_again(
    night: NightlyConfig,
) -> None:
    for number in range(40):
        put(f"{night.source}/{number}.json", b'{"station": %d}' % number)
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        put(f"{night.source}/lot-0/{name}", b"\x00\x00\x00\x01Bud1" + bytes(100))
    put(f"{night.source}/lot-1/.hidden.jpg", bytes(100))
    result = nightly(night)
    assert result["status_counts"] == {"not_an_image": 43, "ok": 70, "unsupported": 1}
    assert result["not_an_image"] == {
        "a JSON document": 40, "a folder's settings of macOS (.DS_Store)": 3,
    }  # fmt: skip
    assert nightly(night)["rows"] == 0
    put(f"{night.source}/0.json", image_bytes(3))
    assert nightly(night)["status_counts"] == {"ok": 1}


def test_objects_of_a_pacs_export_without_pixels_are_no_failures(night: NightlyConfig) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    def dicom(sop_class: str) -> bytes:
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    classes = {
        "SR": "1.2.840.10008.5.1.4.1.1.88.33", "PR": "1.2.840.10008.5.1.4.1.1.11.1",
        "KO": "1.2.840.10008.5.1.4.1.1.88.59", "RS": "1.2.840.10008.5.1.4.1.1.481.3",
        "DICOMDIR": "1.2.840.10008.1.3.10", "x.dcm": "1.2.840.10008.5.1.4.1.1.104.1",
    }  # fmt: skip
    for number, (name, sop_class) in enumerate(classes.items()):
        put(f"{night.source}/ST{number}/{name}", dicom(sop_class))
    # Of a class of images: it lost its pixels, and must not hide.
    put(f"{night.source}/ST9/CT", dicom("1.2.840.10008.5.1.4.1.1.2"))
    result = nightly(night)
    assert result["status_counts"] == {"corrupt": 1, "not_an_image": 6, "ok": 70}
    assert sum(result["not_an_image"].values()) == len(result["not_an_image"]) == 6


def test_small_night_of_which_most_failed_is_not_published(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NEEDED, "heif", "json")
    for number in range(71):
        put(f"{night.source}/{number}.heic", b"\x00\x00\x00\x18ftypheic" + bytes(40))
    night = NightlyConfig(**{**vars(night), "source": f"{night.source}/*.heic"})
    with pytest.raises(BudgetExceededError, match=r"71 of 71 images failed"):
        nightly(night)
    # The same command continues with the same run, and its end is judged again.
    with pytest.raises(BudgetExceededError, match=r"71 of 71 images failed"):
        nightly(night)
    assert list(list_published(night.output)) == []
    assert len(list(Path(night.output).glob("_runs/*"))) == 1
    # Once more is read of some format, it is worth another try.
    monkeypatch.setitem(LEARNT, "heif", ("what it lacked",))
    with pytest.raises(BudgetExceededError, match=r"71 of 71 images failed"):
        nightly(night)
    assert len(list(Path(night.output).glob("_runs/*"))) == 2
    forgiving = NightlyConfig(**{**vars(night), "max_failed_fraction": 1.0})
    assert nightly(forgiving)["rows"] == 71


def test_a_run_id_belongs_to_its_date(night: NightlyConfig) -> None:
    config = ScoreConfig(
        night.source, night.model, night.output, run_id="x", date="2026-11-22", executor="local"
    )
    score(config)
    with pytest.raises(ConfigError, match="--date 2026-11-22, not 2026-11-23"):
        score(ScoreConfig(**{**vars(config), "date": "2026-11-23"}))
    assert score(ScoreConfig(**{**vars(config), "date": ""}))["rows"] == 70
