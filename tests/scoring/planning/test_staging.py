"""What is listed beside what is published, on local disk."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from imgcls.schema import PLAN_SCHEMA
from imgcls.scoring.planning.staging import stage
from imgcls.storage.objects import ObjectInfo

NUM_LISTED, NUM_PUBLISHED = 5_000, 4_500
MANY = 10_000_000
WHEN = datetime(2026, 11, 22, tzinfo=UTC)
STATUSES = ("ok", "corrupt", "ok", "missing", "unreadable", "ok")


def is_overwritten(n: int) -> bool:
    return n % 7 == 0


def listed() -> Iterator[ObjectInfo]:
    for n in range(NUM_LISTED):
        etag = f"{n}-again" if is_overwritten(n) else f"{n}"
        yield ObjectInfo(f"s3://bucket/{n:06d}.jpg", etag, 5, WHEN, None)


def published() -> Iterator[pa.Table]:
    """Every sixth of a status; some would be made otherwise now, some have older thresholds."""
    for start in range(0, NUM_PUBLISHED, 900):
        numbers = range(start, start + 900)
        yield pa.table(
            {
                "uri": [f"s3://bucket/{n:06d}.jpg" for n in numbers],
                "etag": [str(n) for n in numbers],
                "status": [STATUSES[n % len(STATUSES)] for n in numbers],
                "is_current": [n % 11 != 0 for n in numbers],
                "has_older_thresholds": [n % 5 == 0 for n in numbers],
            }
        )


def judged_one_by_one(*, retry_failed: bool) -> tuple[Counter[str], set[int]]:
    """The same difference, an image at a time: how many of what, and which are left."""
    counts, left = Counter[str](), set(range(NUM_LISTED))
    for n in range(NUM_LISTED):
        status = STATUSES[n % len(STATUSES)]
        if n >= NUM_PUBLISHED or status == "missing":  # nothing was learnt of it
            counts["new"] += 1
        elif is_overwritten(n):
            counts["changed"] += 1
        elif status == "ok" and n % 11 == 0:
            counts["changed"] += 1
            counts["pixels_moved"] += 1
        elif status == "ok":
            counts["unchanged"] += 1
            counts["older"] += n % 5 == 0
            left.remove(n)
        else:
            counts["failed_before"] += 1
            if n % 11 and status != "unreadable" and not retry_failed:
                left.remove(n)
            else:
                counts["tried_again"] += 1
    return counts, left


@pytest.mark.parametrize("retry_failed", [False, True])
def test_the_difference_is_that_of_each_image(retry_failed: bool) -> None:
    counts, left = judged_one_by_one(retry_failed=retry_failed)
    with stage(listed()) as found:
        names = ("new", "changed", "failed_before", "unchanged")
        assert found.exclude(published(), retry_failed=retry_failed) == {
            name: counts[name] for name in names
        }
        assert found.num_excluded == NUM_LISTED - len(left)
        assert found.num_with_older_thresholds == counts["older"]
        assert found.planned_again == {
            "pixels_moved": counts["pixels_moved"],
            "failed_before": counts["tried_again"],
        }
        table = pa.concat_tables(list(found.sorted_tables([NUM_LISTED])))
    assert table["uri"].to_pylist() == [f"s3://bucket/{n:06d}.jpg" for n in sorted(left)]
    failed = [STATUSES[n % len(STATUSES)] not in ("ok", "missing") for n in sorted(left)]
    is_same = [n < NUM_PUBLISHED and not is_overwritten(n) for n in sorted(left)]
    assert table["failed_before"].to_pylist() == [
        one and other for one, other in zip(failed, is_same, strict=True)
    ]


def test_what_is_listed_more_than_once_is_judged_alike() -> None:
    everything = list(listed())
    done, new = everything[2], everything[-1]
    with stage([*everything, done, done, new]) as found:
        found.exclude(published(), retry_failed=False)
        left = pa.concat_tables(list(found.sorted_tables([NUM_LISTED])))["uri"].to_pylist()
        assert done.uri not in left
        assert left.count(new.uri) == 2
        assert found.duplicate() == new.uri


def keys(start: int, end: int) -> dict[str, pa.Array]:
    text = pc.utf8_lpad(pa.array(np.arange(start, end)).cast(pa.string()), 32, "0")
    uris = pc.binary_join_element_wise("s3://scans/incoming/line3/part-", text, ".jpg", "")
    return {"uri": uris, "etag": text}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_difference_of_ten_million_keys_is_taken() -> None:
    """DuckDB can neither join nor group so many in this memory."""
    step, num_new = 250_000, 1_000
    of_all = {
        "size_bytes": pa.array(np.full(step, 50_000)),
        "last_modified": pa.array([WHEN] * step, PLAN_SCHEMA.field("last_modified").type),
        "version_id": pa.nulls(step, pa.string()),
    }
    with stage([]) as found:
        for start in range(0, MANY, step):
            columns = keys(start + num_new, start + num_new + step) | of_all
            found.insert(pa.table({name: columns[name] for name in PLAN_SCHEMA.names}, PLAN_SCHEMA))
        rows = (
            pa.table(keys(start, start + step) | {"status": pa.array(["ok"] * step)})
            for start in range(0, MANY, step)
        )
        assert found.exclude(rows, retry_failed=False) == {
            "new": num_new,
            "changed": 0,
            "failed_before": 0,
            "unchanged": MANY - num_new,
        }
        assert found.duplicate() == ""
        assert sum(table.num_rows for table in found.sorted_tables([64] * 100)) == num_new
