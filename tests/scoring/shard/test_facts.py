"""What a run sees of its images lies beside its attempts, row by row, and changes none of them."""

import io
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from imgcls.config.scoring import GcConfig, RollbackConfig, ScoreConfig
from imgcls.image.decoders.pool import DecoderPool
from imgcls.model.registry import register
from imgcls.runs.commits import read_attempt, read_commits
from imgcls.runs.facts import FACTS_SCHEMA, read_facts
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.shard.facts import ShardFacts
from imgcls.scoring.shard.score_shard import ScoredShard, score_shard
from imgcls.storage.objects import put
from tests.kit.greys import ct_without_window
from tests.kit.predictors import open_predictor
from tests.scoring.shard.test_score_shard import plan_rows, provenance_of
from tests.scoring.tiny import make_bundle, write_images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    write_images(str(folder), 30)
    put(str(folder / "scan.dcm"), ct_without_window(0))
    put(str(folder / "broken.png"), b"\x89PNG\r\n\x1a\n and no more")
    return folder


def score_rows(rows: pa.Table, num_planned: int) -> ScoredShard:
    bundle = make_bundle()
    spec = bundle.preprocess_spec
    with DecoderPool(bundle.decode_spec, spec, 1, look="facts") as pool:
        return score_shard(
            rows,
            predictor=open_predictor(bundle, batch_size=8),
            pool=pool,
            provenance=provenance_of(bundle),
            facts=ShardFacts(spec, num_planned, rows.num_rows),
        )


def test_facts_are_row_by_row_those_of_the_images(source: Path) -> None:
    scored = score_rows(plan_rows(source), 32)
    assert scored.facts.schema == FACTS_SCHEMA
    assert scored.facts["uri"].equals(scored.rows["uri"])
    for row, facts in zip(scored.rows.to_pylist(), scored.facts.to_pylist(), strict=True):
        assert facts["format"] == row["format"]
        assert (facts["width_px"], facts["height_px"]) == (row["width_px"], row["height_px"])
        if row["status"] != "ok":
            assert facts["brightness"] is facts["thumbnail"] is None
        elif row["uri"].endswith(".dcm"):
            assert (facts["bits"], facts["modality"], facts["gray_rule"]) == (16, "CT", "declared")
            assert facts["levels"] < 32 < facts["source_levels"]
        else:
            with Image.open(row["uri"]) as image:
                green = np.asarray(image.convert("RGB"))[:, :, 1].astype(float)
            assert facts["brightness"] == pytest.approx(green.mean(), abs=12)
            assert (facts["bits"], facts["source_levels"]) == (8, None)
    assert scored.greys == {"bits_16": 1, "declared": 1, "few_levels": 1}


def test_of_a_small_run_each_image_has_a_thumbnail_of_a_large_one_some(source: Path) -> None:
    rows = plan_rows(source)
    small, large, again = (score_rows(rows, planned).facts for planned in (32, 100_000, 100_000))
    assert Counter(small["thumbnail_for"].to_pylist()) == {"sample": 31, None: 1}
    for data in small["thumbnail"].drop_null().to_pylist():
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 160
    reasons = Counter(large["thumbnail_for"].to_pylist())
    # Which are a sample goes by the hash of their names, which lie in another folder each time.
    seen = [row for row in large.to_pylist() if row["brightness"] is not None]
    others = [row for row in seen if row["thumbnail_for"] != "sample"]
    for axis in ("brightness", "contrast", "sharpness"):
        for end in (min, max):
            at_the_end = end(row[axis] for row in others)
            told = {row["thumbnail_for"] for row in others if row[axis] == at_the_end}
            assert "extreme" in told, (axis, end)
    assert 1 <= reasons["uncertain"] <= 8
    assert reasons[None] >= 8
    by_place = dict(zip(large["uri"].to_pylist(), large["thumbnail"].to_pylist(), strict=True))
    assert by_place == dict(
        zip(again["uri"].to_pylist(), again["thumbnail"].to_pylist(), strict=True)
    )


def test_they_lie_with_the_run_for_its_owner_until_it_is_rolled_back(
    source: Path, tmp_path: Path
) -> None:
    model = register(str(tmp_path / "registry"), "m", make_bundle()).uri
    config = ScoreConfig(str(source), model, str(tmp_path / "out"), run_id="r", executor="local")
    result = score(config)
    assert result["greys"]["few_levels"] == 1
    run = Run(config.output, "r")
    commits = list(read_commits(run))
    for commit in commits:
        rows, facts = read_attempt(run, commit), read_facts(run, commit)
        assert rows["uri"].to_pylist() == facts["uri"].to_pylist()
        mode = Path(run.file(commit.facts)).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
    gc(GcConfig(output=config.output, older_than="0s"))
    assert all(read_facts(run, commit).num_rows for commit in commits), "gc keeps them"
    rollback(RollbackConfig(output=config.output, run_id="r"))
    assert not list(Path(run.facts).iterdir())


def test_a_commit_of_an_earlier_version_has_no_facts(tmp_path: Path) -> None:
    from imgcls.scoring.shard.commit import commit_shard
    from tests.scoring.tiny import prediction_rows

    run = Run(str(tmp_path), "r")
    commit = commit_shard(run, "000000", prediction_rows(["a"], ["ok"]))
    assert (commit.facts, commit.greys) == ("", {})
    assert read_facts(run, commit).num_rows == 0
