import json
from pathlib import Path

import pytest

from imgcls.config.scoring import (
    NightlyConfig,
    VerifyConfig,
)
from imgcls.errors import ImgclsError, SourceError
from imgcls.nightly import nightly
from imgcls.scoring.publishing.verify import verify
from tests.scoring.nights import leave_unfinished


def tamper_part(out: Path) -> None:
    [part] = out.glob("date=*/run=*/part-*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"\0")


def add_part(out: Path) -> None:
    [part] = out.glob("date=*/run=*/part-*.parquet")
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())


def drop_commit(out: Path) -> None:
    next(out.glob("_runs/*/commits/*.json")).unlink()


def swap_attempt(out: Path) -> None:
    first, second = sorted(out.glob("_runs/*/attempts/*.parquet"))
    first.write_bytes(second.read_bytes())


def miscount(out: Path) -> None:
    [manifest] = out.glob("date=*/run=*/_manifest.json")
    fields = json.loads(manifest.read_text())
    fields["counts"]["rows"] += 1
    manifest.write_text(json.dumps(fields))


def tamper_plan(out: Path) -> None:
    [plan] = out.glob("_runs/*/plan/*.parquet")
    data = bytearray(plan.read_bytes())
    data[len(data) // 2 - 200] ^= 1
    plan.write_bytes(bytes(data))


def drop_plan(out: Path) -> None:
    next(out.glob("_runs/*/plan/*.parquet")).unlink()


def drop_attempt_of_unfinished(out: Path) -> None:
    next(out.glob("date=*/run=*/_manifest.json")).unlink()
    next(out.glob("_runs/*/attempts/*.parquet")).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (tamper_part, "not the bytes that the manifest names"),
        (add_part, "the manifest does not name it"),
        (drop_commit, "has no commit"),
        (swap_attempt, "sha256"),
        (miscount, "the manifest says 71"),
        (tamper_plan, r"plan/.*: not the bytes that plan\.json names"),
        (drop_plan, r"plan/.*: missing"),
        (drop_attempt_of_unfinished, "is committed and missing"),
    ],
)
def test_verify_finds_what_was_tampered_with(
    damage: object, words: str, night: NightlyConfig
) -> None:
    nightly(night)
    assert verify(VerifyConfig(night.output))["rows"] == 70
    damage(Path(night.output))  # type: ignore[operator]
    with pytest.raises(ImgclsError, match=words):
        verify(VerifyConfig(night.output))


def test_attempts_that_gc_removed_from_a_published_run_are_not_missed(night: NightlyConfig) -> None:
    nightly(night)
    for attempt in Path(night.output).glob("_runs/*/attempts/*.parquet"):
        attempt.unlink()
    assert verify(VerifyConfig(night.output))["rows"] == 70


def test_unfinished_run_is_verified_as_far_as_it_got(night: NightlyConfig) -> None:
    leave_unfinished(night)
    result = verify(VerifyConfig(night.output))
    assert (result["runs"], result["runs_published"], result["rows"]) == (1, 0, 0)


@pytest.mark.parametrize("run_id", ["", "nightly-2026-11-30"])
def test_verify_of_nothing_says_so(run_id: str, night: NightlyConfig) -> None:
    with pytest.raises(SourceError, match=r"no runs there|there is no run nightly-2026-11-30"):
        verify(VerifyConfig(night.output, run_id))


def test_damaged_plan_is_never_scored_from(night: NightlyConfig) -> None:
    leave_unfinished(night, before="score_plan")
    tamper_plan(Path(night.output))
    with pytest.raises(SourceError, match=r"not the bytes that plan\.json names"):
        nightly(night)
