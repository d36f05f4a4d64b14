"""Two starts of one run id, and readers while runs publish."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import ScoreConfig, VerifyConfig
from imgcls.runs.commits import read_commits
from imgcls.runs.plan import read_plan
from imgcls.runs.published import list_published
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.publishing.verify import verify
from tests.scoring.tiny import comparable, published_rows, write_images

NUM_IMAGES = 48


@pytest.mark.parametrize("num_pairs", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_double_starts_publish_once_and_readers_never_see_a_partial_night(
    num_pairs: int, model_ref: str, tmp_path: Path
) -> None:
    write_images(str(tmp_path / "bucket"), NUM_IMAGES)
    score(
        ScoreConfig(str(tmp_path / "bucket"), model_ref, str(tmp_path / "oracle"), executor="local")
    )
    undisturbed = comparable(published_rows(str(tmp_path / "oracle")))
    output = str(tmp_path / "out")
    command = [sys.executable, "-m", "tests.scoring.faults.forked_twins", str(tmp_path / "bucket")]
    command += [model_ref, output, str(num_pairs)]
    twins = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reads: Counter[int] = Counter()
    while twins.poll() is None:
        reads[read_all_nights(output)] += 1
    assert twins.returncode == 0
    assert twins.stdout is not None
    codes = [json.loads(line) for line in twins.stdout]
    assert codes == [[0, 0]] * num_pairs
    assert sum(reads.values()) >= num_pairs
    assert len(reads) > (3 if num_pairs == 20 else 2), "the readers must have seen nights appear"
    rows = published_rows(output).to_pylist()
    for number in range(num_pairs):
        run_id = f"run-{number:02d}"
        plan = read_plan(Run(output, run_id))
        assert plan is not None
        commits = list(read_commits(Run(output, run_id)))
        assert len(commits) == len(plan.shard_rows) == 6
        mine = [row for row in rows if row["run_id"] == run_id]
        names = ("uri", "status", "label", "topk_prob")
        assert [[row[n] for n in names] for row in mine] == [
            [row[n] for n in names] for row in undisturbed
        ]
    assert verify(VerifyConfig(output))["rows"] == num_pairs * NUM_IMAGES


def read_all_nights(output: str) -> int:
    """Read as a careful reader (manifests) and a naive one (glob) do; return the nights seen."""
    nights = 0
    for folder, manifest in list_published(output):
        nights += 1
        tables = [pq.read_table(Path(folder) / part.path) for part in manifest.parts]
        assert sum(table.num_rows for table in tables) == NUM_IMAGES
    for folder in Path(output).glob("date=*/run=*"):
        parts = list(folder.glob("*.parquet"))
        assert sum(pq.read_table(part).num_rows for part in parts) in (0, NUM_IMAGES)
    return nights
