"""A night over containers: every member one row, the same as of the loose file."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import (
    GcConfig,
    NightlyConfig,
    PlanConfig,
    RollbackConfig,
    ScoreConfig,
    VerifyConfig,
)
from imgcls.errors import ImgclsError
from imgcls.evaluation.evaluate import evaluate
from imgcls.nightly import nightly
from imgcls.runs.plan import PlannedRows, read_plan
from imgcls.runs.run import Run
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.scoring.driver import score
from imgcls.scoring.next_night import show_plan
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import put
from tests.scoring.nights import leave_unfinished
from tests.scoring.tiny import image_bytes, published_rows, tiff_frames
from tests.sources.archives import parquet_bytes, tar_bytes, zip_bytes

FILES = {f"lot-{n % 3}/{n:03d}.png": image_bytes(n) for n in range(40)}
FILES |= {"lot-0/pages.tiff": tiff_frames(3), "lot-1/bad.jpg": b"\xff\xd8\xff junk"}
FILES |= {"lot-1/note.txt": b"a text beside the images"}
PACKED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "x.tar": tar_bytes,
    "x.tar.gz": lambda files: tar_bytes(files, "w:gz"),
    "x.zip": zip_bytes,
    "zips.zip": lambda files: zip_bytes({"study.zip": zip_bytes(files)}),
    "x.parquet": parquet_bytes,
}
# What a row says of where its image lies, and of the run.
PLACE = ("uri", "member", "etag", "size_bytes", "last_modified", "run_id", "scored_at")


def put_packed(source: str, names: list[str], files: dict[str, bytes] = FILES) -> None:
    for name in names:
        put(f"{source}/{name}", PACKED[name](files))


def answers(rows: pa.Table) -> dict[tuple[str, int], dict[str, Any]]:
    """What the rows say of each image, by its plain name and frame."""
    found = {}
    for row in rows.to_pylist():
        name = "/".join((row.get("member") or row["uri"]).split("/")[-2:])
        found[name, row["frame"] or 0] = {k: v for k, v in row.items() if k not in PLACE}
    return found


def config_of(night: NightlyConfig, tmp_path: Path, **flags: Any) -> NightlyConfig:
    """The night over containers that the test puts into a folder of its own."""
    source, output = str(tmp_path / "packed"), str(tmp_path / "packed-out")
    return replace(night, source=source, output=output, **flags)


@pytest.fixture
def loose(small_night: NightlyConfig, tmp_path: Path) -> pa.Table:
    """The rows of the same images, each in a file of its own."""
    for name, data in FILES.items():
        put(f"{tmp_path}/loose/{name}", data)
    output = str(tmp_path / "loose-out")
    score(
        ScoreConfig(f"{tmp_path}/loose", small_night.model, output, executor="local", device="cpu")
    )
    return published_rows(output)


@pytest.mark.parametrize("name", PACKED)
def test_rows_of_members_are_those_of_the_loose_files(
    name: str, loose: pa.Table, small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path)
    put_packed(night.source, [name])
    assert show_plan(PlanConfig(**vars(night)))["to_score"] == len(FILES)
    result = nightly(night)
    assert (result["listed"], result["rows"]) == (len(FILES), loose.num_rows)
    rows = published_rows(night.output)
    assert answers(rows) == answers(loose)
    assert rows["uri"].unique().to_pylist() == [f"{night.source}/{name}"]
    assert rows.schema.names[1] == "member"
    if name != "x.parquet":  # which does not say it
        sizes = {
            row["member"].removeprefix("study.zip/"): row["size_bytes"] for row in rows.to_pylist()
        }
        assert sizes == {name: len(data) for name, data in FILES.items()}
    assert verify(VerifyConfig(night.output))["rows"] == loose.num_rows
    assert nightly(night)["rows"] == 0, "nothing is scored twice"


def test_plain_runs_have_the_columns_that_they_had(small_night: NightlyConfig) -> None:
    nightly(small_night)
    assert published_rows(small_night.output).schema.names == PREDICTION_SCHEMA.names
    plan = read_plan(Run(small_night.output, "nightly-2026-11-22"))
    assert plan is not None
    planned = PlannedRows(plan).of(next(plan.shards()))
    assert "member" not in planned.column_names


def test_one_container_may_be_the_source_itself(
    loose: pa.Table, small_night: NightlyConfig, tmp_path: Path
) -> None:
    put_packed(str(tmp_path / "packed"), ["x.tar", "x.parquet"])
    for name in ("x.tar", "x.parquet"):
        output = str(tmp_path / f"out-{name}")
        source = str(tmp_path / "packed" / name)
        score(ScoreConfig(source, small_night.model, output, executor="local", device="cpu"))
        assert answers(published_rows(output)) == answers(loose)


def test_containers_lie_beside_loose_files_and_each_other(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path, shard_size=64)
    put_packed(night.source, list(PACKED))
    put(f"{night.source}/loose.png", image_bytes(7))
    result = nightly(night)
    assert result["listed"] == len(PACKED) * len(FILES) + 1
    rows = published_rows(night.output).to_pylist()
    assert Counter(row["uri"].rpartition("/")[2] for row in rows) == Counter(
        dict.fromkeys(PACKED, len(FILES)) | {"loose.png": 1}
    )
    [alone] = [row for row in rows if row["member"] is None]
    assert (alone["uri"], alone["status"]) == (f"{night.source}/loose.png", "ok")
    assert verify(VerifyConfig(night.output))["rows"] == len(rows)


def test_a_compressed_tar_is_one_shard_and_others_are_cut(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    files = {f"{n:04d}.png": image_bytes(n % 9) for n in range(150)}
    night = config_of(small_night, tmp_path, shard_size=64)
    put_packed(night.source, ["x.tar", "x.tar.gz"], files)
    put(f"{night.source}/y.png", image_bytes(1))
    assert nightly(night)["rows"] == 301
    plan = read_plan(Run(night.output, "nightly-2026-11-22"))
    assert plan is not None
    planned = PlannedRows(plan)
    shards_of: dict[str, set[str]] = {}
    for shard in plan.shards():
        for uri in planned.of(shard)["uri"].unique().to_pylist():
            shards_of.setdefault(uri.rpartition("/")[2], set()).add(shard.shard_id)
    assert len(shards_of["x.tar.gz"]) == 1
    assert len(shards_of["x.tar"]) >= 3


def test_a_container_that_is_appended_to_is_changed_with_all_of_its_members(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path)
    files = dict(list(FILES.items())[:10])
    put_packed(night.source, ["x.tar", "x.zip"], files)
    nightly(night)
    put_packed(night.source, ["x.tar"], files | {"lot-9/new.png": image_bytes(99)})
    result = nightly(night)
    assert result["difference"] == {
        "new": 1,
        "changed": 10,
        "failed_before": 0,
        "unchanged": 10,
    }
    assert result["rows"] == 11
    assert verify(VerifyConfig(night.output))["rows"] == 31


def test_a_container_that_is_overwritten_in_mid_run_gives_changed_rows_and_is_scored_again(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path, max_failed_fraction=1.0)
    files = dict(list(FILES.items())[:8])
    put_packed(night.source, ["x.tar", "x.parquet"], files)
    put(f"{night.source}/a.png", image_bytes(1))
    leave_unfinished(night, before="score_plan")
    other = {name: image_bytes(200 + n) for n, name in enumerate(files)}
    put_packed(night.source, ["x.tar"], other)
    result = nightly(night)
    assert result["status_counts"] == {"changed": 8, "ok": 9}
    again = nightly(night)
    assert (again["rows"], again["status_counts"]) == (8, {"ok": 8})
    assert verify(VerifyConfig(night.output))["rows"] == 25


def test_a_failed_member_is_tried_again_on_request_and_its_neighbours_are_not(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path)
    put_packed(night.source, ["x.zip"])
    nightly(night)
    result = nightly(replace(night, retry_failed=True))
    assert result["rows"] == 2
    rows = [row for row in published_rows(night.output).to_pylist() if row["status"] != "ok"]
    assert Counter(row["member"] for row in rows) == {"lot-1/bad.jpg": 2, "lot-1/note.txt": 2}


@pytest.mark.parametrize("before", ["score_plan", "publish"])
def test_a_killed_night_over_containers_is_finished(
    before: str, loose: pa.Table, small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path)
    put_packed(night.source, ["x.tar"])
    leave_unfinished(night, before=before)
    assert nightly(night)["rows"] == loose.num_rows
    assert answers(published_rows(night.output)) == answers(loose)
    gc(GcConfig(night.output, older_than="0s"))
    assert verify(VerifyConfig(night.output))["rows"] == loose.num_rows
    rollback(RollbackConfig(night.output, "nightly-2026-11-22"))
    assert nightly(night)["rows"] == loose.num_rows


def test_a_row_that_names_another_member_is_found_by_verify(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    import hashlib

    import pyarrow.parquet as pq

    night = config_of(small_night, tmp_path)
    put_packed(night.source, ["x.zip"], dict(list(FILES.items())[:5]))
    nightly(night)
    [folder] = Path(night.output).glob("date=*/run=*")
    part = folder / "part-00000.parquet"
    table = pq.read_table(part)
    members = table["member"].to_pylist()
    swapped = pa.array([members[1], members[0], *members[2:]])
    pq.write_table(table.set_column(1, table.schema.field(1), swapped), part)
    manifest = json.loads((folder / "_manifest.json").read_text())
    manifest["parts"][0]["sha256"] = hashlib.sha256(part.read_bytes()).hexdigest()
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array(["z", *members[1:]])), part)
    manifest["parts"][0]["sha256"] = hashlib.sha256(part.read_bytes()).hexdigest()
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ImgclsError, match="1 planned images have no row"):
        verify(VerifyConfig(night.output))


def test_what_cannot_be_read_of_an_archive_is_a_row_that_says_why(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path, max_failed_fraction=1.0)
    buffer = io.BytesIO(tar_bytes({"a.png": image_bytes(1), "a.png/../../etc/x.png": b"x"}))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        link = tarfile.TarInfo("../link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        again = tarfile.TarInfo("a.png")
        again.size = len(image_bytes(2))
        tar.addfile(again, io.BytesIO(image_bytes(2)))
    put(f"{night.source}/x.tar", buffer.getvalue())
    put(f"{night.source}/cut.tar", buffer.getvalue()[:700])
    put(f"{night.source}/cut.zip", zip_bytes({"b.png": image_bytes(1)})[:-30])
    deep = zip_bytes({"c.zip": zip_bytes({"d.zip": zip_bytes({"e.png": image_bytes(1)})})})
    put(f"{night.source}/deep.zip", deep)
    put(f"{night.source}/lzma.zip", zip_bytes({"f.png": image_bytes(1)}, zipfile.ZIP_LZMA))
    nightly(night)
    rows = published_rows(night.output).to_pylist()
    found = {(row["uri"].rpartition("/")[2], row["member"]): row["status"] for row in rows}
    assert len(found) == len(rows)
    assert found == {
        ("x.tar", "a.png"): "ok",
        ("x.tar", "a.png#2"): "ok",
        ("x.tar", "a.png/../../etc/x.png"): "unsupported",
        ("x.tar", "../link.png"): "unsupported",
        ("cut.tar", "a.png"): "corrupt",
        ("cut.tar", None): "corrupt",
        ("cut.zip", None): "corrupt",
        ("deep.zip", "c.zip/d.zip"): "unsupported",
        ("lzma.zip", "f.png"): "unsupported",
    }
    assert all(row["error"] for row in rows if row["status"] != "ok")


def test_filters_see_the_members_of_containers(small_night: NightlyConfig, tmp_path: Path) -> None:
    put_packed(str(tmp_path / "packed"), ["x.tar", "x.zip"])
    put(f"{tmp_path}/packed/loose.png", image_bytes(7))
    night = config_of(small_night, tmp_path, include=("*.png",), exclude=("x.zip/lot-0/**",))
    num_png = sum(name.endswith(".png") for name in FILES)
    num_of_lot = sum(name.startswith("lot-0") and name.endswith(".png") for name in FILES)
    assert nightly(night)["rows"] == 2 * num_png - num_of_lot + 1
    rows = published_rows(night.output).to_pylist()
    assert {(row["member"] or row["uri"]).rpartition(".")[2] for row in rows} == {"png"}
    twice = replace(night, also=(f"{tmp_path}/packed/x.tar",), output=str(tmp_path / "twice"))
    assert nightly(twice)["rows"] == len(rows)


def test_published_members_are_evaluated_against_labels_of_their_paths(
    small_night: NightlyConfig, tmp_path: Path
) -> None:
    night = config_of(small_night, tmp_path)
    put_packed(night.source, ["x.tar", "x.zip"], dict(list(FILES.items())[:12]))
    nightly(night)
    rows = published_rows(night.output).to_pylist()
    lines = [f"{row['uri']}/{row['member']},{row['class_name']}" for row in rows]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["uri,label", *lines]))
    result = evaluate(EvaluateConfig(predictions=night.output, labels=str(labels)))
    assert (result["num_rows"], result["accuracy"]) == (24, 1.0)
    by_end = [f"{row['member']},{row['class_name']}" for row in rows if "x.zip" in row["uri"]]
    labels.write_text("\n".join(["uri,label", *by_end]))
    only_zip = str(tmp_path / "zip-out")
    source = f"{night.source}/x.zip"
    score(ScoreConfig(source, night.model, only_zip, executor="local", device="cpu"))
    asked = EvaluateConfig(predictions=only_zip, labels=str(labels), match_by="suffix")
    assert evaluate(asked)["num_rows"] == 12
