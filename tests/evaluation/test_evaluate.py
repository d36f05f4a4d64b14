import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import ScoreConfig
from imgcls.data.class_names import ClassNames
from imgcls.data.dataset import read_dataset
from imgcls.data.trained_on import TRAINED_ON, write_trained_on
from imgcls.errors import AccessDeniedError, ConfigError, SourceError
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.png import encode_png
from imgcls.image.preprocess import normalize
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.inference.backends import kinds
from imgcls.inference.backends.network import Network
from imgcls.metrics.calibration import fit_calibration
from imgcls.metrics.measures import one_hot
from imgcls.model.architectures import build_model
from imgcls.model.bundle import Bundle, make_golden, write_bundle
from imgcls.runs.published import FORMAT_VERSION, Manifest
from imgcls.schema import PREDICTION_SCHEMA, prediction_schema
from imgcls.scoring.driver import score
from imgcls.storage import objects
from tests.kit.modes import refuse_reads

_IMAGE_PX = 8
_NAMES = ("dark", "light")


def _image(light: bool, number: int) -> bytes:
    """A noisy grey image that is dark or light."""
    rng = np.random.default_rng(number)
    level = 180 if light else 20
    return encode_png((level + rng.integers(0, 50, (9, 11, 3))).astype(np.uint8))


