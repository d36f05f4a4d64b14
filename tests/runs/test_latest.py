"""Of several runs the rows of the one that scored an image last count."""

from datetime import UTC, datetime

from imgcls.runs.latest import is_later


def test_of_two_rows_the_one_scored_later_counts() -> None:
    early, late = (
        {"scored_at": datetime(2026, 1, day, tzinfo=UTC), "run_id": "r"} for day in (1, 2)
    )
    assert is_later(late, early)
    assert not is_later(early, late)
    assert not is_later(early, early)
