"""How many requests to keep in flight, learnt from the store.

In: successes and SlowDown replies. Out: a limit. Invariant: between 1 and the caller's maximum;
halved at once when the store asks for less, given back one by one.
"""

import time

# One more in flight for so many successes: back at 32 from 16 after some 400 images.
SUCCESSES_PER_STEP = 25
# One burst of refusals is one message: those of the requests already in flight do not count again.
MIN_HALVING_INTERVAL_S = 0.5


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989)."""

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {maximum}")
        self.current = self._maximum = self._lowest = maximum
        self.num_slow_downs = 0
        self._num_successes = 0
        self._grown = False
        self._halved_s = float("-inf")

    def slow_down(self) -> None:
        """Take in a SlowDown reply."""
        self.num_slow_downs += 1
        self._num_successes = 0
        now_s = time.monotonic()
        if now_s - self._halved_s >= MIN_HALVING_INTERVAL_S:
            self._halved_s = now_s
            self.current = max(1, self.current // 2)
            self._lowest = min(self._lowest, self.current)

    def succeeded(self) -> None:
        """Take in a success."""
        if self.current == self._maximum:
            return
        self._num_successes += 1
        if self._num_successes >= SUCCESSES_PER_STEP:
            self._num_successes = 0
            self.current += 1
            self._grown = True

    def has_grown(self) -> bool:
        """Tell whether the limit has grown since the last call."""
        grown, self._grown = self._grown, False
        return grown

    def __str__(self) -> str:
        return (
            f"the store asked to slow down {self.num_slow_downs} times; requests in flight fell"
            f" from {self._maximum} to {self._lowest} and are at {self.current}"
        )
