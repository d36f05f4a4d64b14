"""How long the end of a run waits for what is written for eyes only."""

import pytest

from imgcls.errors import ImgclsError, RunStoppedError, ShardFailedError
from imgcls.scoring.reporting.best_effort import is_stop, last_word_within_s


@pytest.mark.parametrize(
    "error", [RunStoppedError("SIGTERM"), ShardFailedError("store"), KeyboardInterrupt()]
)
def test_a_run_that_was_told_to_stop_hardly_waits(error: BaseException) -> None:
    assert is_stop(error)
    assert last_word_within_s(error) < 1


@pytest.mark.parametrize("error", [None, ImgclsError("failed"), ValueError("a bug")])
def test_any_other_run_waits_for_its_last_word(error: BaseException | None) -> None:
    assert not is_stop(error)
    assert last_word_within_s(error) > 5
