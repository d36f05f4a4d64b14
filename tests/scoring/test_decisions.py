"""What a bundle's calibration, thresholds and labels become in published rows."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from imgcls.config.models import EvaluateConfig
from imgcls.config.scoring import ScoreConfig
from imgcls.evaluation.evaluate import evaluate
from imgcls.image.decoders.pool import DecoderPool
from imgcls.image.spec import DecodeSpec, PreprocessSpec
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint
from imgcls.model.bundle import Bundle, read_facts
from imgcls.model.registry import register
from imgcls.runs.row_options import RowOptions
from imgcls.schema import PLAN_SCHEMA, PREDICTION_SCHEMA, prediction_schema
from imgcls.scoring.driver import score
from imgcls.scoring.shard.rows import Provenance
from imgcls.scoring.shard.score_shard import score_shard
from imgcls.storage.objects import list_objects, put, read
from tests.kit.predictors import open_predictor
from tests.scoring.tiny import (
    IMAGE_PX,
    POSITIVE,
    TEMPERATURE,
    THRESHOLD_ID,
    image_bytes,
    make_bundle,
    make_calibration,
    run_facts,
    tiff_frames,
)

SPEC = DecodeSpec(frames="all")


def softened(probs: list[float]) -> list[float]:
    """softmax(log(p) / T), in plain Python."""
    scaled = [math.exp(math.log(max(p, 1e-38)) / TEMPERATURE) for p in probs]
    return [value / sum(scaled) for value in scaled]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """64 damaged images, which make a shard of their own, 40 whole ones and a file of 3 frames."""
    root = tmp_path_factory.mktemp("bucket")
    for number in range(64):
        put(str(root / "a-damaged" / f"{number:03d}.png"), b"\x89PNG\r\n\x1a\n")
    for number in range(40):
        put(str(root / "whole" / f"{number:03d}.png"), image_bytes(number))
    put(str(root / "whole" / "frames.tif"), tiff_frames(3))
    return str(root)


def score_night(bundle: Bundle, source: str, root: Path, run_id: str) -> pa.Table:
    """Register the bundle and score with it as one night of `root/out`; return its rows."""
    model = register(str(root / "registry"), "tiny", bundle)
    config = ScoreConfig(
        source=source,
        model=model.uri,
        output=str(root / "out"),
        run_id=run_id,
        date="2026-11-22",
        executor="local",
        device="cpu",
        precision="fp32",
        shard_size=64,
        max_failed_fraction=1.0,
        write_probs=True,
    )
    [part] = score(config)["parts"]
    return pq.read_table(io.BytesIO(read(part)))


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(SPEC, PreprocessSpec.for_image_px(IMAGE_PX), 1) as pool:
        yield pool


def score_one_shard(bundle: Bundle, source: str, pool: DecoderPool) -> pa.Table:
    """Return the rows of all images of the source."""
    provenance = Provenance(
        run_facts(),
        bundle.class_names.names,
        multi_label=bundle.multi_label,
        calibration=Calibration.from_dict(bundle.calibration) if bundle.calibration else None,
    )
    columns = {
        name: [getattr(info, name) for info in list_objects(source)] for name in PLAN_SCHEMA.names
    }
    return score_shard(
        pa.table(columns, schema=PLAN_SCHEMA),
        predictor=open_predictor(bundle, device="cpu", batch_size=16),
        pool=pool,
        provenance=provenance,
        row_options=RowOptions(write_probs=True),
    ).rows


@pytest.fixture(scope="module")
def nights(
    source: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, pa.Table]]:
    """An output of two nights: before the model had a calibration, and with an operating point."""
    root = tmp_path_factory.mktemp("nights")
    plain = score_night(make_bundle(decode_spec=SPEC), source, root, "plain")
    rows = [row for row in plain.to_pylist() if row["status"] == "ok"]
    scores = sorted(softened(row["probs"])[3] for row in rows)
    # Thirds of the images, and the threshold in the middle of the band; between two scores.
    bounds = [(scores[i - 1] + scores[i]) / 2 for i in (14, 21, 28)]
    bundle = make_bundle(decode_spec=SPEC, calibration=make_calibration(*bounds))
    return root, {"plain": plain, "decided": score_night(bundle, source, root, "decided")}


def point_of(root: Path) -> OperatingPoint:
    calibration = read_facts(str(root / "registry" / "tiny" / "v2")).calibration
    assert calibration is not None
    return calibration.operating_points[0]


def test_a_bundle_without_calibration_gives_the_columns_as_ever(
    nights: tuple[Path, dict[str, pa.Table]],
) -> None:
    assert prediction_schema() == PREDICTION_SCHEMA
    assert nights[1]["plain"].schema.equals(prediction_schema({"write_probs"}))


def test_decisions_are_those_computed_by_hand_from_the_probabilities(
    nights: tuple[Path, dict[str, pa.Table]],
) -> None:
    root, tables = nights
    point, table = point_of(root), tables["decided"]
    assert table.schema.equals(prediction_schema({"calibrated", "operating_point", "write_probs"}))
    names = table.schema.names
    after = names.index("confidence") + 1
    assert names[after : after + 3] == ["calibrated_prob", "decision", "threshold_id"]
    seen = set()
    for row in table.to_pylist():
        found = (row["calibrated_prob"], row["decision"], row["threshold_id"])
        if row["status"] != "ok":
            assert found == (None, None, None)
            continue
        prob = softened(row["probs"])[3]
        expected = "review"
        if prob >= point.review_high:
            expected = "positive"
        elif prob < point.review_low:
            expected = "negative"
        assert found == (pytest.approx(prob, abs=1e-6), expected, THRESHOLD_ID)
        seen.add(expected)
    assert seen == {"positive", "review", "negative"}
    assert [row["frame"] for row in table.to_pylist()[-3:]] == [0, 1, 2]


def test_without_an_operating_point_the_class_on_top_is_calibrated(
    source: str, pool: DecoderPool
) -> None:
    table = score_one_shard(make_bundle(calibration=make_calibration()), source, pool)
    assert table.schema.equals(prediction_schema({"calibrated", "write_probs"}))
    for row in table.to_pylist():
        if row["status"] == "ok":
            expected = softened(row["probs"])[row["label"]]
            assert row["calibrated_prob"] == pytest.approx(expected, abs=1e-6)
        else:
            assert row["calibrated_prob"] is None


@pytest.mark.parametrize("has_point", [False, True])
def test_a_multi_label_model_names_every_class_that_reaches_its_threshold(
    has_point: bool, source: str, pool: DecoderPool
) -> None:
    calibration = make_calibration(0.6, 0.7, 0.8) if has_point else None
    bundle = make_bundle(multi_label=True, calibration=calibration)
    table = score_one_shard(bundle, source, pool)
    assert table.schema.equals(
        prediction_schema(
            {"multi_label", "write_probs"}
            | ({"calibrated", "operating_point"} if has_point else set())
        )
    )
    num_labels, sums = [], []
    for row in table.to_pylist():
        if row["status"] != "ok":
            assert row["labels"] is None
            continue
        reached = [prob >= 0.5 for prob in row["probs"]]
        if has_point:
            # sigmoid(logit / T) of that class by itself
            odds = (row["probs"][3] / (1 - row["probs"][3])) ** (1 / TEMPERATURE)
            assert row["calibrated_prob"] == pytest.approx(odds / (1 + odds), abs=1e-5)
            reached[3] = row["calibrated_prob"] >= 0.7
        assert row["labels"] == [f"class-{k}" for k in range(7) if reached[k]]
        assert row["confidence"] == max(row["probs"]) == row["probs"][row["label"]]
        assert row["topk_prob"] == sorted(row["probs"], reverse=True)[:5]
        num_labels.append(len(row["labels"]))
        sums.append(sum(row["probs"]))
    assert len(set(num_labels)) > 1
    assert max(sums) > 1.5, "sigmoids need not sum to 1"


def test_an_image_without_finding_has_an_empty_list(source: str, pool: DecoderPool) -> None:
    bundle = make_bundle(multi_label=True)
    # The last bias so low that no class is ever found.
    weights = {name: tensor.clone() for name, tensor in bundle.state_dict.items()}
    [bias] = [name for name in weights if name.endswith("bias")][-1:]
    weights[bias] -= 1000.0
    lowered = Bundle(
        **{
            **vars(bundle),
            "state_dict": weights,
            "golden_probs_BK": bundle.golden_probs_BK * 0,
        }
    )
    table = score_one_shard(lowered, source, pool)
    found = {row["status"]: row["labels"] for row in table.to_pylist()}
    assert found == {"ok": [], "corrupt": None}


def test_nights_of_unlike_columns_are_read_by_name(
    nights: tuple[Path, dict[str, pa.Table]],
) -> None:
    root, tables = nights
    glob = str(root / "out" / "date=*" / "run=*" / "*.parquet")
    rows = duckdb.read_parquet(glob, union_by_name=True)
    found = rows.filter("decision IS NULL").aggregate("run_id, count(*)").fetchall()
    assert dict(found) == {"plain": tables["plain"].num_rows, "decided": 64}
    parts = [i.uri for i in list_objects(str(root / "out" / "date=2026-11-22")) if "part-" in i.uri]
    schema = pa.unify_schemas([pq.read_schema(part) for part in parts])
    both = ds.dataset(parts, schema=schema).to_table()
    assert both.num_rows == sum(table.num_rows for table in tables.values())
    assert both["decision"].null_count == tables["plain"].num_rows + 64


def test_evaluation_counts_decisions_against_labels(
    nights: tuple[Path, dict[str, pa.Table]], tmp_path: Path
) -> None:
    root, tables = nights
    point = point_of(root)
    rows = [row for row in tables["decided"].to_pylist() if row["status"] == "ok"]
    label_by_uri = {row["uri"]: POSITIVE if i % 3 else "class-0" for i, row in enumerate(rows)}
    labels = tmp_path / "labels.csv"
    lines = [f"{uri},{label}" for uri, label in label_by_uri.items()]
    labels.write_text("\n".join(["uri,label", *lines]) + "\n")
    flags = {"predictions": str(root / "out"), "labels": str(labels)}
    [entry] = evaluate(EvaluateConfig(**flags, run_id="decided"))["decisions"]
    by_truth = {
        truth: [row for row in rows if (label_by_uri[row["uri"]] == POSITIVE) == is_positive]
        for truth, is_positive in (("positive", True), ("negative", False))
    }
    assert entry["counts"] == {
        truth: {d: sum(r["decision"] == d for r in of) for d in ("positive", "review", "negative")}
        for truth, of in by_truth.items()
    }
    positive, negative = by_truth["positive"], by_truth["negative"]
    found = sum(row["calibrated_prob"] >= point.threshold for row in positive)
    assert entry["recall"] == pytest.approx(found / len(positive))
    left = sum(row["calibrated_prob"] < point.threshold for row in negative)
    assert entry["specificity"] == pytest.approx(left / len(negative))
    assert entry["threshold"] == point.threshold
    assert entry["threshold_id"] == THRESHOLD_ID
    assert entry["review_fraction"] == sum(r["decision"] == "review" for r in rows) / len(rows)
    missed = entry["counts"]["positive"]["negative"]
    assert entry["recall_with_review"] == pytest.approx(1 - missed / len(positive))
    assert evaluate(EvaluateConfig(**flags, run_id="plain"))["decisions"] == []
