"""How often nights alarm without a change, and from which share of a night a change is caught."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imgcls.drift.gate import ALPHA, judge
from imgcls.drift.observed import Observed, pool
from imgcls.drift.record import Judged, read_judged
from imgcls.metrics.bootstrap import wilson
from imgcls.model.bundle import Bundle
from imgcls.nightly import nightly
from imgcls.runs.run import Run
from tests.drift.cameras import make_line, write_pictures
from tests.drift.changes import AXES, NAMES, knowing_bundle, night_of, observe, of_camera

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
NIGHT = 240


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that tells the parts apart."""
    return knowing_bundle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def seen(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Observed, Observed]:
    """A reference, and what nights are drawn of: all as ever."""
    folder = tmp_path_factory.mktemp("ever")
    whole = observe(bundle, folder, "", 1600, 0)
    # Every camera on both sides, whatever order they were seen in.
    numbers = [int(Path(uri).stem) for uri in whole.texts("uri")]
    is_reference = np.array([number // 8 % 2 == 0 for number in numbers])
    return whole.where(is_reference), whole.where(~is_reference)


def judge_night(seen: tuple[Observed, Observed], night: Observed, seed: int) -> Judged:
    reference, ever = seen
    before = [night_of(ever, None, 0, NIGHT, 1_000_000 + 7 * seed + n) for n in range(3)]
    return judge("night", night, reference, before)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "num_nights",
    [pytest.param(40, id="sample"), pytest.param(200, id="all", marks=pytest.mark.slow)],
)
def test_nights_without_a_change_alarm_at_the_promised_rate_or_below(
    seen: tuple[Observed, Observed], num_nights: int
) -> None:
    alarms = [
        judged.sentence
        for seed in range(num_nights)
        if (judged := judge_night(seen, night_of(seen[1], None, 0, NIGHT, seed), seed)).state
        == "changed"
    ]
    rate = len(alarms) / num_nights
    low, high = wilson(rate, num_nights)
    _keep("null", {"nights": num_nights, "alarms": len(alarms), "interval": [low, high]})
    assert low <= ALPHA, alarms


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_whole_nights_without_a_change_are_all_published(tmp_path: Path) -> None:
    config = make_line(tmp_path)
    states = []
    for number in range(10):
        write_pictures(Path(config.source), f"night {number}", 80, seed=1000 * number)
        found = nightly(replace(config, date=f"2026-11-{number + 1:02d}"))
        judged = read_judged(Run(config.output, found["run_id"]))
        assert judged is not None
        states.append(judged.state)
        assert found["rows"] == 80
    _keep("whole", {"nights": 10, "states": states})
    assert states == ["quiet"] * 10


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("changes", "shares", "num_draws"),
    [
        pytest.param(
            ("inverted", "another class mix", "one camera of eight"), (1.0,), 3, id="sample"
        ),
        *(
            pytest.param((name,), SHARES, 20, id=f"all {name}", marks=pytest.mark.slow)
            for name in NAMES
        ),
    ],
)
def test_a_change_is_caught_and_named(
    bundle: Bundle,
    seen: tuple[Observed, Observed],
    changes: tuple[str, ...],
    shares: tuple[float, ...],
    num_draws: int,
    tmp_path: Path,
) -> None:
    for change in changes:
        changed = observe(bundle, tmp_path, change, NIGHT, 500_000)
        caught_from = None
        for share in shares:
            judged = [
                judge_night(seen, _with(seen[1], change, changed, share, seed), seed)
                for seed in range(num_draws)
            ]
            caught = [one for one in judged if one.state == "changed"]
            named = [one for one in caught if _names(change, one)]
            told = {"change": change, "share": share, "caught": len(caught), "named": len(named),
                    "of": num_draws, "first": caught[0].sentence if caught else ""}  # fmt: skip
            _keep("planted", told)
            if len(named) >= 0.9 * num_draws:
                caught_from = share
                break
        assert caught_from is not None, told


def _with(ever: Observed, change: str, changed: Observed, share: float, seed: int) -> Observed:
    if change != "one camera of eight":
        return night_of(ever, changed, share, NIGHT, seed)
    of_one = NIGHT // 8
    dark, others = of_camera(changed, "3"), of_camera(ever, "3", is_it=False)
    of_three = night_of(of_camera(ever, "3"), dark, share, of_one, seed)
    found = pool([night_of(others, None, 0, NIGHT - of_one, seed), of_three])
    assert found is not None
    return found


def _names(change: str, judged: Judged) -> bool:
    """Tell whether what is told first is what was changed."""
    first = judged.findings[0]
    if change == "one camera of eight" and (first.column, first.group) != ("camera", "3"):
        return False
    return not {first.axis, first.differs_in}.isdisjoint(AXES[change])


def _keep(name: str, told: dict[str, object]) -> None:
    """Leave the figures of a campaign where the caller wants them."""
    if folder := os.environ.get("DRIFT_CAMPAIGN"):
        with Path(folder, f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
