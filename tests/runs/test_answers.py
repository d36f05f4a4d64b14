"""What people were asked and said, in files that are written once."""

from pathlib import Path
from typing import Any

import pytest

from imgcls.runs.answers import read_answers, read_queues, write_answers, write_queue


def row(name: str, **more: str) -> dict[str, Any]:
    texts = ("uri", "etag", "run_id", "date", "model_digest", "why", "class_name", "stratum")
    return {"id": name, **dict.fromkeys(texts, name), "stratum_images": 1, "carried": {}} | more


def test_of_answers_that_change_back_the_last_counts(tmp_path: Path) -> None:
    for label in ("good", "good", "bad", "good"):
        write_answers(str(tmp_path), [row("a", label=label)])
        assert read_answers(str(tmp_path))["a"]["label"] == label
    assert len(list(tmp_path.glob("_answers/*"))) == 3, "said twice in a row is one file"


@pytest.mark.timeout(20)
def test_a_file_that_somebody_removed_leaves_a_gap(tmp_path: Path) -> None:
    for name in "abc":
        write_queue(str(tmp_path), [row(name)])
    (tmp_path / "_queues" / "00001.parquet").unlink()
    where = write_queue(str(tmp_path), [row("d")])
    assert where.endswith("/00004.parquet")
    assert write_queue(str(tmp_path), [row("b")]).endswith("/00002.parquet")
    assert list(read_queues(str(tmp_path))) == ["b", "c", "d"]


def test_the_hundred_thousandth_file_comes_last(tmp_path: Path) -> None:
    write_answers(str(tmp_path), [row("a", label="good")])
    folder = tmp_path / "_answers"
    (folder / "00001.parquet").rename(folder / "99999.parquet")
    write_answers(str(tmp_path), [row("a", label="bad")])
    assert read_answers(str(tmp_path))["a"]["label"] == "bad"
