import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import ScoreConfig, VerifyConfig
from imgcls.errors import ImgclsError
from imgcls.runs.commits import read_commits
from imgcls.runs.plan import OF_THE_RUN, read_plan
from imgcls.runs.published import Manifest, read_manifest
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.publishing import publish as publishing
from imgcls.scoring.publishing.publish import (
    compare_provenance,
    compare_with_plan,
    publish,
)
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import delete, put
from imgcls.storage.uri import join
from tests.scoring.tiny import (
    comparable,
    prediction_rows,
    published_rows,
    run_facts,
    write_images,
)


def planned(*uris: str) -> pa.Table:
    return pa.table({"uri": list(uris), "etag": ["e"] * len(uris)})


def test_rows_of_the_planned_images_in_any_order_are_accepted() -> None:
    rows = prediction_rows(["b", "a"], ["ok", "corrupt"])
    assert compare_with_plan(planned("a", "b"), rows) == ""


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        (["a", "a", "b"], "twice"),
        (["a"], "1 planned images have no row"),
        (["a", "b", "c"], "1 rows were never planned"),
        ([], "2 planned images have no row"),
    ],
)
def test_rows_that_differ_from_the_plan_are_told(uris: list[str], words: str) -> None:
    assert words in compare_with_plan(planned("a", "b"), prediction_rows(uris, ["ok"] * len(uris)))


def test_another_etag_than_planned_is_told() -> None:
    rows = prediction_rows(["a"], ["ok"])
    other = rows.set_column(1, rows.schema.field("etag"), pa.array(["other"]))
    assert "etag" in compare_with_plan(planned("a"), other)


@pytest.mark.parametrize("column", OF_THE_RUN)
def test_rows_of_another_run_or_model_are_told(column: str) -> None:
    facts = run_facts()
    rows = pa.table({name: [getattr(facts, name)] * 2 for name in OF_THE_RUN})
    assert compare_provenance(facts, rows) == ""
    at = OF_THE_RUN.index(column)
    other = rows.set_column(at, column, pa.array([getattr(facts, column), "other"]))
    assert f"rows have {column} other" in compare_provenance(facts, other)
    nothing = rows.set_column(at, column, pa.array([None, None], pa.string()))
    assert f"rows have {column} None" in compare_provenance(facts, nothing)


@pytest.fixture
def scored(model_ref: str, tmp_path: Path) -> ScoreConfig:
    write_images(str(tmp_path / "bucket"), 150)
    config = ScoreConfig(
        str(tmp_path / "bucket"),
        model_ref,
        str(tmp_path / "out"),
        run_id="night",
        executor="local",
        shard_size=64,
    )
    score(config)
    return config


def publish_again(config: ScoreConfig) -> Manifest:
    plan = read_plan(Run(config.output, "night"))
    assert plan is not None
    commits = {c.shard_id: c for c in read_commits(plan.run)}
    return publish(plan, commits)


def test_large_nights_are_cut_into_parts_sorted_by_uri(
    scored: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(Run(scored.output, "night"))
    assert plan is not None
    folder = plan.published
    whole = comparable(published_rows(scored.output))
    for name in ("_manifest.json", "part-00000.parquet"):
        delete(join(folder, name))
    monkeypatch.setattr(publishing, "ROWS_PER_PART", 100)
    manifest = publish_again(scored)
    assert [(part.num_rows, part.num_shards) for part in manifest.parts] == [
        (128, 2),
        (22, 1),
    ]
    rows = published_rows(scored.output)
    assert rows["uri"].to_pylist() == sorted(rows["uri"].to_pylist())
    assert comparable(rows) == whole


def test_second_publisher_gets_the_first_manifest(scored: ScoreConfig) -> None:
    plan = read_plan(Run(scored.output, "night"))
    assert plan is not None
    assert publish_again(scored) == read_manifest(plan.published)


def test_part_of_the_same_rows_by_another_writer_is_adopted_with_its_digest(
    scored: ScoreConfig,
) -> None:
    plan = read_plan(Run(scored.output, "night"))
    assert plan is not None
    folder = plan.published
    table = published_rows(scored.output)
    delete(join(folder, "_manifest.json"))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="gzip")
    data = buffer.getvalue().to_pybytes()
    put(join(folder, "part-00000.parquet"), data)
    [part] = publish_again(scored).parts
    assert part.sha256 == hashlib.sha256(data).hexdigest()


def test_foreign_part_is_an_error_and_nothing_is_published(scored: ScoreConfig) -> None:
    plan = read_plan(Run(scored.output, "night"))
    assert plan is not None
    folder = plan.published
    delete(join(folder, "_manifest.json"))
    buffer = pa.BufferOutputStream()
    pq.write_table(prediction_rows(["x"], ["ok"]), buffer)
    put(join(folder, "part-00000.parquet"), buffer.getvalue().to_pybytes())
    with pytest.raises(ImgclsError, match="holds other rows"):
        publish_again(scored)
    assert read_manifest(folder) is None


def test_damaged_attempt_is_an_error_and_nothing_is_published(scored: ScoreConfig) -> None:
    plan = read_plan(Run(scored.output, "night"))
    assert plan is not None
    folder = plan.published
    for name in ("_manifest.json", "part-00000.parquet"):
        delete(join(folder, name))
    attempt = next(iter(read_commits(plan.run))).attempt
    path = Path(plan.run.file(attempt))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ImgclsError, match="sha256"):
        publish_again(scored)
    assert read_manifest(folder) is None


def test_rows_of_an_earlier_version_are_published_with_a_null_format(
    scored: ScoreConfig, tmp_path: Path
) -> None:
    run = Path(Run(scored.output, "night").uri)
    [folder] = (tmp_path / "out").glob("date=*/run=*")
    part = folder / "part-00000.parquet"
    before = published_rows(scored.output)
    # As commit 27535e0 left a night that was killed between its part and its manifest.
    (folder / "_manifest.json").unlink()
    pq.write_table(pq.read_table(part).drop_columns(["format"]), part)
    for attempt in run.glob("attempts/*.parquet"):
        pq.write_table(pq.read_table(attempt).drop_columns(["format"]), attempt)
    for path in run.glob("commits/*.json"):
        commit = json.loads(path.read_text())
        commit["sha256"] = hashlib.sha256((run / commit["attempt"]).read_bytes()).hexdigest()
        path.write_text(json.dumps(commit))
    score(scored)
    assert verify(VerifyConfig(scored.output))["rows"] == 150
    assert published_rows(scored.output).equals(before.drop_columns(["format"]))
    part.unlink()
    (folder / "_manifest.json").unlink()
    score(scored)
    after = published_rows(scored.output)
    assert after.schema.names == before.schema.names
    assert after["format"].null_count == 150
    assert before["format"].to_pylist() == ["png"] * 150
