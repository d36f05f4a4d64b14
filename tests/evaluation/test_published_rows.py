"""Published rows against labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imgcls.config.scoring import ScoreConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.model.bundle import Bundle, write_bundle
from imgcls.scoring.driver import score
from imgcls.storage import objects
from tests.evaluation.shades import (
    NAMES,
    row_of,
    run_evaluate,
)


def _labels(tmp_path: Path, **label_by_uri: str) -> str:
    path = tmp_path / "labels.csv"
    lines = [f"s3://b/{name}.png,{label}" for name, label in label_by_uri.items()]
    path.write_text("\n".join(["uri,label", *lines]) + "\n")
    return str(path)


def test_predictions_are_joined_by_uri_and_nothing_is_dropped(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish(
        "r1",
        row_of("s3://b/a.png", "dark"),
        row_of("s3://b/b.png", "dark"),
        row_of("s3://b/c.png", None),
        row_of("s3://b/stranger.png", "light"),
    )
    labels = _labels(tmp_path, a="dark", b="light", c="dark", unscored="dark")
    result = run_evaluate(predictions=output, labels=labels)
    assert (result["accuracy"], result["accuracy_all"]) == (0.5, pytest.approx(1 / 3))
    assert result["statuses"] == {"corrupt": 1, "ok": 2}
    assert result["not_ok"] == [{"uri": "s3://b/c.png", "status": "corrupt", "error": "broken"}]
    assert result["labels_without_row"] == ["s3://b/unscored.png"]
    assert result["rows_without_label"] == ["s3://b/stranger.png"]
    assert (result["num_labels_without_row"], result["num_rows_without_label"]) == (1, 1)
    assert result["confusion_matrix"] == [[1, 0], [1, 0]]


def test_rows_of_one_label_and_of_several_are_not_measured_together(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    labels = _labels(tmp_path, a="dark", b="light")
    publish("one", row_of("s3://b/a.png", "dark"))
    output = publish("several", row_of("s3://b/b.png", "light", labels=["light"]))
    with pytest.raises(ConfigError, match="one run at a time, with --run-id"):
        run_evaluate(predictions=output, labels=labels)
    assert run_evaluate(predictions=output, labels=labels, run_id="one")["accuracy"] == 1.0
    result = run_evaluate(predictions=output, labels=labels, run_id="several")
    assert (result["subset_accuracy"], result["hamming_loss"]) == (1.0, 0.0)
    labels = _labels(tmp_path, a="dark|light")
    with pytest.raises(ConfigError, match=r"several classes.*--multi-label"):
        run_evaluate(predictions=output, labels=labels, run_id="one")


def test_labels_of_multi_label_rows_are_compared_as_sets(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish(
        "r",
        row_of("s3://b/a.png", "dark", labels=["dark", "light"]),
        row_of("s3://b/b.png", "dark", labels=[]),
        row_of("s3://b/c.png", "dark", labels=["dark"]),
        row_of("s3://b/d.png", None),
    )
    labels = _labels(tmp_path, a="light|dark", b="", c="light", d="dark")
    result = run_evaluate(predictions=output, labels=labels)
    assert (result["accuracy"], result["accuracy_all"]) == (pytest.approx(2 / 3), 0.5)
    assert result["hamming_loss"] == pytest.approx(2 / 6)
    assert result["per_class"]["light"]["recall"] == 0.5
    assert result["statuses"] == {"corrupt": 1, "ok": 3}


def test_newest_run_wins_whatever_the_order_of_names(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    publish("z", row_of("s3://b/a.png", "light"), row_of("s3://b/b.png", "light"), night=0)
    output = publish("a", row_of("s3://b/a.png", "dark"), night=1)
    publish("m", row_of("s3://b/a.png", None), night=0)
    labels = _labels(tmp_path, a="dark", b="light")
    result = run_evaluate(predictions=output, labels=labels)
    assert (result["accuracy"], result["num_rows"], result["num_rows_superseded"]) == (1.0, 2, 2)
    only = run_evaluate(predictions=output, labels=labels, run_id="z")
    assert (only["runs"], only["accuracy"]) == (["z"], 0.5)


def test_frames_of_a_file_each_count(publish: Callable[..., str], tmp_path: Path) -> None:
    frames = [row_of("s3://b/a.tif", name, frame=i) for i, name in enumerate(("dark", "light"))]
    output = publish("r", *frames)
    (tmp_path / "labels.csv").write_text("uri,label\ns3://b/a.tif,dark\n")
    result = run_evaluate(predictions=output, labels=str(tmp_path / "labels.csv"))
    assert (result["num_rows"], result["accuracy"]) == (2, 0.5)


def test_labels_without_a_class_or_of_an_unknown_one_are_counted_and_filters_narrow_them(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    rows = [row_of(f"s3://b/{name}.png", "dark") for name in "abcd"]
    output = publish("r", *rows)
    lines = ["s3://b/a.png,dark", "s3://b/b.png,", "s3://b/c.png,drak", "s3://b/d.png,light"]
    (tmp_path / "l.csv").write_text("\n".join(["uri,label", *lines]) + "\n")
    result = run_evaluate(predictions=output, labels=str(tmp_path / "l.csv"))
    assert (result["num_rows"], result["accuracy"]) == (2, 0.5)
    assert result["without_label"] == ["s3://b/b.png"]
    assert result["unknown_labels"] == {"drak": 1}
    narrow = run_evaluate(
        predictions=output, labels=str(tmp_path / "l.csv"), include=("a.png", "b.png")
    )
    assert (narrow["num_rows"], narrow["num_labels"]) == (1, 2)


def test_unpublished_and_foreign_files_are_not_read(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish("r", row_of("s3://b/a.png", "dark"))
    for key in ("_runs/x/attempts/0.parquet", "date=2026-03-01/run=half/part-00000.parquet"):
        objects.put(f"{output}/{key}", b"not parquet")
    objects.put(f"{output}/other/_manifest.json", b"{}")
    assert run_evaluate(predictions=output, labels=_labels(tmp_path, a="dark"))["num_rows"] == 1


def test_unusable_predictions_are_refused(publish: Callable[..., str], tmp_path: Path) -> None:
    output = publish("r", row_of("s3://b/a.png", "dark"))
    with pytest.raises(ConfigError, match=r"does not know: 'lihgt'; it knows 'dark', 'light'"):
        run_evaluate(predictions=output, labels=_labels(tmp_path, a="lihgt"))
    labels = _labels(tmp_path, a="dark")
    with pytest.raises(SourceError, match="no published predictions of run x"):
        run_evaluate(predictions=output, labels=labels, run_id="x")
    with pytest.raises(SourceError, match="no published predictions"):
        run_evaluate(predictions=str(tmp_path / "nothing"), labels=labels)
    with pytest.raises(
        ConfigError,
        match=r"none of the 1 labels has a row: a label is of 's3://b/other.png', a row of 's3://b/a.png'",
    ):
        run_evaluate(predictions=output, labels=_labels(tmp_path, other="dark"))
    part = Path(output) / "date=2026-03-01" / "run=r" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(SourceError, match=r"part-00000\.parquet was changed"):
        run_evaluate(predictions=output, labels=labels)


def test_predictions_of_a_model_that_is_gone_are_still_measured(
    publish: Callable[..., str], model: str, tmp_path: Path
) -> None:
    output = publish("r", row_of("s3://b/a.png", "dark"), row_of("s3://b/b.png", "light"))
    for file in Path(model).iterdir():
        file.unlink()
    result = run_evaluate(predictions=output, labels=_labels(tmp_path, a="dark", b="dark"))
    assert result["accuracy"] == 0.5


def test_scoring_and_evaluation_agree_on_every_image(
    model: str, data: Path, tmp_path: Path
) -> None:
    (data / "dark" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    output = str(tmp_path / "scored")
    score(ScoreConfig(source=str(data), model=model, output=output, executor="local", device="cpu"))
    paths = sorted(data.rglob("*.png"))
    labels = tmp_path / "labels.csv"
    # Half of the labels are wrong, so that agreement is not just perfection.
    lines = [f"{path},{NAMES[i % 2]}" for i, path in enumerate(paths)]
    labels.write_text("\n".join(["uri,label", *lines]) + "\n")
    published = run_evaluate(predictions=output, labels=str(labels))
    direct = run_evaluate(model=model, data=str(labels), split="all")
    for name in ("accuracy", "accuracy_all", "num_rows", "statuses", "confusion_matrix"):
        assert published[name] == direct[name]


@pytest.mark.s3
def test_everything_may_lie_in_a_bucket(
    bundle: Bundle, s3_bucket: str, data: Path, publish: Callable[..., str]
) -> None:
    write_bundle(replace(bundle), f"{s3_bucket}/model")
    for path in data.rglob("*.png"):
        objects.put(f"{s3_bucket}/data/{path.relative_to(data)}", path.read_bytes())
    result = run_evaluate(model=f"{s3_bucket}/model", data=f"{s3_bucket}/data", split="all")
    assert (result["accuracy"], result["num_ok"]) == (1.0, 40)
    uri = f"{s3_bucket}/data/dark/00.png"
    output = publish("r", row_of(uri, "dark"), root=f"{s3_bucket}/out")
    objects.put(f"{s3_bucket}/labels.csv", b"uri,label\ndata/dark/00.png,dark\n")
    result = run_evaluate(predictions=output, labels=f"{s3_bucket}/labels.csv")
    assert (result["accuracy"], result["num_rows"]) == (1.0, 1)
