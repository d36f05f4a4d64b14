"""The failure budget of a run: how many images may end as anything but ok.

In: status counts, shard by shard. Out: BudgetExceededError when a run is not worth finishing.
Invariant: judged from committed rows only, and never before BUDGET_MIN_ROWS of them.
"""

from collections import Counter

from imgcls.errors import BudgetExceededError
from imgcls.schema import Status

BUDGET_MIN_ROWS = 100


class Budget:
    """Counts rows by status and judges them against the failure budget."""

    def __init__(self, max_failed_fraction: float) -> None:
        self._max_failed_fraction = max_failed_fraction
        self._counts: Counter[str] = Counter()

    def add(self, status_counts: dict[str, int]) -> None:
        """Count the rows of one shard."""
        self._counts.update(status_counts)

    def note(self) -> str:
        """Return the counts of what failed, for the progress line."""
        failed = {name: count for name, count in sorted(self._counts.items()) if name != Status.OK}
        return ", ".join(f"{count} {name}" for name, count in failed.items())

    def check(self) -> None:
        """Raise BudgetExceededError when too many of BUDGET_MIN_ROWS rows or more failed."""
        total = self._counts.total()
        num_failed = total - self._counts[Status.OK]
        if total >= BUDGET_MIN_ROWS and num_failed > self._max_failed_fraction * total:
            raise BudgetExceededError(
                f"{num_failed} of {total} images failed ({self.note()}), more than "
                f"--max-failed-fraction {self._max_failed_fraction:g} allows. Nothing was "
                "published; commits are kept. Look at the source, or start the same run id with "
                "a higher budget."
            )