def _trained_bundle() -> Bundle:
    """A model that tells dark from light, by construction: its head reads the mean of the image."""
    torch.manual_seed(0)
    model = build_model("simple_cnn", 2, image_px=_IMAGE_PX)
    spec = PreprocessSpec.for_image_px(_IMAGE_PX)
    x_BCHW = torch.stack([torch.full((3, _IMAGE_PX, _IMAGE_PX), v) for v in (30, 200)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(30):
        noise = torch.randint(0, 30, (32, *x_BCHW.shape[1:]))
        light_B = torch.arange(32) % 2
        batch = normalize((x_BCHW[light_B] + noise).to(torch.uint8), spec)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), light_B).backward()
        optimizer.step()
    golden_x_BCHW = x_BCHW.to(torch.uint8)
    return Bundle(
        arch="simple_cnn",
        class_names=ClassNames(_NAMES),
        decode_spec=DecodeSpec(),
        preprocess_spec=spec,
        state_dict=model.state_dict(),
        metrics={},
        split_digest="",
        training={"config": {"val_fraction": 0.2, "test_fraction": 0.4, "seed": 7}},
        golden_x_BCHW=golden_x_BCHW,
        golden_probs_BK=make_golden(model, golden_x_BCHW, spec),
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.set_num_threads(1)
    return _trained_bundle()


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> str:
    write_bundle(bundle, str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """20 images of each class."""
    for number in range(40):
        path = tmp_path / "data" / _NAMES[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_image(number % 2 == 1, number))
    return tmp_path / "data"


def _evaluate(**flags: Any) -> dict[str, Any]:
    result = evaluate(EvaluateConfig(**flags, device="cpu", num_decoders=1))
    json.dumps(result, allow_nan=False)
    return result


def test_a_model_is_measured_by_the_backend_that_scores_here(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choosing depends on the run's length: with so few images only if told to fold for them."""
    monkeypatch.setattr(kinds, "_MIN_IMAGES_TO_FOLD", 1)
    night = score(ScoreConfig(str(data), model, str(tmp_path / "out"), executor="local"))
    found = _evaluate(model=model, data=str(data), split="all")
    assert [found["backend"]] == night["engines"] == ["folded fp32 on cpu"]
    assert found["precision"] == "fp32"
    with pytest.raises(ConfigError, match="--precision tf32: cpu has no such arithmetic"):
        _evaluate(model=model, data=str(data), split="all", precision="tf32")


def test_model_is_measured_on_the_test_split_of_its_training(model: str, data: Path) -> None:
    result = _evaluate(model=model, data=str(data), split="test", batch_size=4)
    split = read_dataset(str(data), val_fraction=0.2, test_fraction=0.4, seed=7)
    assert result["num_rows"] == result["num_ok"] == len(split.of_split("test"))
    assert result["split_digest"] == split.split_digest
    assert not result["same_split_as_training"]
    assert result["accuracy"] == result["accuracy_all"] == 1.0
    assert result["auroc_macro"] == 1.0
    assert result["intervals"]["accuracy"] == pytest.approx([0.806, 1.0], abs=1e-3)  # of 16
    assert result["intervals"]["num_units"] == result["num_ok"]


def test_all_of_a_new_folder_is_measured_where_nobody_names_a_split(
    bundle: Bundle, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = read_dataset(str(data), val_fraction=0.2, test_fraction=0.4, seed=7)
    trained_on = {TRAINED_ON: write_trained_on(known.samples)}
    write_bundle(replace(bundle, attachments=trained_on), str(tmp_path / "knows"))
    for number in range(40):
        objects.put(
            f"{tmp_path}/new/{_NAMES[number % 2]}/x{number}.png", _image(number % 2 == 1, 9)
        )
    result = _evaluate(model=str(tmp_path / "knows"), data=str(tmp_path / "new"))
    assert (result["num_rows"], result["split"]) == (40, "all")
    caplog.clear()
    data.rename(tmp_path / "moved")
    result = _evaluate(model=str(tmp_path / "knows"), data=str(tmp_path / "moved"))
    assert (result["num_rows"], result["split"]) == (len(known.of_split("test")), "test")
    assert "of 40 images" in caplog.text


def test_labels_of_images_that_were_moved_are_found_by_their_ends(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish("r", _row("s3://b/in/1/a.png", "dark"), _row("s3://b/in/2/a.png", "light"))
    (tmp_path / "l.csv").write_text("uri,label\nin/1/a.png,dark\nin/2/a.png,light\n")
    labels = str(tmp_path / "l.csv")
    with pytest.raises(ConfigError, match=r"/in/1/a\.png.*'s3://b/in/1/a.png'.*--match-by suffix"):
        _evaluate(predictions=output, labels=labels)
    result = _evaluate(predictions=output, labels=labels, match_by="suffix")
    assert (result["num_ok"], result["accuracy"], result["num_labels_without_row"]) == (2, 1.0, 0)


def test_labels_that_contradict_each_other_are_refused(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish("r", _row("s3://b/a.png", "dark"))
    (tmp_path / "l.csv").write_text("uri,label\ns3://b/a.png,dark\ns3://b/a.png,light\n")
    with pytest.raises(SourceError, match=r"a\.png is listed twice, with label 'dark' and 'light'"):
        _evaluate(predictions=output, labels=str(tmp_path / "l.csv"))


def test_unreadable_images_count_as_wrong_and_are_named(model: str, data: Path) -> None:
    (data / "dark" / "page.png").write_bytes(b"<html>no image</html>")
    (data / "light" / "cut.png").write_bytes(_image(True, 1)[:60])
    result = _evaluate(model=model, data=str(data), split="all")
    assert (result["num_rows"], result["num_ok"], result["accuracy"]) == (42, 40, 1.0)
    assert result["accuracy_all"] == pytest.approx(40 / 42)
    assert result["statuses"] == {"corrupt": 1, "ok": 40, "unsupported": 1}
    named = {entry["uri"].rpartition("/")[2]: entry["status"] for entry in result["not_ok"]}
    assert named == {"page.png": "unsupported", "cut.png": "corrupt"}


def test_one_image_that_may_not_be_read_counts_by_name_and_all_of_them_end_it(
    model: str, data: Path
) -> None:
    refuse_reads(data / "light" / "refused.png")
    result = _evaluate(model=model, data=str(data), split="all")
    assert result["statuses"] == {"ok": 40, "unreadable": 1}
    assert result["accuracy_all"] == pytest.approx(40 / 41)
    [named] = result["not_ok"]
    assert (named["uri"], named["status"]) == (str(data / "light/refused.png"), "unreadable")
    for path in data.rglob("*.png"):
        refuse_reads(path)
    with pytest.raises(AccessDeniedError, match="images in a row could not be read"):
        _evaluate(model=model, data=str(data), split="all")


def test_an_image_that_the_model_fails_on_counts_as_wrong_and_is_named(
    model: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "light" / "white.png").write_bytes(
        encode_png(np.full((_IMAGE_PX, _IMAGE_PX, 3), 255, np.uint8))
    )
    real = Network.forward

    def forward(self: Network, x_BCHW: torch.Tensor) -> torch.Tensor:
        if len(x_BCHW) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (x_BCHW.flatten(1) == 255).all(dim=1).any():
            raise ValueError("too bright to look at")
        return real(self, x_BCHW)

    monkeypatch.setattr(Network, "forward", forward)
    result = _evaluate(model=model, data=str(data), split="all")
    assert (result["num_rows"], result["num_ok"], result["accuracy"]) == (41, 40, 1.0)
    assert result["statuses"] == {"model_error": 1, "ok": 40}
    [named] = result["not_ok"]
    assert named["uri"].endswith("white.png")
    assert "too bright to look at" in named["error"]


def test_slices_and_groups_come_from_the_manifest(model: str, data: Path, tmp_path: Path) -> None:
    # Scanner y has its labels swapped; a patient has four images.
    lines = [
        f"data/{_NAMES[n % 2]}/{n:02}.png,{_NAMES[(n % 2) ^ (n >= 20)]},p{n // 4},{'xy'[n >= 20]}"
        for n in range(40)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label,group,scanner", *lines]))
    config = EvaluateConfig(
        model=model, data=str(tmp_path / "m.csv"), split="all", device="cpu", num_decoders=1
    )
    result = evaluate(replace(config, slice_by="scanner"))
    assert {name: row["accuracy"] for name, row in result["slices"].items()} == {"x": 1, "y": 0}
    assert result["intervals"]["num_units"] == 10
    with pytest.raises(SourceError, match="no column 'site'"):
        evaluate(replace(config, slice_by="site"))


def test_calibration_of_the_bundle_is_measured_too(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    probs_BK = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    fitted = fit_calibration(
        probs_BK,
        one_hot(np.array([0, 1, 1]), 2),
        bundle.class_names,
        targets=[("light", "recall", 0.5)],
    )
    write_bundle(replace(bundle, calibration=fitted.to_dict()), str(tmp_path / "calibrated"))
    result = _evaluate(model=str(tmp_path / "calibrated"), data=str(data), split="all")
    point = result["calibrated"]["operating_points"]["light:recall>=0.5"]
    assert (point["recall"], point["specificity"]) == (1.0, 1.0)
    assert point["review_fraction"] == 0.0
    assert result["calibrated"]["ece"] == pytest.approx(0, abs=0.01)


def test_wrong_labels_lower_the_accuracy(model: str, data: Path, tmp_path: Path) -> None:
    lines = [f"data/{_NAMES[n % 2]}/{n:02}.png,{_NAMES[(n % 2) ^ (n < 4)]}" for n in range(40)]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *lines, "data/gone.png,dark"]))
    result = _evaluate(model=model, data=str(tmp_path / "m.csv"), split="all")
    assert result["accuracy"] == pytest.approx(36 / 40)
    assert result["confusion_matrix"] == [[18, 2], [2, 18]]
    assert result["statuses"] == {"missing": 1, "ok": 40}


def test_unusable_flags_and_data_are_refused(model: str, data: Path, tmp_path: Path) -> None:
    for flags in ({}, {"model": model}, {"model": model, "data": "d", "predictions": "p"}):
        with pytest.raises(ConfigError, match="--model REF --data DATA, or --predictions"):
            _evaluate(**flags)
    (tmp_path / "m.csv").write_text("uri,label\na.png,drak\nb.png,lihgt\n")
    with pytest.raises(ConfigError, match="does not know: 'drak', 'lihgt'"):
        _evaluate(model=model, data=str(tmp_path / "m.csv"), split="all")
    lines = ["a.png,dark,train", "b.png,light,train", "c.png,light,val"]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label,split", *lines]))
    with pytest.raises(ConfigError, match="no images in split 'test'"):
        _evaluate(model=model, data=str(tmp_path / "m.csv"))
    (tmp_path / "m.csv").write_text("uri,label\na.png,dark\n")
    with pytest.raises(ConfigError, match=r"none of 1 labelled images.*missing"):
        _evaluate(model=model, data=str(tmp_path / "m.csv"), split="all")


_NIGHT = datetime(2026, 3, 1, tzinfo=UTC)


def _row(uri: str, class_name: str | None, **changes: Any) -> dict[str, Any]:
    ok = class_name is not None
    row: dict[str, Any] = dict.fromkeys(PREDICTION_SCHEMA.names)
    return row | {
        "uri": uri,
        "etag": "e",
        "size_bytes": 1,
        "last_modified": _NIGHT,
        "status": "ok" if ok else "corrupt",
        "error": None if ok else "broken",
        "label": _NAMES.index(class_name) if class_name else None,
        "class_name": class_name,
        "model": "m",
        "model_digest": "d",
        "spec_digest": "s",
        **changes,
    }


@pytest.fixture
def publish(model: str, tmp_path: Path) -> Callable[..., str]:
    """Publish rows as a run of `tmp_path/out`, one part per row, and return that prefix."""

    def publish_rows(run_id: str, *rows: dict[str, Any], night: int = 0, root: str = "") -> str:
        output = root or str(tmp_path / "out")
        folder = f"{output}/date=2026-03-{night + 1:02}/run={run_id}"
        parts = []
        for number, row in enumerate(rows):
            scored = {"run_id": run_id, "scored_at": _NIGHT + timedelta(days=night)}
            buffer = io.BytesIO()
            schema = prediction_schema({"multi_label"} if "labels" in row else ())
            pq.write_table(pa.Table.from_pylist([row | scored], schema=schema), buffer)
            data = buffer.getvalue()
            name = f"part-{number:05}.parquet"
            objects.put(f"{folder}/{name}", data)
            sha256 = hashlib.sha256(data).hexdigest()
            facts = {"sha256": sha256, "num_rows": 1, "size_bytes": len(data), "num_shards": 1}
            parts.append({"path": name} | facts)
        manifest = Manifest(
            run_id=run_id,
            date="2026-11-22",
            source="",
            model=model,
            model_uri=model,
            model_digest="",
            spec_digest="",
            parts=tuple(parts),
            counts={},
            status_counts={},
            published_at="",
        )
        text = json.dumps({"format_version": FORMAT_VERSION} | asdict(manifest))
        objects.put(f"{folder}/_manifest.json", text.encode())
        return output

    return publish_rows


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
        _row("s3://b/a.png", "dark"),
        _row("s3://b/b.png", "dark"),
        _row("s3://b/c.png", None),
        _row("s3://b/stranger.png", "light"),
    )
    labels = _labels(tmp_path, a="dark", b="light", c="dark", unscored="dark")
    result = _evaluate(predictions=output, labels=labels)
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
    publish("one", _row("s3://b/a.png", "dark"))
    output = publish("several", _row("s3://b/b.png", "light", labels=["light"]))
    with pytest.raises(ConfigError, match="one run at a time, with --run-id"):
        _evaluate(predictions=output, labels=labels)
    assert _evaluate(predictions=output, labels=labels, run_id="one")["accuracy"] == 1.0
    result = _evaluate(predictions=output, labels=labels, run_id="several")
    assert (result["subset_accuracy"], result["hamming_loss"]) == (1.0, 0.0)
    labels = _labels(tmp_path, a="dark|light")
    with pytest.raises(ConfigError, match=r"several classes.*--multi-label"):
        _evaluate(predictions=output, labels=labels, run_id="one")


def test_labels_of_multi_label_rows_are_compared_as_sets(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish(
        "r",
        _row("s3://b/a.png", "dark", labels=["dark", "light"]),
        _row("s3://b/b.png", "dark", labels=[]),
        _row("s3://b/c.png", "dark", labels=["dark"]),
        _row("s3://b/d.png", None),
    )
    labels = _labels(tmp_path, a="light|dark", b="", c="light", d="dark")
    result = _evaluate(predictions=output, labels=labels)
    assert (result["accuracy"], result["accuracy_all"]) == (pytest.approx(2 / 3), 0.5)
    assert result["hamming_loss"] == pytest.approx(2 / 6)
    assert result["per_class"]["light"]["recall"] == 0.5
    assert result["statuses"] == {"corrupt": 1, "ok": 3}


def test_newest_run_wins_whatever_the_order_of_names(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    publish("z", _row("s3://b/a.png", "light"), _row("s3://b/b.png", "light"), night=0)
    output = publish("a", _row("s3://b/a.png", "dark"), night=1)
    publish("m", _row("s3://b/a.png", None), night=0)
    labels = _labels(tmp_path, a="dark", b="light")
    result = _evaluate(predictions=output, labels=labels)
    assert (result["accuracy"], result["num_rows"], result["num_rows_superseded"]) == (1.0, 2, 2)
    only = _evaluate(predictions=output, labels=labels, run_id="z")
    assert (only["runs"], only["accuracy"]) == (["z"], 0.5)


def test_frames_of_a_file_each_count(publish: Callable[..., str], tmp_path: Path) -> None:
    frames = [_row("s3://b/a.tif", name, frame=i) for i, name in enumerate(("dark", "light"))]
    output = publish("r", *frames)
    (tmp_path / "labels.csv").write_text("uri,label\ns3://b/a.tif,dark\n")
    result = _evaluate(predictions=output, labels=str(tmp_path / "labels.csv"))
    assert (result["num_rows"], result["accuracy"]) == (2, 0.5)


def test_labels_without_a_class_or_of_an_unknown_one_are_counted_and_filters_narrow_them(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    rows = [_row(f"s3://b/{name}.png", "dark") for name in "abcd"]
    output = publish("r", *rows)
    lines = ["s3://b/a.png,dark", "s3://b/b.png,", "s3://b/c.png,drak", "s3://b/d.png,light"]
    (tmp_path / "l.csv").write_text("\n".join(["uri,label", *lines]) + "\n")
    result = _evaluate(predictions=output, labels=str(tmp_path / "l.csv"))
    assert (result["num_rows"], result["accuracy"]) == (2, 0.5)
    assert result["without_label"] == ["s3://b/b.png"]
    assert result["unknown_labels"] == {"drak": 1}
    narrow = _evaluate(
        predictions=output, labels=str(tmp_path / "l.csv"), include=("a.png", "b.png")
    )
    assert (narrow["num_rows"], narrow["num_labels"]) == (1, 2)


def test_unpublished_and_foreign_files_are_not_read(
    publish: Callable[..., str], tmp_path: Path
) -> None:
    output = publish("r", _row("s3://b/a.png", "dark"))
    for key in ("_runs/x/attempts/0.parquet", "date=2026-03-01/run=half/part-00000.parquet"):
        objects.put(f"{output}/{key}", b"not parquet")
    objects.put(f"{output}/other/_manifest.json", b"{}")
    assert _evaluate(predictions=output, labels=_labels(tmp_path, a="dark"))["num_rows"] == 1


def test_unusable_predictions_are_refused(publish: Callable[..., str], tmp_path: Path) -> None:
    output = publish("r", _row("s3://b/a.png", "dark"))
    with pytest.raises(ConfigError, match=r"does not know: 'lihgt'; it knows 'dark', 'light'"):
        _evaluate(predictions=output, labels=_labels(tmp_path, a="lihgt"))
    labels = _labels(tmp_path, a="dark")
    with pytest.raises(SourceError, match="no published predictions of run x"):
        _evaluate(predictions=output, labels=labels, run_id="x")
    with pytest.raises(SourceError, match="no published predictions"):
        _evaluate(predictions=str(tmp_path / "nothing"), labels=labels)
    with pytest.raises(
        ConfigError,
        match=r"none of the 1 labels has a row: a label is of 's3://b/other.png', a row of 's3://b/a.png'",
    ):
        _evaluate(predictions=output, labels=_labels(tmp_path, other="dark"))
    part = Path(output) / "date=2026-03-01" / "run=r" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(SourceError, match=r"part-00000\.parquet was changed"):
        _evaluate(predictions=output, labels=labels)


def test_predictions_of_a_model_that_is_gone_are_still_measured(
    publish: Callable[..., str], model: str, tmp_path: Path
) -> None:
    output = publish("r", _row("s3://b/a.png", "dark"), _row("s3://b/b.png", "light"))
    for file in Path(model).iterdir():
        file.unlink()
    result = _evaluate(predictions=output, labels=_labels(tmp_path, a="dark", b="dark"))
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
    lines = [f"{path},{_NAMES[i % 2]}" for i, path in enumerate(paths)]
    labels.write_text("\n".join(["uri,label", *lines]) + "\n")
    published = _evaluate(predictions=output, labels=str(labels))
    direct = _evaluate(model=model, data=str(labels), split="all")
    for name in ("accuracy", "accuracy_all", "num_rows", "statuses", "confusion_matrix"):
        assert published[name] == direct[name]


@pytest.mark.s3
def test_everything_may_lie_in_a_bucket(
    bundle: Bundle, s3_bucket: str, data: Path, publish: Callable[..., str]
) -> None:
    write_bundle(replace(bundle), f"{s3_bucket}/model")
    for path in data.rglob("*.png"):
        objects.put(f"{s3_bucket}/data/{path.relative_to(data)}", path.read_bytes())
    result = _evaluate(model=f"{s3_bucket}/model", data=f"{s3_bucket}/data", split="all")
    assert (result["accuracy"], result["num_ok"]) == (1.0, 40)
    uri = f"{s3_bucket}/data/dark/00.png"
    output = publish("r", _row(uri, "dark"), root=f"{s3_bucket}/out")
    objects.put(f"{s3_bucket}/labels.csv", b"uri,label\ndata/dark/00.png,dark\n")
    result = _evaluate(predictions=output, labels=f"{s3_bucket}/labels.csv")
    assert (result["accuracy"], result["num_rows"]) == (1.0, 1)
