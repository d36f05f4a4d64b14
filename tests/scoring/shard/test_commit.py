import threading
from pathlib import Path

import pyarrow as pa

from imgcls.runs.commits import read_attempt, read_commits
from imgcls.runs.run import Run
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.scoring.shard.commit import commit_shard, count_statuses
from tests.scoring.tiny import prediction_rows


def test_commit_names_an_attempt_with_the_rows(tmp_path: Path) -> None:
    table = prediction_rows(["a", "b"], ["ok", "corrupt"])
    commit = commit_shard(Run(str(tmp_path), "r"), "000000", table)
    assert commit.status_counts == {"ok": 1, "corrupt": 1}
    assert read_attempt(Run(str(tmp_path), "r"), commit).equals(table)


def test_second_attempt_changes_nothing_and_learns_the_commit(tmp_path: Path) -> None:
    first = commit_shard(Run(str(tmp_path), "r"), "000000", prediction_rows(["a"], ["ok"]))
    late = commit_shard(Run(str(tmp_path), "r"), "000000", prediction_rows(["a"], ["corrupt"]))
    assert late == first
    assert list(read_commits(Run(str(tmp_path), "r"))) == [first]


def test_of_many_writers_one_commits_and_all_agree(tmp_path: Path) -> None:
    table = prediction_rows(["a"], ["ok"])
    commits = []

    def attempt() -> None:
        commits.append(commit_shard(Run(str(tmp_path), "r"), "000000", table))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({commit.attempt for commit in commits}) == 1
    assert len(commits) == 8


def test_commits_come_in_order_of_shard(tmp_path: Path) -> None:
    table = prediction_rows(["a"], ["ok"])
    for shard_id in ("000002", "000000", "000010"):
        commit_shard(Run(str(tmp_path), "r"), shard_id, table)
    assert [commit.shard_id for commit in read_commits(Run(str(tmp_path), "r"))] == [
        "000000",
        "000002",
        "000010",
    ]


def test_statuses_are_counted_from_the_column() -> None:
    assert count_statuses(prediction_rows(["a", "b", "c"], ["ok", "ok", "missing"])) == {
        "ok": 2,
        "missing": 1,
    }
    assert count_statuses(pa.Table.from_pylist([], schema=PREDICTION_SCHEMA)) == {}
