"""Plan, publish, verify and plan again a run of many keys, and tell each stage's time and memory.

`python -m tests.scoring.scale.million FOLDER NUM_KEYS` prints one JSON line per stage. No image is
scored: the rows of each shard are made up, so that only the driver's own work is measured.
"""

import itertools
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from imgcls.image.spec import DecodeSpec
from imgcls.runs.commits import read_commits
from imgcls.runs.ledger import published_keys
from imgcls.runs.plan import ModelDigests, Plan, PlannedRows
from imgcls.runs.run import Run
from imgcls.scoring.planning.carry import Carry
from imgcls.scoring.planning.decoders import record_here
from imgcls.scoring.planning.plan import write_plan
from imgcls.scoring.planning.planned_model import PlannedModel
from imgcls.scoring.planning.staging import stage
from imgcls.scoring.publishing.publish import publish
from imgcls.scoring.publishing.twice import find_twice
from imgcls.scoring.publishing.verify import check_run
from imgcls.scoring.shard.commit import commit_shard
from imgcls.storage.objects import ObjectInfo
from tests.scoring.tiny import prediction_rows

NOW = datetime(2026, 11, 22, tzinfo=UTC)
MODEL_DIGEST, SPEC_DIGEST = "d", "s"  # as prediction_rows has them


def listing(num_keys: int) -> Iterator[ObjectInfo]:
    """Yield keys as hospitals name them, not in order."""
    for number in range(num_keys):
        key = f"patient-{number * 7919 % num_keys:08d}/study-{number % 13}/{number:08d}.dcm"
        yield ObjectInfo(f"s3://scans/incoming/{key}", f"{number:032x}", 50_000, NOW, None)


def peak_mib() -> float:
    """Return the highest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(name: str, work: Callable[[], dict[str, Any]], base_mib: float) -> None:
    """Do the work and print what it took."""
    start_s = time.monotonic()
    facts = work()
    record = {"stage": name, "s": round(time.monotonic() - start_s, 1)}
    record["grown_mib"] = round(peak_mib() - base_mib)
    print(json.dumps(record | facts), flush=True)  # noqa: T201 - this program's output


def main(folder: str, num_keys: str) -> None:
    """Measure the stages in order."""
    decoders = record_here(DecodeSpec())  # loads every decoder: a worker's memory, not the driver's
    base_mib = peak_mib()
    plans: list[Plan] = []

    def plan() -> dict[str, Any]:
        with stage(listing(int(num_keys))) as staging:
            plans.append(
                write_plan(
                    Run(folder, "night"),
                    staging,
                    date="2026-11-22",
                    source="s3://scans/incoming",
                    model=PlannedModel("m", "m", ModelDigests(MODEL_DIGEST, SPEC_DIGEST)),
                    config={},
                    shard_sizes=itertools.repeat(2048),
                    difference={},
                    carry=Carry(),
                )
            )
        return {"planned": plans[0].counts["planned"], "shards": len(plans[0].shard_rows)}

    def commit() -> dict[str, Any]:
        reader = PlannedRows(plans[0])
        for shard in plans[0].shards():
            planned = reader.of(shard)
            rows = prediction_rows(planned["uri"].to_pylist(), ["ok"] * planned.num_rows)
            topk = pa.array([[1, 2, 3, 4, 5]] * rows.num_rows, pa.list_(pa.int32()))
            for name, column in (("etag", planned["etag"]), ("topk_label", topk)):
                position = rows.schema.get_field_index(name)
                rows = rows.set_column(position, rows.schema.field(position), column)
            commit_shard(plans[0].run, shard.shard_id, rows, decoders=decoders)
        return {}

    def publish_run() -> dict[str, Any]:
        commits = {commit.shard_id: commit for commit in read_commits(plans[0].run)}
        manifest = publish(plans[0], commits)
        return {"rows": manifest.counts["rows"], "parts": len(manifest.parts)}

    def twice() -> dict[str, Any]:
        night = Path(folder) / "date=2026-11-22" / "run=night"
        twin = night.with_name("run=twin")
        shutil.copytree(night, twin)
        manifest = twin / "_manifest.json"
        manifest.write_text(manifest.read_text().replace('"run_id": "night"', '"run_id": "twin"'))
        found = find_twice(folder)
        shutil.rmtree(twin)
        return {"problems": len(found.problems), "repeated": found.num_repeated}

    def difference() -> dict[str, Any]:
        with stage(listing(int(num_keys))) as staging:
            keys = published_keys(folder, ModelDigests(MODEL_DIGEST, SPEC_DIGEST))
            counts = staging.exclude(keys, retry_failed=False)
            return {"to_score": staging.count(), "unchanged": counts["unchanged"]}

    measured("plan", plan, base_mib)
    measured("commit", commit, base_mib)
    measured("publish", publish_run, base_mib)
    measured("twice", twice, base_mib)
    measured("difference", difference, base_mib)
    measured("verify", lambda: {"problems": len(list(check_run(plans[0])))}, base_mib)


if __name__ == "__main__":
    main(*sys.argv[1:])
