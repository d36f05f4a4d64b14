"""A night that is killed at its writes, on each kind of store; then taken back.

A store counts as supported when this passes on it. The sample of every day kills where most is at
stake; the campaign kills before and after each write of the night.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from imgcls.config.scoring import GcConfig, NightlyConfig, RollbackConfig, VerifyConfig
from imgcls.errors import ConfigError
from imgcls.nightly import nightly
from imgcls.runs.published import list_published
from imgcls.scoring.publishing import retention
from imgcls.scoring.publishing.retention import gc, rollback
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import delete, list_objects, put
from tests.kit.stores import SERVERS, new_bucket
from tests.scoring.faults.test_crash_points import num_writes
from tests.scoring.tiny import comparable, image_bytes, published_rows, write_images

# With the odd key of the killed nights as many as there.
NUM_IMAGES = 95
# Two puts of the probe, its stale swap, its record; then the night as on a local disk.
NUM_PROBE_WRITES = 4
NUM_REMOTE_WRITES = NUM_PROBE_WRITES + num_writes(8) + 1  # the list of what was skipped: a marker
# Near plan.json and near the manifest.
SAMPLE = (NUM_PROBE_WRITES + 3, NUM_REMOTE_WRITES - 3)


@pytest.fixture(params=SERVERS)
def bucket(request: pytest.FixtureRequest) -> str:
    """A fresh, empty bucket of each server."""
    return new_bucket(request, request.param)


@pytest.fixture
def night(bucket: str, model_ref: str) -> NightlyConfig:
    """Config of a night on the store."""
    write_images(f"{bucket}/source", NUM_IMAGES)
    return NightlyConfig(
        f"{bucket}/source", model_ref, f"{bucket}/out", date="2026-11-22", executor="local"
    )


def assert_killed_nights_finish(night: NightlyConfig, *points: int) -> list[int]:
    """Kill nights at these points, or at all; return how each ended."""
    put(f"{night.source}//odd/{'x' * 40}.png", image_bytes(1000))
    put(f"{night.source}/folder/", b"")
    nightly(replace(night, output=f"{night.output}-oracle"))
    undisturbed = comparable(published_rows(f"{night.output}-oracle"))
    assert {row["status"] for row in undisturbed} == {"ok"}
    command = [sys.executable, "-m", "tests.scoring.faults.crash_points", night.source, night.model]
    command += [f"{night.output}-killed", *map(str, points)]
    campaign = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    records = [json.loads(line) for line in campaign.stdout.splitlines()]
    for record in records:
        assert record["finished"] == 0, (record, campaign.stderr[-3000:])
        assert comparable(published_rows(record["output"])) == undisturbed, record
        assert verify(VerifyConfig(record["output"]))["rows"] == len(undisturbed)
    return [record["killed"] for record in records]


def test_a_night_killed_where_most_is_at_stake_is_finished_by_the_same_command(
    night: NightlyConfig,
) -> None:
    killed = assert_killed_nights_finish(night, *SAMPLE)
    assert set(killed) == {-signal.SIGKILL}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_night_killed_before_and_after_every_write_is_finished_by_the_same_command(
    night: NightlyConfig,
) -> None:
    killed = assert_killed_nights_finish(night)
    assert killed.count(0) == 2
    assert len(killed) == 2 * (NUM_REMOTE_WRITES + 1)


def test_a_night_is_taken_back_again_and_again_and_after_a_kill(
    night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nightly(night)
    taken_back = RollbackConfig(night.output, first["run_id"])

    def delete_and_die(uri: str) -> None:
        delete(uri)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(retention, "delete", delete_and_die)
        with pytest.raises(SystemExit):
            rollback(taken_back)
    assert list(list_published(night.output)) == []
    for parts_removed in (1, 0):
        assert rollback(taken_back)["parts_removed"] == parts_removed
    again = nightly(night)
    assert (again["run_id"], again["rows"]) == ("nightly-2026-11-22-2", NUM_IMAGES)
    assert gc(GcConfig(night.output, older_than="0s", abandoned=True))["removed"] > 0
    assert any(info.uri.endswith("/_store_probe.json") for info in list_objects(night.output))
    assert verify(VerifyConfig(night.output))["rows"] == NUM_IMAGES


def test_what_is_new_replaced_or_gone_is_told_apart(night: NightlyConfig) -> None:
    nightly(night)
    put(f"{night.source}/new.png", image_bytes(500))
    put(f"{night.source}/lot-0/00000.png", image_bytes(501))
    put(f"{night.source}/lot-1/00001.png", image_bytes(1))
    delete(f"{night.source}/lot-2/00002.png")
    second = nightly(night)["difference"]
    # Azure gives each write an etag of its own; elsewhere equal bytes are the same version.
    num_changed = 2 if night.output.startswith("az://") else 1
    assert (second["new"], second["changed"]) == (1, num_changed)
    assert nightly(night)["rows"] == 0


def test_a_bucket_that_is_not_there_ends_with_two(night: NightlyConfig) -> None:
    scheme = night.output.partition("://")[0]
    with pytest.raises(ConfigError, match="does not exist"):
        nightly(replace(night, output=f"{scheme}://nothing-of-the-kind/out"))
