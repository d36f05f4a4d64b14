import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.errors import BudgetExceededError, BundleError, ConfigError, SourceError
from imgcls.image.decoders.pool import decode_one
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.model.bundle import read_bundle
from imgcls.model.registry import resolve
from imgcls.runs.commits import read_commits
from imgcls.runs.run import Run
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.scoring.driver import score
from imgcls.storage.objects import list_objects, put, read
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import comparable, image_bytes, published_rows, write_images

NUM_IMAGES = 150


@pytest.fixture
def source(tmp_path: Path) -> str:
    write_images(str(tmp_path / "bucket"), NUM_IMAGES)
    return str(tmp_path / "bucket")


def config_of(source: str, model_ref: str, output: Path, **changes: object) -> ScoreConfig:
    values = {"run_id": "night", "date": "2026-11-22", "executor": "local", **changes}
    return ScoreConfig(source, model_ref, str(output), **values)  # type: ignore[arg-type]


def test_every_image_becomes_one_row_with_its_own_label(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    result = score(config_of(source, model_ref, tmp_path / "out"))
    rows = published_rows(str(tmp_path / "out"))
    uris = sorted(info.uri for info in list_objects(source))
    assert rows["uri"].to_pylist() == uris
    assert result["rows"] == result["rows_ok"] == NUM_IMAGES
    # The oracle: each image alone, decoded in this process, one forward pass.
    predictor = open_predictor(read_bundle(resolve(model_ref)), batch_size=1)
    for row in rows.to_pylist():
        [crop] = decode_one(read(row["uri"]), DecodeSpec(), PreprocessSpec.for_image_px(32))
        expected = predictor.predict(crop.x_CHW[None])
        assert row["label"] == expected.label_B[0]
        assert row["class_name"] == f"class-{row['label']}"
        # Another batch shape sums in another order, and these weights amplify that.
        assert row["confidence"] == pytest.approx(expected.confidence_B[0], abs=1e-4)
        assert (row["width_px"], row["height_px"]) == (crop.width_px, crop.height_px)
    assert len(set(rows["label"].to_pylist())) > 1, "the model must tell images apart"


def test_published_schema_is_the_contract(source: str, model_ref: str, tmp_path: Path) -> None:
    result = score(config_of(source, model_ref, tmp_path / "out", top_k=3))
    [part] = result["parts"]
    assert part.endswith("/date=2026-11-22/run=night/part-00000.parquet")
    table = pq.read_table(io.BytesIO(read(part)))
    assert table.schema.equals(PREDICTION_SCHEMA)
    assert all(len(labels) == 3 for labels in table["topk_label"].to_pylist())
    assert set(table["run_id"].to_pylist()) == {"night"}


def test_wide_columns_come_on_request(source: str, model_ref: str, tmp_path: Path) -> None:
    score(config_of(source, model_ref, tmp_path / "out", write_probs=True, write_embedding=True))
    rows = published_rows(str(tmp_path / "out")).to_pylist()
    for row in rows:
        assert len(row["probs"]) == 7
        assert sum(row["probs"]) == pytest.approx(1, abs=1e-5)
        assert max(row["probs"]) == row["confidence"] == row["probs"][row["label"]]
        assert len(row["embedding"]) == 128


def test_bad_images_are_rows_with_a_status_and_disturb_nobody(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    score(config_of(source, model_ref, tmp_path / "clean"))
    bad = {
        "empty.png": b"",
        "page.png": b"<html>not an image</html>",
        "cut.png": image_bytes(0)[:200],
    }
    for name, data in bad.items():
        put(f"{source}/{name}", data)
    result = score(config_of(source, model_ref, tmp_path / "out"))
    rows = {row["uri"]: row for row in comparable(published_rows(str(tmp_path / "out")))}
    assert len(rows) == result["rows"] == NUM_IMAGES + 3
    for name in bad:
        row = rows.pop(f"{source}/{name}")
        assert row["status"] in ("corrupt", "unsupported")
        assert row["error"]
        assert row["label"] is None
        assert row["topk_prob"] is None
    assert list(rows.values()) == comparable(published_rows(str(tmp_path / "clean")))


def test_deleted_and_overwritten_images_are_missing_and_changed(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    config = config_of(source, model_ref, tmp_path / "out", max_failed_fraction=1)
    with pytest.raises(KilledHere):
        score_until(config, kill_after_puts_of="plan.json")
    uris = sorted(info.uri for info in list_objects(source))
    Path(uris[3]).unlink()
    Path(uris[5]).write_bytes(image_bytes(999))
    score(config)
    rows = published_rows(str(tmp_path / "out")).to_pylist()
    assert [row["uri"] for row in rows] == uris
    statuses = {i: row["status"] for i, row in enumerate(rows) if row["status"] != "ok"}
    assert statuses == {3: "missing", 5: "changed"}


class KilledHere(BaseException):
    """Stands for a kill inside this process: nothing of ours catches it."""


def score_until(config: ScoreConfig, *, kill_after_puts_of: str) -> None:
    """Score, and die right after the first object of this name was written."""
    from imgcls.scoring.planning import plan

    real = plan.put_new

    def put_new_and_die(uri: str, data: bytes) -> str:
        etag = real(uri, data)
        if uri.endswith(kill_after_puts_of):
            raise KilledHere
        return etag

    plan.put_new = put_new_and_die
    try:
        score(config)
    finally:
        plan.put_new = real


def test_rerun_scores_only_uncommitted_shards(source: str, model_ref: str, tmp_path: Path) -> None:
    config = config_of(source, model_ref, tmp_path / "out", shard_size=64)
    score(config)
    undisturbed = comparable(published_rows(str(tmp_path / "out")))
    run = Run(str(tmp_path / "out"), "night")
    before = {commit.shard_id: commit for commit in read_commits(run)}
    assert len(before) == 3
    shutil.rmtree(tmp_path / "out" / "date=2026-11-22")
    Path(run.commit("000001")).unlink()
    result = score(config)
    after = {commit.shard_id: commit for commit in read_commits(run)}
    assert [key for key in before if before[key] != after[key]] == ["000001"]
    assert result["rows_scored_now"] == 64
    assert comparable(published_rows(str(tmp_path / "out"))) == undisturbed


def test_rerun_of_a_published_run_writes_nothing(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    config = config_of(source, model_ref, tmp_path / "out")
    first = score(config)
    objects = sorted((i.uri, i.etag) for i in list_objects(str(tmp_path / "out")))
    second = score(config)
    assert sorted((i.uri, i.etag) for i in list_objects(str(tmp_path / "out"))) == objects
    assert second["rows_scored_now"] == 0
    assert second["parts"] == first["parts"]


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_driver_is_finished_by_the_same_command(
    signal_number: int, source: str, model_ref: str, tmp_path: Path
) -> None:
    score(config_of(source, model_ref, tmp_path / "undisturbed", shard_size=64))
    command = [sys.executable, "-m", "imgcls.cli", "score", "--source", source]
    command += ["--model", model_ref, "--output", str(tmp_path / "out"), "--run-id", "night"]
    command += ["--date", "2026-11-22", "--shard-size", "64", "--executor", "local"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    commits = tmp_path / "out" / "_runs" / "night" / "commits"
    while process.poll() is None and not (commits.exists() and any(commits.iterdir())):
        time.sleep(0.002)
    start_s = time.monotonic()
    os.kill(process.pid, signal_number)
    stdout, _ = process.communicate(timeout=20)
    if signal_number == signal.SIGTERM and process.returncode != 0:
        assert time.monotonic() - start_s < 2.5
        assert process.returncode == 5
        assert json.loads(stdout.splitlines()[-1])["exit_code"] == 5
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout.splitlines()[-1])["rows"] == NUM_IMAGES
    assert comparable(published_rows(str(tmp_path / "out"))) == comparable(
        published_rows(str(tmp_path / "undisturbed"))
    )


def test_same_rows_from_s3_as_from_disk(
    source: str, model_ref: str, tmp_path: Path, s3_bucket: str
) -> None:
    write_images(f"{s3_bucket}/images", NUM_IMAGES)
    config = config_of(f"{s3_bucket}/images", model_ref, tmp_path / "x")
    on_s3 = ScoreConfig(**{**vars(config), "output": f"{s3_bucket}/out"})
    result = score(on_s3)
    score(config_of(source, model_ref, tmp_path / "out"))

    def labels(rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
        names = ("status", "label", "topk_prob", "width_px", "size_bytes")
        return [tuple(str(row[name]) for name in names) for row in rows]

    assert result["rows"] == NUM_IMAGES
    assert labels(comparable(published_rows(f"{s3_bucket}/out"))) == labels(
        comparable(published_rows(str(tmp_path / "out")))
    )


def test_too_many_failures_end_the_run_with_counts_and_publish_nothing(
    model_ref: str, tmp_path: Path
) -> None:
    write_images(str(tmp_path / "bucket"), 90)
    for number in range(20):
        put(str(tmp_path / "bucket" / f"bad-{number}"), b"not an image")
    with pytest.raises(BudgetExceededError, match=r"20 of 110 .*20 unsupported.* 0\.05"):
        score(config_of(str(tmp_path / "bucket"), model_ref, tmp_path / "out"))
    assert not (tmp_path / "out" / "date=2026-11-22").exists()
    config = config_of(str(tmp_path / "bucket"), model_ref, tmp_path / "out")
    forgiving = ScoreConfig(**{**vars(config), "max_failed_fraction": 0.5})
    result = score(forgiving)
    assert (result["rows"], result["rows_ok"]) == (110, 90)


def test_wrong_flags_and_inputs_are_refused_before_anything_is_written(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cases: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"run_id": "a/b"}, ConfigError, "--run-id 'a/b'"),
        ({"date": "22.11.2026"}, ConfigError, "22.11.2026"),
        ({"shard_size": 3}, ConfigError, "--shard-size 3"),
        ({"top_k": 0}, ConfigError, "--top-k 0"),
        ({"batch_size": -1}, ConfigError, "--batch-size -1"),
        ({"max_failed_fraction": 2.0}, ConfigError, "--max-failed-fraction 2"),
        ({"num_actors": -1}, ConfigError, "--num-actors -1"),
        ({"gpus_per_actor": 1.5}, ConfigError, "--gpus-per-actor 1.5"),
        ({"gpus_per_actor": 2}, ConfigError, "--gpus-per-actor 2"),
        ({"source": f"{source}/nowhere"}, SourceError, "nowhere"),
        ({"model": str(tmp_path / "no-bundle")}, ConfigError, "no-bundle"),
        ({"output": f"{source}/out"}, ConfigError, "inside --source"),
    ]
    for changes, kind, words in cases:
        config = config_of(source, model_ref, out)
        with pytest.raises(kind, match=words):
            score(ScoreConfig(**{**vars(config), **changes}))  # type: ignore[arg-type]
    assert not out.exists()


def test_resuming_with_other_flags_is_refused_by_name(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    score(config_of(source, model_ref, tmp_path / "out"))
    with pytest.raises(ConfigError, match="--top-k 5, not 2"):
        score(config_of(source, model_ref, tmp_path / "out", top_k=2))


def test_bundle_changed_since_the_plan_stops_the_run(
    source: str, model_ref: str, tmp_path: Path
) -> None:
    registry = Path(resolve(model_ref)).parent.parent
    shutil.copytree(registry, tmp_path / "registry")
    reference = f"{tmp_path}/registry/tiny@v1"
    with pytest.raises(KilledHere):
        score_until(config_of(source, reference, tmp_path / "out"), kill_after_puts_of="plan.json")
    weights = Path(resolve(reference)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        score(config_of(source, reference, tmp_path / "out"))
    assert not (tmp_path / "out" / "date=2026-11-22").exists()


def test_a_resumed_run_takes_the_precision_of_its_first_worker(
    model_ref: str, tmp_path: Path
) -> None:
    write_images(str(tmp_path / "images"), 8)
    config = ScoreConfig(
        str(tmp_path / "images"), model_ref, str(tmp_path / "out"), run_id="night", executor="local"
    )
    # As a worker on a machine with fast bf16 would have left it.
    (tmp_path / "out" / "_runs" / "night").mkdir(parents=True)
    (tmp_path / "out" / "_runs" / "night" / "precision.json").write_text('{"precision": "bf16"}')
    assert score(config)["engines"] == ["eager bf16 on cpu"]
