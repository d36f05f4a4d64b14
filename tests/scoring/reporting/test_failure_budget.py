import pytest

from imgcls.errors import BudgetExceededError
from imgcls.scoring.reporting.failure_budget import Budget


def is_exceeded(
    limit: float, counts: dict[str, int], *, num_failed_again: int = 0, at_end: bool = True
) -> bool:
    budget = Budget(limit)
    # As two shards, of whichever workers: only the sum counts.
    budget.add({name: count // 2 for name, count in counts.items()})
    budget.add({name: count - count // 2 for name, count in counts.items()}, num_failed_again)
    try:
        budget.check(at_end=at_end)
    except BudgetExceededError:
        return True
    return False


@pytest.mark.parametrize(
    ("counts", "exceeded"),
    [
        ({"ok": 0, "unsupported": 60}, True),
        ({"ok": 29, "corrupt": 31}, True),
        ({"ok": 30, "corrupt": 30}, False),
        ({"ok": 0, "corrupt": 2}, False),
        ({"ok": 0, "corrupt": 3}, True),
        ({"ok": 1, "unreadable": 2, "timeout": 1}, True),
        ({"ok": 2, "not_an_image": 97}, False),
        ({"ok": 1, "corrupt": 3, "not_an_image": 95}, True),
        ({"ok": 94, "corrupt": 6}, True),
        ({"ok": 95, "corrupt": 5}, False),
        ({"ok": 95, "corrupt": 5, "not_an_image": 9000}, False),
        ({"ok": 94, "corrupt": 6, "not_an_image": 9000}, True),
        ({}, False),
        ({"ok": 4, "changed": 14}, False),
        ({"ok": 2, "changed": 14, "corrupt": 3}, True),
        ({"missing": 60}, True),
        ({"ok": 90, "changed": 10}, True),
    ],
)
def test_what_a_run_may_lose_at_its_end(counts: dict[str, int], exceeded: bool) -> None:
    assert is_exceeded(0.05, counts) == exceeded


def test_a_small_run_is_judged_at_its_end_only_and_a_large_one_as_it_goes() -> None:
    assert not is_exceeded(0.05, {"corrupt": 99}, at_end=False)
    assert is_exceeded(0.05, {"corrupt": 100}, at_end=False)


def test_the_flag_raises_the_limit_of_a_small_run_too_and_never_lowers_it() -> None:
    assert is_exceeded(0.5, {"ok": 3, "corrupt": 7})
    assert not is_exceeded(0.7, {"ok": 3, "corrupt": 7})
    assert not is_exceeded(0.0, {"ok": 5, "corrupt": 5})
    assert not is_exceeded(1.0, {"corrupt": 60})


def test_what_failed_before_and_fails_again_says_nothing_of_this_night() -> None:
    assert not is_exceeded(0.05, {"ok": 50, "corrupt": 500}, num_failed_again=500)
    assert not is_exceeded(0.05, {"corrupt": 500}, num_failed_again=500)
    assert is_exceeded(0.05, {"ok": 50, "corrupt": 560}, num_failed_again=500)


@pytest.mark.parametrize(
    ("limit", "words"),
    [(0.05, r"a half, or --max-failed-fraction where"), (0.6, r"--max-failed-fraction 0\.6")],
)
def test_the_refusal_names_the_limit_of_a_small_run(limit: float, words: str) -> None:
    budget = Budget(limit)
    budget.add({"ok": 1, "unsupported": 9, "not_an_image": 4})
    with pytest.raises(BudgetExceededError, match=rf"9 of 10 .*4 not_an_image.*{words}"):
        budget.check(at_end=True)
