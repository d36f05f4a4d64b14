"""Two models side by side: every flip is listed, and a promotion is decided by what was found."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import binomtest

from imgcls.config.models import DiffConfig, PromoteConfig
from imgcls.config.scoring import RollbackConfig
from imgcls.data.trained_on import TRAINED_ON, write_trained_on
from imgcls.diff.driver import diff
from imgcls.diff.numbers import agreement, mcnemar_exact, paired_test
from imgcls.errors import ConfigError
from imgcls.model.bundle import Bundle, make_golden
from imgcls.model.registry import promote_version, register
from imgcls.scoring.publishing.retention import rollback
from tests.inference.heatmaps.planted import CLASSES, draw, jpeg, train_planted
from tests.report.nights import publish_night, row_of

NUM_FLIPS = 37


@pytest.fixture
def two_nights(tmp_path: Path) -> tuple[str, set[str]]:
    """The same 800 images by two models; 37 answers of the second are others."""
    output = str(tmp_path / "out")
    before = [row_of(number, batch=f"batch {number % 50}") for number in range(800)]
    quiet = [n for n, row in enumerate(before) if row["decision"] == "negative"]
    flipped = set(quiet[:: len(quiet) // NUM_FLIPS][:NUM_FLIPS])
    after = [
        row | {"class_name": "dent", "decision": "positive", "confidence": 0.5 + n / 2000}
        if n in flipped
        else row
        for n, row in enumerate(before)
    ]
    after[-1] = after[-1] | {"etag": "overwritten", "class_name": "dent"}
    lost = next(n for n in quiet if n not in flipped)
    failed = {"status": "timeout", "error": "took too long", "class_name": None, "label": None,
              "decision": None, "confidence": None, "calibrated_prob": None}  # fmt: skip
    after[lost] = before[lost] | failed
    for run_id, rows, day in (("old", before, 1), ("new", after, 2)):
        publish_night(output, rows, run_id=run_id, day=day, extra=(pa.field("batch", pa.string()),))
    return output, {before[n]["uri"] for n in flipped}


def test_all_planted_flips_are_listed_and_nothing_else(two_nights: tuple[str, set[str]]) -> None:
    output, flipped = two_nights
    found = diff(DiffConfig("old", "new", output, slice_by="folder:1", group="batch"))
    assert (found["num_flips"], found["num_lost"], found["num_changed"]) == (NUM_FLIPS, 1, 1)
    assert found["by_class"] == {"ok -> dent": NUM_FLIPS}
    assert found["by_decision"] == {"negative -> positive": NUM_FLIPS}
    assert sum(each["num_flips"] for each in found["by_slice"].values()) == NUM_FLIPS
    assert set(found["by_slice"]) == {f"camera {n}" for n in range(4)}
    batches = {int(uri.removesuffix(".jpg")[-6:]) % 50 for uri in flipped}
    assert found["num_groups_with_flips"] == len(batches)
    assert set(found["by_group"]) <= {f"batch {number}" for number in batches}
    low, high = found["agreement_interval"]
    assert low < found["agreement"] == 1 - NUM_FLIPS / found["num_compared"] < high
    assert found["verdict"] == "unknown"
    text = Path(found["page"]).with_suffix(".csv").read_text("utf-8-sig")
    listed = list(csv.DictReader(io.StringIO(text)))
    assert {row["uri"] for row in listed if row["status_b"] == "ok"} == flipped
    assert [row["error_b"] for row in listed if row["status_b"] != "ok"] == ["took too long"]
    sure = [min(float(row["confidence_a"]), float(row["confidence_b"])) for row in listed[:-1]]
    assert sure == sorted(sure, reverse=True)
    page = Path(found["page"]).read_text()
    assert page.count('class="card ') == NUM_FLIPS + 1
    assert f"37 of {found['num_compared']} images get another answer" in page


def test_rows_of_earlier_versions_are_of_the_same_bytes(tmp_path: Path) -> None:
    """Up to 27535e0 the etag of a local file ended in its inode."""
    rows = [row_of(n, uri=f"/parts/{n}.jpg", etag=f"18a-{n}") for n in range(8)]
    old = [row | {"etag": f"{row['etag']}-1f2e"} for row in rows]
    for run_id, some in (("old", old), ("new", rows)):
        publish_night(str(tmp_path), some, run_id=run_id)
    found = diff(DiffConfig("old", "new", str(tmp_path)))
    num_ok = sum(row["status"] == "ok" for row in rows)
    assert (found["num_compared"], found["num_changed"]) == (num_ok, 0)


def test_a_run_that_is_not_there_is_refused(two_nights: tuple[str, set[str]]) -> None:
    with pytest.raises(ConfigError, match="published: new, old"):
        diff(DiffConfig("old", "other", two_nights[0]))


def test_the_paired_test_is_the_exact_one() -> None:
    for only_a, only_b in ((0, 0), (5, 5), (1, 9), (0, 6), (40, 61), (700, 900)):
        expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-6)


def test_images_of_one_group_are_not_independent_evidence() -> None:
    """Twenty images of one part that all turn wrong are one part."""
    right_a, right_b = np.ones(200, bool), np.ones(200, bool)
    right_b[:20] = False
    alone = paired_test(right_a, right_b, None)
    of_one_part = paired_test(right_a, right_b, [str(n // 20) for n in range(200)])
    assert alone is not None
    assert of_one_part is not None
    assert (alone.verdict, of_one_part.verdict) == ("worse", "no_difference")
    narrow, wide = (
        agreement(right_b, units)[1] for units in (None, [str(n // 20) for n in range(200)])
    )
    assert narrow is not None
    assert wide is not None
    assert wide[1] - wide[0] > narrow[1] - narrow[0]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (50, 0), (0, 50)])
def test_an_interval_without_width_still_holds_both_signs(only_a: int, only_b: int) -> None:
    """All of 50 images, or none, differ: no draw changes that, but other images would."""
    right_a, right_b = np.zeros((2, 50), bool)
    right_a[:only_a], right_b[:only_b] = True, True
    found = paired_test(right_a, right_b, None)
    assert found is not None
    assert found.difference_interval is not None
    low, high = found.difference_interval
    assert -1 <= low <= found.difference <= high <= 1
    # Wilson: of 50 images of which none differs, up to 3.84 / 53.84 of all might, to either side.
    left_open = 3.84 / 53.84
    if found.difference == 0:
        assert (low, high) == pytest.approx((-left_open, left_open), abs=1e-3)
        assert found.verdict == "no_difference"
    else:
        assert high - low == pytest.approx(2 * left_open, abs=1e-3)
        assert found.verdict == ("better" if only_b else "worse")


def with_bias(bundle: Bundle, bias: list[float]) -> Bundle:
    """The same network with another last bias."""
    state = bundle.state_dict | {"classifier.bias": torch.tensor(bias)}
    changed = replace(bundle, state_dict=state)
    model, x_BCHW = changed.to_model(), bundle.golden_x_BCHW
    golden = make_golden(model, x_BCHW, bundle.preprocess_spec)
    return replace(changed, golden_probs_BK=golden)


def test_a_worse_candidate_is_refused_and_an_equal_one_taken(tmp_path: Path) -> None:
    bundle = train_planted("spot_cnn", 64, epochs=3)
    bundle = replace(bundle, attachments={TRAINED_ON: write_trained_on([])})
    registry, rng = str(tmp_path / "models"), np.random.default_rng(5)
    worse = with_bias(bundle, [0.0, 60.0, 0.0])  # it finds nothing
    for each in (bundle, worse, bundle):
        register(registry, "m", each)
    for number in range(36):
        name = CLASSES.names[number % 3]
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        image, _ = draw((96, 96), number % 3, rng)
        (folder / f"{number}.jpg").write_bytes(jpeg(image))
    promote_version(PromoteConfig(f"{registry}/m@v1"))

    def compare(second: str) -> dict[str, Any]:
        return diff(
            DiffConfig(
                f"{registry}/m@v1",
                f"{registry}/m@{second}",
                str(tmp_path / second),
                data=str(tmp_path / "data"),
                num_decoders=1,
            )
        )

    def promote(version: str, **flags: Any) -> dict[str, Any]:
        return promote_version(PromoteConfig(f"{registry}/m@{version}", **flags))

    of_worse, of_equal = compare("v2"), compare("v3")
    assert (of_worse["verdict"], of_worse["num_labelled"]) == ("worse", 36)
    assert of_worse["paired"]["only_a_right"] == of_worse["num_flips"] > 20
    assert (of_equal["verdict"], of_equal["num_flips"]) == ("no_difference", 0)
    page = Path(of_worse["page"]).read_text()
    assert page.count("first: speaks for ") > 20
    with pytest.raises(ConfigError, match="right less often"):
        promote("v2", require_diff=of_worse["diff"], not_worse=True)
    with pytest.raises(ConfigError, match="--max-flips allows 5"):
        promote("v2", require_diff=of_worse["diff"], max_flips=0.05)
    with pytest.raises(ConfigError, match="another model"):
        promote("v3", require_diff=of_worse["diff"], not_worse=True)
    with pytest.raises(ConfigError, match="add --require-diff"):
        promote("v2", not_worse=True)
    taken = promote("v3", require_diff=of_equal["diff"], not_worse=True, max_flips=0.0)
    assert taken["version"] == 3
    # The alias moved on: what was compared with v1 says nothing of v3.
    promote("v2")
    with pytest.raises(ConfigError, match="the alias stands for another model now"):
        promote("v3", require_diff=of_equal["diff"])
    rollback(RollbackConfig(str(tmp_path / "v2"), of_worse["second_run"]))
    assert not Path(of_worse["page"]).exists()
