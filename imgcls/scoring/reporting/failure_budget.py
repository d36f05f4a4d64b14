"""The failure budget of a run: how many images may end as anything but ok.

In: status counts, shard by shard. Out: BudgetExceededError when a run is not worth finishing.
Invariant: judged over the whole run, whoever scored it and however often it was started, from
committed rows only.

What counts: every row of an image that failed, but those of files that are not images, and of
images that failed in an earlier night already and are only tried again: of these a night can't
learn anything about today's images. From BUDGET_MIN_ROWS on the share decides, as the run goes;
in a smaller run the end decides, and more than half must have failed, and FEWEST_FAILED at least.
There an image that was overwritten on the way does not count: the next night scores what it is now,
and a small night that was killed and continues a day later may find nothing else.
"""

from collections import Counter

from imgcls.errors import BudgetExceededError
from imgcls.schema import NOT_FAILED, Status

BUDGET_MIN_ROWS = 100
SMALL_RUN_FRACTION = 0.5
FEWEST_FAILED = 3


class Budget:
    """Counts rows by status and judges them against the failure budget."""

    def __init__(self, max_failed_fraction: float) -> None:
        self._max_failed_fraction = max_failed_fraction
        self._counts: Counter[str] = Counter()
        self._num_failed_again = 0

    def add(self, status_counts: dict[str, int], num_failed_again: int = 0) -> None:
        """Count the rows of one shard.

        Args:
            status_counts: rows by status.
            num_failed_again: how many of those that failed had failed in an earlier night too.
        """
        self._counts.update(status_counts)
        self._num_failed_again += num_failed_again

    def note(self) -> str:
        """Return the counts of what is not ok, for the progress line."""
        others = {name: count for name, count in sorted(self._counts.items()) if name != Status.OK}
        return ", ".join(f"{count} {name}" for name, count in others.items())

    def check(self, *, at_end: bool = False) -> None:
        """Raise BudgetExceededError when too many rows failed.

        Args:
            at_end: every shard of the run is counted, so that a small run can be judged.
        """
        num_failed = self._counts.total() - self._num_failed_again
        num_failed -= sum(self._counts[status] for status in NOT_FAILED)
        total = num_failed + self._counts[Status.OK]
        if total >= BUDGET_MIN_ROWS:
            allowed, least = self._max_failed_fraction, 1
        elif at_end:
            total -= self._counts[Status.CHANGED]
            num_failed -= self._counts[Status.CHANGED]
            allowed = max(SMALL_RUN_FRACTION, self._max_failed_fraction)
            least = FEWEST_FAILED
        else:
            return
        if num_failed < least or num_failed <= allowed * total:
            return
        again = f"; {self._num_failed_again} that failed before are not counted"
        raise BudgetExceededError(
            f"{num_failed} of {total} images failed ({self.note()}"
            f"{again if self._num_failed_again else ''}), more than {self._limit(allowed)} allows. "
            "Nothing was published; commits are kept. Look at the source, or start the same run "
            "id with a higher budget."
        )

    def _limit(self, allowed: float) -> str:
        if allowed == self._max_failed_fraction:
            return f"--max-failed-fraction {allowed:g}"
        return (
            f"the limit of a run below {BUDGET_MIN_ROWS} images (a half, or "
            "--max-failed-fraction where that is higher)"
        )
