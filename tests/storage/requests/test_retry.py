"""The retry policy as arithmetic, and the adaptive limit."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from imgcls.errors import AccessDeniedError, ObjectMissingError, ObjectUnreadableError, StorageError
from imgcls.storage.requests import adaptive_limit, retry
from imgcls.storage.requests.adaptive_limit import SUCCESSES_PER_STEP, AdaptiveLimit
from imgcls.storage.requests.retry import RetryPolicy, StoreHealth, TransientError, retried


class Attempts:
    """Fails with each of `errors` in turn, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.num_made, self.num_renewed = list(errors), 0, 0

    async def make(self) -> str:
        self.num_made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def renew(self) -> None:
        self.num_renewed += 1


def run_retried(
    attempts: Attempts, health: StoreHealth, attempt: Callable[[], Awaitable[str]] | None = None
) -> str:
    return asyncio.run(
        retried(lambda: "read it", health, attempt or attempts.make, renew=attempts.renew)
    )


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RetryPolicy(
        first_contact_s=0.05, budget_s=0.5, access_denied_s=0.3, base_delay_s=0.02, max_delay_s=0.02
    )
    monkeypatch.setattr(retry, "POLICY", policy)


def test_delays_have_full_jitter_under_an_exponential_ceiling() -> None:
    policy = RetryPolicy(base_delay_s=0.1, max_delay_s=8.0)
    for attempt, ceiling_s in [(1, 0.1), (2, 0.2), (5, 1.6), (20, 8.0), (10_000, 8.0)]:
        delays_s = [policy.delay_s(attempt) for _ in range(300)]
        assert 0 <= min(delays_s) < 0.1 * ceiling_s
        assert 0.9 * ceiling_s < max(delays_s) <= ceiling_s


def test_transient_errors_are_tried_again() -> None:
    attempts = Attempts(TransientError("a"), TransientError("b"))
    assert run_retried(attempts, StoreHealth(has_answered=True)) == "done"
    assert attempts.num_made == 3


def test_budget_is_larger_once_the_store_has_answered() -> None:
    never = [TransientError("down")] * 1000
    before, after = Attempts(*never), Attempts(*never)
    for attempts, health in ((before, StoreHealth()), (after, StoreHealth(has_answered=True))):
        with pytest.raises(StorageError, match=r"read it failed \d+ times in .*down"):
            run_retried(attempts, health)
    assert after.num_made > 3 * before.num_made


def test_final_error_is_raised_at_once_and_counts_as_an_answer() -> None:
    attempts, health = Attempts(ObjectMissingError("gone")), StoreHealth()
    with pytest.raises(ObjectMissingError):
        run_retried(attempts, health)
    assert attempts.num_made == 1
    assert health == StoreHealth(has_answered=True, has_allowed=True)


def test_denial_is_final_until_access_was_allowed_once() -> None:
    attempts = Attempts(AccessDeniedError("403"))
    with pytest.raises(AccessDeniedError):
        run_retried(attempts, StoreHealth(has_answered=True))
    assert (attempts.num_made, attempts.num_renewed) == (1, 0)


def test_denial_after_success_renews_and_tries_again() -> None:
    attempts = Attempts(AccessDeniedError("403"), AccessDeniedError("403"))
    assert run_retried(attempts, StoreHealth(has_answered=True, has_allowed=True)) == "done"
    assert (attempts.num_made, attempts.num_renewed) == (3, 2)


def test_an_object_that_is_refused_while_others_are_given_is_not_waited_for() -> None:
    health = StoreHealth(has_answered=True, has_allowed=True)
    refused = Attempts(*[ObjectUnreadableError("403")] * 100)

    async def both() -> None:
        async def give() -> None:
            while not is_over.is_set():
                await retried(lambda: "it", health, Attempts().make, renew=refused.renew)
                await asyncio.sleep(0.01)

        is_over = asyncio.Event()
        giving = asyncio.create_task(give())
        try:
            await retried(lambda: "it", health, refused.make, renew=refused.renew)
        finally:
            is_over.set()
            await giving

    with pytest.raises(ObjectUnreadableError):
        asyncio.run(both())
    assert 3 <= refused.num_made < 10


def test_an_object_that_is_refused_alone_is_waited_for_as_for_new_credentials() -> None:
    health = StoreHealth(has_answered=True, has_allowed=True)
    attempts = Attempts(*[ObjectUnreadableError("403")] * 5)
    assert run_retried(attempts, health) == "done"
    assert (attempts.num_made, attempts.num_renewed) == (6, 5)


def test_slow_down_is_passed_on() -> None:
    num_slow_downs = []
    attempts = Attempts(TransientError("503", slow_down=True), TransientError("reset"))
    asyncio.run(
        retried(
            lambda: "read it",
            StoreHealth(has_answered=True),
            attempts.make,
            renew=attempts.renew,
            on_slow_down=lambda: num_slow_downs.append(1),
        )
    )
    assert num_slow_downs == [1]


def test_limit_halves_and_grows_back_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_limit, "MIN_HALVING_INTERVAL_S", 0.0)
    limit = AdaptiveLimit(32)
    limit.slow_down()
    limit.slow_down()
    assert limit.current == 8
    for _ in range(3 * SUCCESSES_PER_STEP):
        limit.succeeded()
    assert limit.current == 11
    for _ in range(100 * SUCCESSES_PER_STEP):
        limit.succeeded()
    assert limit.current == 32
    for _ in range(20):
        limit.slow_down()
    assert limit.current == 1


def test_one_burst_of_refusals_halves_once() -> None:
    limit = AdaptiveLimit(32)
    for _ in range(32):
        limit.slow_down()
    assert limit.current == 16
    assert limit.num_slow_downs == 32
