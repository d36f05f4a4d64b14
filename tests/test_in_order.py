"""Several things at a time, their results in order."""

import threading

import pytest

from imgcls.in_order import in_order


def test_results_come_in_order_and_only_some_are_begun_ahead() -> None:
    begun, first_may_end = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            assert first_may_end.wait(10), "nothing else was begun meanwhile"
        if number == 3:
            first_may_end.set()
        return number * number

    results = in_order(work, range(100), ahead=4)
    assert next(results) == 0
    assert len(begun) <= 5
    assert list(results) == [number * number for number in range(1, 100)]


def test_what_fails_is_raised_at_its_turn() -> None:
    results = in_order(lambda number: 1 // (2 - number), range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
