"""The Delta tables of an output on S3: no commit is lost, whoever else commits."""

import multiprocessing
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from imgcls.config.scoring import NightlyConfig, RollbackConfig
from imgcls.nightly import nightly
from imgcls.results import delta
from imgcls.scoring.publishing.retention import rollback
from tests.scoring.tiny import image_bytes

NUM_WRITERS, NUM_COMMITS = 3, 4

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def rows_of(root: str) -> list[tuple[str, str]]:
    table = DeltaTable(root, storage_options=delta._options(root))
    rows = table.to_pyarrow_table(columns=["uri", "run_id"]).to_pylist()
    return sorted((row["run_id"], row["uri"].rpartition("/")[2]) for row in rows)


def _append(root: str, writer: int, kept: "Queue[str]") -> None:
    """Commit files of our own, as another writer of the table would, and tell which are in."""
    for number in range(NUM_COMMITS):
        run = f"other{writer}-{number}"
        path = f"date=2026-11-22/run={run}/part-00000.parquet"
        add = AddAction(path, 1, {"date": "2026-11-22", "run": run}, 0, True, '{"numRecords": 1}')
        table = DeltaTable(root, storage_options=delta._options(root))
        table.create_write_transaction([add], "append", table.schema(), ["date", "run"])
        kept.put(path)


@pytest.mark.timeout(600)
def test_nights_on_s3_are_registered_whoever_else_commits(
    s3_bucket: str, tmp_path: Path, model_ref: str
) -> None:
    config = NightlyConfig(
        str(tmp_path / "in"), model_ref, f"{s3_bucket}/out",
        executor="local", num_decoders=1, unit="name:part([0-9]+)",
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"part{number}-a.png").write_bytes(image_bytes(number))
        nightly(replace(config, run_id=f"n{number}", delta=number == 0))
    expected = [(f"n{number}", f"part{number}-a.png") for number in range(3)]
    assert rows_of(config.output) == expected

    # Others commit to the same table at once: none takes the place of another.
    context = multiprocessing.get_context("spawn")
    kept: Queue[str] = context.Queue()
    writers = [
        context.Process(target=_append, args=(config.output, number, kept))
        for number in range(NUM_WRITERS)
    ]
    for writer in writers:
        writer.start()
    paths = {kept.get(timeout=300) for _ in range(NUM_WRITERS * NUM_COMMITS)}
    for writer in writers:
        writer.join()
    table = DeltaTable(config.output, storage_options=delta._options(config.output))
    there = pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()
    assert paths <= set(there)
    assert len(there) == len(set(there)) == len(paths) + len(expected)
    nightly(config)  # nothing is new, and the table is set right
    assert rows_of(config.output) == expected
    rollback(RollbackConfig(config.output, "n1"))
    assert rows_of(config.output) == [expected[0], expected[2]]
