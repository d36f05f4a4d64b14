import json

import pytest

from imgcls.scoring.reporting.node_report import NodeReport
from imgcls.scoring.shard.worker import ShardSummary


def summary(node: str, actor: str, seconds: float, **changes: object) -> ShardSummary:
    return ShardSummary("000000", 10, seconds, node=node, actor=actor, **changes)  # type: ignore[arg-type]


def test_rates_are_over_the_time_between_first_start_and_last_end() -> None:
    report = NodeReport()
    report.add(10, summary("a", "1", 5.0, num_bytes=7), 105.0)
    report.add(10, summary("a", "1", 5.0, num_bytes=7), 110.0)
    report.add(30, summary("a", "2", 10.0), 120.0)
    [node] = report.to_dict()
    assert {key: node[key] for key in ("node", "images", "rows", "bytes", "shards")} == {
        "node": "a",
        "images": 50,
        "rows": 30,
        "bytes": 14,
        "shards": 3,
    }
    assert node["images_per_s"] == pytest.approx(50 / 20)
    assert [actor["images_per_s"] for actor in node["actors"]] == [2.0, 3.0]
    json.dumps(report.to_dict(), allow_nan=False)


def test_actor_far_below_the_median_is_named() -> None:
    report = NodeReport()
    for actor, seconds in (("1", 10.0), ("2", 11.0), ("3", 25.0)):
        report.add(100, summary("a", actor, seconds), 1000.0)
    assert report.stragglers() == ["a actor 3"]
    assert any("straggler: a actor 3" in line for line in report.lines())


def test_one_actor_alone_is_no_straggler() -> None:
    report = NodeReport()
    report.add(100, summary("a", "1", 10.0), 1000.0)
    assert report.stragglers() == []


def test_failed_shards_are_counted_apart() -> None:
    report = NodeReport()
    report.add(100, summary("a", "1", 0.0, error_kind="StorageError"), 1000.0)
    [node] = report.to_dict()
    assert (node["failed_shards"], node["images"], node["images_per_s"]) == (1, 0, 0.0)
