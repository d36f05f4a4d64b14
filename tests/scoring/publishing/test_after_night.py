"""What comes after a night never harms it, is made up for later, and goes with it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from imgcls.config.scoring import NightlyConfig, RollbackConfig, ScoreConfig
from imgcls.nightly import nightly
from imgcls.runs.plan import Plan
from imgcls.runs.published import list_published
from imgcls.runs.run import Run
from imgcls.scoring.driver import score
from imgcls.scoring.publishing import after_night
from imgcls.scoring.publishing.after_night import ENTRIES, AfterNight, Night
from imgcls.scoring.publishing.retention import rollback


class Register:
    """Stands for whatever else is told of a night: it keeps the ids of runs."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.is_broken = False

    def do(self, config: ScoreConfig, nights: Sequence[Night]) -> str:
        if self.is_broken:
            raise OSError("the register is closed")
        self.runs = [manifest.run_id for _, manifest in nights]
        return ",".join(self.runs)

    def undo(self, plan: Plan) -> None:
        assert list(list_published(plan.output)), "while the night can still be read"
        self.runs.remove(plan.run_id)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    made = Register()
    entry = AfterNight("register", made.do, made.undo, by_hand="by pen, in {output}")
    monkeypatch.setattr(after_night, "ENTRIES", (entry, *ENTRIES))
    return made


def test_what_failed_after_a_night_harms_nothing_and_is_made_up_for(
    night: NightlyConfig, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    register.is_broken = True
    result = nightly(night)
    assert (result["rows"], result["verified"], result["register"]) == (70, True, "")
    assert Path(result["page"]).exists(), "what comes after it in the list is done"
    assert f"the register is closed (by hand: by pen, in {night.output})" in caplog.text
    register.is_broken = False
    page = Path(result["page"])
    page.unlink()
    again = nightly(night)
    assert (again["rows"], again["register"]) == (0, "nightly-2026-11-22"), "nothing new"
    assert again["page"] == str(page)
    assert page.exists()


def test_score_does_what_nights_of_its_output_still_lack(
    night: NightlyConfig, register: Register
) -> None:
    config = ScoreConfig(night.source, night.model, night.output, run_id="by-hand", top_k=2)
    assert nightly(night)["register"] == "nightly-2026-11-22"
    assert score(config)["register"] == "nightly-2026-11-22,by-hand"
    register.runs = []
    assert score(config)["register"] == "nightly-2026-11-22,by-hand", "resumed: all was there"
    rollback(RollbackConfig(night.output, "by-hand"))
    assert register.runs == ["nightly-2026-11-22"]


def test_a_page_that_cannot_be_made_harms_nothing_and_is_made_later(
    night: NightlyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(night.output, "nightly-2026-11-22")
    Path(run.uri).mkdir(parents=True)
    in_the_way = Path(run.pages)
    in_the_way.write_text("a file where a folder should be")
    assert nightly(night)["page"] == ""
    assert "the next start tries again" in caplog.text
    assert f"(by hand: imgcls report --output {night.output})" in caplog.text
    in_the_way.unlink()
    assert nightly(night)["page"] == run.page("report.html")
    assert Path(run.page("report.html")).stat().st_mode & 0o077 == 0
