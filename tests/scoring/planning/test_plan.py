import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imgcls.errors import ConfigError
from imgcls.runs.plan import ModelDigests, Plan, PlannedRows, read_plan
from imgcls.runs.run import Run
from imgcls.schema import PLAN_SCHEMA
from imgcls.scoring.planning.carry import Carry
from imgcls.scoring.planning.plan import write_plan
from imgcls.scoring.planning.planned_model import PlannedModel
from imgcls.scoring.planning.shard_sizes import shard_sizes
from imgcls.scoring.planning.staging import stage
from imgcls.storage.objects import ObjectInfo, Skipped, put, read

NOW = datetime(2026, 11, 22, 3, 4, 5, 678901, tzinfo=UTC)


def info(key: str, etag: str = "e", version_id: str | None = None) -> ObjectInfo:
    return ObjectInfo(f"s3://bucket/{key}", etag, 10, NOW, version_id)


def plan_of(output: str, entries: Iterator[ObjectInfo | Skipped], shard_size: int = 64) -> Plan:
    with stage(entries) as staging:
        return write_plan(
            Run(output, "night"),
            staging,
            carry=Carry(),
            date="2026-11-22",
            source="s3://bucket",
            model=PlannedModel("reg/m@v1", "reg/m/v1", ModelDigests("d" * 64, "s" * 64)),
            config={"top_k": 3},
            shard_sizes=shard_sizes(staging.count(), shard_size),
            difference={},
        )


def planned_rows(plan: Plan) -> list[dict]:
    planned = PlannedRows(plan)
    return [row for shard in plan.shards() for row in planned.of(shard).to_pylist()]


def test_every_listed_object_is_planned_once_sorted_by_uri(tmp_path: Path) -> None:
    keys = [f"key-{(number * 7919) % 1000:04d}" for number in range(1000)]
    plan = plan_of(str(tmp_path), iter([info(key) for key in keys]))
    rows = planned_rows(plan)
    assert [row["uri"] for row in rows] == sorted(f"s3://bucket/{key}" for key in keys)
    assert [shard.num_images for shard in plan.shards()] == [64] * 15 + [40]
    assert plan.counts == {"listed": 1000, "planned": 1000, "skipped": 0}


def test_planned_row_keeps_key_version_and_time_to_the_microsecond(tmp_path: Path) -> None:
    key = "Übergröße/a b+c#d?e%2Ff;'\"\n\t名.png"
    plan = plan_of(str(tmp_path), iter([info(key, 'W/"x"', "v.1")]))
    [row] = planned_rows(plan)
    assert row == {
        "uri": f"s3://bucket/{key}",
        "etag": 'W/"x"',
        "size_bytes": 10,
        "last_modified": NOW,
        "version_id": "v.1",
    }


def test_row_groups_are_the_shards_and_files_match_their_digest(tmp_path: Path) -> None:
    plan = plan_of(str(tmp_path), iter([info(f"{n:06d}") for n in range(200)]))
    [file] = plan.files
    data = read(plan.run.file(file.path))
    assert hashlib.sha256(data).hexdigest() == file.sha256
    shards = list(plan.shards())
    assert [shard.shard_id for shard in shards] == ["000000", "000001", "000002", "000003"]
    planned = PlannedRows(plan)
    tables = [planned.of(shard) for shard in shards]
    assert all(table.schema.equals(PLAN_SCHEMA) for table in tables)
    assert [table.num_rows for table in tables] == [64, 64, 64, 8]


def test_skipped_keys_are_counted_and_listed_with_their_reason(tmp_path: Path) -> None:
    entries = [info("a"), Skipped("s3://bucket/folder/", "folder marker"), info("b")]
    plan = plan_of(str(tmp_path), iter(entries))
    assert plan.counts == {"listed": 3, "planned": 2, "skipped": 1}
    [listed] = (tmp_path / "_runs" / "night" / "plan").glob("skipped-*.jsonl")
    assert "folder marker" in listed.read_text()


def test_second_planner_gets_the_first_plan(tmp_path: Path) -> None:
    first = plan_of(str(tmp_path), iter([info("a")]))
    second = plan_of(str(tmp_path), iter([info("a"), info("b")]))
    assert second == first == read_plan(Run(str(tmp_path), "night"))
    assert len(planned_rows(second)) == 1


def test_plan_of_another_format_is_refused_by_number(tmp_path: Path) -> None:
    put(str(tmp_path / "_runs" / "night" / "plan.json"), b'{"format_version": 99}')
    with pytest.raises(ConfigError, match="99"):
        read_plan(Run(str(tmp_path), "night"))


def test_no_plan_is_none(tmp_path: Path) -> None:
    assert read_plan(Run(str(tmp_path), "night")) is None
