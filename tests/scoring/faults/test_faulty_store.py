"""Whole runs against a store that fails: no fault becomes a row, a lost row or a second one."""

import time
from dataclasses import replace

import pytest

from imgcls.config.scoring import ScoreConfig, VerifyConfig
from imgcls.errors import AccessDeniedError, ConfigError, ShardFailedError
from imgcls.scoring import driver
from imgcls.scoring.driver import score
from imgcls.scoring.planning import checks
from imgcls.scoring.publishing.verify import verify
from imgcls.storage import resolver
from imgcls.storage.objects import delete, list_objects
from imgcls.storage.requests import retry
from imgcls.storage.requests.retry import RetryPolicy
from tests.kit.fault_proxy import ALL_FAULTS, Fault, FaultProxy
from tests.scoring.tiny import comparable, published_rows, write_images

pytestmark = pytest.mark.s3

NUM_IMAGES = 64


@pytest.fixture
def config(
    model_ref: str, s3_bucket: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> ScoreConfig:
    """A run of 8 shards whose images and output lie behind the proxy."""
    monkeypatch.setattr(checks, "MIN_SHARD_SIZE", 8)
    write_images(f"{s3_bucket}/images", NUM_IMAGES)
    return ScoreConfig(
        f"{s3_bucket}/images",
        model_ref,
        f"{s3_bucket}/out",
        run_id="night",
        executor="local",
        shard_size=8,
        num_decoders=1,
    )


def undisturbed(config: ScoreConfig) -> list[dict[str, object]]:
    output = f"{config.output}-oracle"
    score(replace(config, output=output, shard_size=0))
    return comparable(published_rows(output))


@pytest.mark.parametrize(
    "percent",
    [pytest.param(5, marks=pytest.mark.slow), 20, pytest.param(50, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("fault", ALL_FAULTS, ids=lambda fault: fault.name)
def test_run_through_faults_ends_with_the_undisturbed_rows(
    fault: Fault, percent: int, config: ScoreConfig, fault_proxy: FaultProxy
) -> None:
    expected = undisturbed(config)
    fault_proxy.faults = (fault,)
    fault_proxy.fraction = percent / 100
    for _ in range(10):
        try:
            score(config)
        except ShardFailedError:
            # Half of all requests failing may use a shard's time up: exit 5, then the same command.
            continue
        break
    fault_proxy.fraction = 0
    assert fault_proxy.num_faults[fault] > 0
    rows = comparable(published_rows(config.output))
    assert rows == expected
    assert len(rows) == NUM_IMAGES
    assert verify(VerifyConfig(config.output))["rows"] == NUM_IMAGES


@pytest.mark.parametrize("num_denied", [3, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_expired_credentials_are_waited_for_and_never_become_rows(
    method: str, num_denied: int, config: ScoreConfig, fault_proxy: FaultProxy
) -> None:
    expected = undisturbed(config)
    fault_proxy.fail_next(*[Fault.DENY] * num_denied, method=method)
    score(config)
    assert fault_proxy.num_faults[Fault.DENY] == num_denied
    assert comparable(published_rows(config.output)) == expected


def test_store_that_fails_for_good_ends_resumable_with_the_reason(
    config: ScoreConfig, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed(config)
    planned = replace(config, max_failed_fraction=0.0)
    monkeypatch.setattr(retry, "POLICY", RetryPolicy(first_contact_s=1, budget_s=1))
    make_plan = driver.make_plan

    def plan_then_fail(*arguments: object) -> object:
        plan = make_plan(*arguments)  # type: ignore[arg-type]
        fault_proxy.faults, fault_proxy.fraction = (Fault.INTERNAL,), 1.0
        fault_proxy.methods = frozenset({"PUT"})
        return plan

    with monkeypatch.context() as patched:
        patched.setattr(driver, "make_plan", plan_then_fail)
        with pytest.raises(ShardFailedError, match=r"8 of 8 shards .* --run-id night"):
            score(planned)
    fault_proxy.fraction = 0
    assert not any("/date=" in info.uri for info in list_objects(config.output))
    score(planned)
    assert comparable(published_rows(config.output)) == expected


def test_wrong_bucket_and_denied_output_end_at_once(
    config: ScoreConfig, fault_proxy: FaultProxy
) -> None:
    with pytest.raises(ConfigError, match="no-such-bucket"):
        score(replace(config, source="s3://no-such-bucket-at-all/x"))
    fault_proxy.faults, fault_proxy.fraction = (Fault.DENY,), 1.0
    # As a new process: one that was let in before would wait for its credentials to be renewed.
    resolver.reset()
    start_s = time.monotonic()
    with pytest.raises(AccessDeniedError):
        score(config)
    assert time.monotonic() - start_s < 15
    fault_proxy.fraction = 0
    assert list(list_objects(config.output)) == []


def test_object_deleted_between_plan_and_read_is_missing(
    config: ScoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_plan = driver.make_plan

    def plan_then_delete(*arguments: object) -> object:
        plan = make_plan(*arguments)  # type: ignore[arg-type]
        for info in list(list_objects(config.source))[:2]:
            delete(info.uri)
        return plan

    monkeypatch.setattr(driver, "make_plan", plan_then_delete)
    score(config)
    statuses = [row["status"] for row in published_rows(config.output).to_pylist()]
    assert len(statuses) == NUM_IMAGES
    assert statuses.count("missing") == 2
    assert statuses.count("ok") == NUM_IMAGES - 2
