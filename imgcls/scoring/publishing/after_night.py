"""What is done once a night is published: pages for people, and whatever else is made of it.

In: the flags of a `score` or `nightly` that ends, or the plan of a run that is rolled back. Out: a
value per entry for the result. Invariant: the night is there before anything here begins, and no
row depends on it. What fails is a line in the log; what a kill left out is done at the next start.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from imgcls.config.scoring import ScoreConfig
from imgcls.drift.record import read_judged, remove_judged
from imgcls.report.make import make_missing_pages, remove_pages
from imgcls.results.delta import forget_run, keep_delta
from imgcls.results.views import write_views
from imgcls.runs.plan import Plan, read_plan
from imgcls.runs.published import Night, list_published
from imgcls.runs.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AfterNight:
    """One thing that is made of published nights."""

    name: str
    """Of its value in the result of the command, and in the log."""
    do: Callable[[ScoreConfig, Sequence[Night]], str]
    """Do what published nights of the output (the latest last) still lack; return for the result
    where that is, "" for nothing. It is called at the end of every start, also of one that found
    nothing new, so it must be quick where nothing is lacking. What it makes of a night it takes
    back itself where it finds, having made it, that the run was rolled back meanwhile."""
    undo: Callable[[Plan], None]
    """Take back what was done for a run, and do nothing where nothing was. The run is marked as
    rolled back, its manifest and its parts are still there. What this raises ends the rollback,
    which can be started again."""
    by_hand: str
    """How a person does it where `do` failed; {output} stands for the output."""


# So many of the latest nights are looked at if nobody has looked at them yet.
_MENDED: Final = 3


def _judge_missing(config: ScoreConfig, nights: Sequence[Night]) -> str:
    """Tell of the latest nights whether their pictures have changed; return that of the last."""
    # Only here: `imgcls plan` and `imgcls rollback` want no torch.
    from imgcls.drift.nights import judge_run, tell

    sentence = ""
    for number, (_, manifest) in enumerate(nights[-_MENDED:], max(0, len(nights) - _MENDED)):
        run = Run(config.output, manifest.run_id)
        judged = read_judged(run)
        plan = read_plan(run) if judged is None and config.drift != "off" else None
        if plan is not None:
            judged = judge_run(plan, nights[:number], manifest)
            if run.is_rolled_back():
                remove_judged(run)
                continue
            tell(judged)
        sentence = judged.sentence if judged is not None else ""
    return sentence


ENTRIES: Final = (
    AfterNight(
        "drift",
        do=_judge_missing,
        undo=lambda plan: remove_judged(plan.run),
        by_hand="the next night does it",
    ),
    AfterNight(
        "page",
        do=lambda config, nights: make_missing_pages(config.output, nights),
        undo=lambda plan: remove_pages(plan.run),
        by_hand="imgcls report --output {output}",
    ),
    AfterNight(
        "latest",
        do=lambda config, nights: write_views(config.output, nights),
        undo=lambda plan: None,
        by_hand="start the same command again",
    ),
    AfterNight(
        "delta",
        do=lambda config, nights: keep_delta(config.output, nights, create=config.delta),
        undo=forget_run,
        by_hand="imgcls results --output {output} --to delta",
    ),
)


def after_night(config: ScoreConfig) -> dict[str, str]:
    """Do all that the published nights of an output still lack; return a value per entry."""
    try:
        nights = sorted(list_published(config.output), key=lambda pair: pair[1].published_at)
    except Exception as error:  # noqa: BLE001 - as below
        log.warning("published runs were not listed: %s; the next start tries again", error)
        return {entry.name: "" for entry in ENTRIES}
    return {entry.name: _do(entry, config, nights) for entry in ENTRIES}


def _do(entry: AfterNight, config: ScoreConfig, nights: Sequence[Night]) -> str:
    try:
        return entry.do(config, nights)
    except Exception as error:  # noqa: BLE001 - whatever it is, the night is there
        log.warning(
            "the %s of the night was not made, the next start tries again: %s (by hand: %s)",
            entry.name,
            error,
            entry.by_hand.format(output=config.output),
        )
        return ""


def undo_after_night(plan: Plan) -> None:
    """Take back, of a run that is being rolled back, what was done after it."""
    for entry in ENTRIES:
        entry.undo(plan)
