"""What the gate found of a night: drift.json beside the run, for pages, people and later nights.

In: JSON. Out: `Judged`. Invariant: it names images by their rows' names and says in a sentence what
changed; rows never depend on it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.runs.run import Run
from imgcls.storage.objects import delete, read
from imgcls.storage.records import parse_record

# Quiet: nothing changed that matters. Accumulates: too few images to tell, and they count in the
# next night. Alone: there is nothing to compare with yet.
State = Literal["quiet", "changed", "accumulates", "alone"]
TRAINING: Final = "what the model was made with"
BEFORE: Final = "the nights before"


@dataclass(frozen=True, slots=True)
class Picture:
    """One row, by its name."""

    uri: str
    member: str | None = None
    frame: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    shows: int = 0
    """Which of the findings, counted from 0."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that changed."""

    axis: str
    column: str
    """What the group is of, such as camera; "" of all images."""
    group: str
    against: str
    """TRAINING or BEFORE."""
    sentence: str
    p: float
    effect: float
    before: float
    now: float
    num_images: int
    category: str = ""
    since: str = ""
    """When it began within the night, as HH:MM in UTC, with the date before it where the night took
    a day or more; "" where it was so from the first image."""
    differs_in: str = ""
    """Of unfamiliar pictures: the axis in which they differ most from what the model knows."""
    interval: tuple[float, float] | None = None
    """Of a number: the mean of the night less the mean before, 95 %, drawn by group."""

    def is_like(self, other: "Finding") -> bool:
        """Tell whether it is the same change, in the same direction."""
        mine = (self.axis, self.column, self.group, self.category, self.now > self.before)
        return mine == (
            *(other.axis, other.column, other.group, other.category),
            other.now > other.before,
        )


@dataclass(frozen=True)
class Judged:
    """drift.json."""

    run_id: str
    state: State
    sentence: str
    findings: tuple[Finding, ...] = ()
    accepted: tuple[Finding, ...] = ()
    """Changes that a person released an earlier night with: they are told, and no alarm."""
    pictures: tuple[Picture, ...] = ()
    """Those that drive it."""
    num_images: int = 0
    num_units: int = 0
    num_tests: int = 0
    alpha: float = 0.0
    """How often nights without a change may alarm."""
    with_nights: tuple[str, ...] = ()
    """Smaller nights before that were judged together with this one."""
    compared_with: tuple[str, ...] = ()
    """TRAINING and BEFORE, as far as they are there."""
    is_medical: bool = False
    """Whether there are patients' pictures among them."""


def read_judged(run: Run) -> Judged | None:
    """Read what the gate found of a run; None where it was not asked, or not by this version."""
    try:
        return parse_record(read(run.drift), run.drift, SourceError, Judged)
    except (ObjectMissingError, SourceError):
        return None


def remove_judged(run: Run) -> None:
    """Take away what was observed of a run that is taken back: it names its images."""
    for uri in (run.observed, run.drift):
        delete(uri)
