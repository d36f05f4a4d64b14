"""When to try again, and when to give up.

In: one attempt at a request, as a coroutine function. Out: its result, or an error that names
endpoint, operation, URI and attempts. Invariant: a budget in seconds ends every retry; how many
seconds depends only on whether this store has ever answered us.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from imgcls.errors import (
    AccessDeniedError,
    ConfigError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    ObjectUnreadableError,
    StorageError,
)

T = TypeVar("T")
# So often an object is asked for before a refusal counts as its own.
MIN_REFUSALS = 3
ANSWERS = (ObjectMissingError, ObjectChangedError, ObjectExistsError)


class TransientError(Exception):
    """One attempt failed in a way that another may not; never leaves the storage package.

    Attributes:
        slow_down: the store asked for less (503 or 429).
        sent: the request may have reached the store, so a write may have been done.
    """

    def __init__(self, reason: str, *, slow_down: bool = False, sent: bool = True) -> None:
        super().__init__(reason)
        self.slow_down = slow_down
        self.sent = sent


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full jitter, exponential, within a budget of time.

    Source of the jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    first_contact_s: float = 9.0
    """Budget while the store has never answered: a wrong endpoint should show soon."""
    budget_s: float = 60.0
    """Budget of one operation on a store that has answered before."""
    access_denied_s: float = 45.0
    """How long a 403 is retried where an earlier request was allowed: credentials expire and are
    renewed."""
    base_delay_s: float = 0.1
    max_delay_s: float = 8.0

    def delay_s(self, attempt: int) -> float:
        """Return how long to wait after attempt number `attempt` (from 1)."""
        ceiling_s = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(attempt - 1, 30))
        return random.uniform(0.0, ceiling_s)  # noqa: S311  (jitter, not a secret)


POLICY = RetryPolicy()


@dataclass(slots=True)
class StoreHealth:
    """What this process has seen of one bucket so far."""

    has_answered: bool = False
    has_allowed: bool = False
    allowed_since_s: float = field(default=-math.inf, compare=False)
    """When the latest of the attempts that were allowed had begun; monotonic."""

    def note(self, error: Exception | None, began_s: float) -> None:
        """Take in the outcome of one attempt."""
        if error is None or isinstance(error, ANSWERS):
            self.has_answered = self.has_allowed = True
            self.allowed_since_s = max(self.allowed_since_s, began_s)
        elif isinstance(error, AccessDeniedError | ConfigError):
            self.has_answered = True


async def retried(
    what: Callable[[], str],
    health: StoreHealth,
    attempt: Callable[[], Awaitable[T]],
    *,
    renew: Callable[[], Awaitable[None]],
    on_slow_down: Callable[[], None] | None = None,
    is_quick: bool = False,
) -> T:
    """Run `attempt` until it gives a result, a final error, or the budget is spent.

    Args:
        what: tells operation, URI and endpoint, for messages.
        health: what is known of the store; updated.
        attempt: one try; raises TransientError for what may pass.
        renew: rebuilds the clients from the environment; called before another try after a 403.
        on_slow_down: called when the store asks for less.
        is_quick: no large body goes either way, so silence at first contact means that nobody is
            there, and the budget cuts an attempt short.

    Raises:
        StorageError: the budget is spent; subclasses as `attempt` raises them.
    """
    start_s = time.monotonic()
    num_attempts = 0
    while True:
        num_attempts += 1
        began_s = time.monotonic()
        try:
            quick_s = POLICY.first_contact_s if is_quick and not health.has_answered else None
            result = await _within(quick_s, attempt)
        except TransientError as error:
            cause: Exception = error
            budget_s = POLICY.budget_s if health.has_answered else POLICY.first_contact_s
            if error.slow_down and on_slow_down is not None:
                on_slow_down()
        except AccessDeniedError as error:
            is_often = num_attempts >= MIN_REFUSALS
            if not health.has_allowed or (is_often and _is_its_own(error, health, start_s)):
                raise
            cause, budget_s = error, POLICY.access_denied_s
        except Exception as error:
            health.note(error, began_s)
            raise
        else:
            health.note(None, began_s)
            return result
        delay_s = POLICY.delay_s(num_attempts)
        elapsed_s = time.monotonic() - start_s
        if elapsed_s + delay_s > budget_s:
            kind = type(cause) if isinstance(cause, AccessDeniedError) else StorageError
            raise kind(
                f"{what()} failed {num_attempts} times in {elapsed_s:.1f} s; last: {cause}"
            ) from cause
        await asyncio.sleep(delay_s)
        if isinstance(cause, AccessDeniedError):
            await renew()


def _is_its_own(error: AccessDeniedError, health: StoreHealth, since_s: float) -> bool:
    """Tell whether others were allowed meanwhile: then it is this object, not who we are."""
    return isinstance(error, ObjectUnreadableError) and health.allowed_since_s > since_s


async def _within(seconds: float | None, attempt: Callable[[], Awaitable[T]]) -> T:
    """Run an attempt, and end it after so many seconds where a number is given."""
    if seconds is None:
        return await attempt()
    try:
        async with asyncio.timeout(seconds):
            return await attempt()
    except TimeoutError as error:
        raise TransientError(f"no answer within {seconds} s") from error
