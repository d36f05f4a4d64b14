"""Runs that are held back from publishing: scored whole, and no reader sees them.

In: a run or an output. Out: its hold. Invariant: held.json is written once and stays: from then on
the rows of the run count as done, and it is published by `imgcls release` or taken back by
`imgcls rollback`, by nothing else. Whether it was released says released.json, whether it was taken
back rolled_back.json.
"""

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from imgcls.errors import NightHeldError, ObjectMissingError, SourceError
from imgcls.runs.run import Run, runs_folder
from imgcls.storage.objects import list_folder, list_objects, read
from imgcls.storage.records import parse_record

_HELD: Final = "held.json"
HELD_PAGE: Final = "held.html"
"""Of the pages of a run: what changed, with pictures."""


@dataclass(frozen=True)
class Held:
    """held.json."""

    sentence: str
    """What changed, for people; drift.json says more."""
    held_at: str
    decoders: dict[str, Any] | None = None
    """As in a manifest: by what its rows were made."""
    delta: bool = False
    """Whether the night was asked to keep a Delta table: its release does it then."""


def read_held(run: Run) -> Held | None:
    """Return the hold of a run that was ever held, and not taken back; else None.

    Raises:
        SourceError: what is there is not one.
    """
    try:
        data = read(run.held)
    except ObjectMissingError:
        return None
    return None if run.is_rolled_back() else parse_record(data, run.held, SourceError, Held)


def refuse_held(run: Run) -> None:
    """Refuse to continue with a run that is held.

    Raises:
        NightHeldError: it is; says what may be done.
    """
    held = read_held(run)
    if held is not None:
        raise NightHeldError(describe_held(run, held))


def describe_held(run: Run, held: Held) -> str:
    """Say why a run is held, and what a person may do."""
    return (
        f"run {run.run_id} is held, and no reader sees it: {held.sentence}. Look at its pictures "
        f"({run.page(HELD_PAGE)}). If they are as they should be, publish it "
        f"({command_of('release', run)}); if not, take it back, and the next night scores its "
        f"images again ({command_of('rollback', run)})"
    )


def command_of(command: str, run: Run) -> str:
    """Return what a person types to end a hold by `release` or `rollback`."""
    return f"imgcls {command} --output {shlex.quote(run.output)} --run-id {run.run_id}"


def list_held(output: str, besides: Collection[str] = ()) -> Iterator[tuple[Run, Held]]:
    """Yield the runs of an output that are held, or were released and not yet published.

    Args:
        output: the output prefix.
        besides: run ids that are left out, those of published runs.
    """
    for run_id in _run_ids(output):
        run = Run(output, run_id)
        held = None if run_id in besides else read_held(run)
        if held is not None:
            yield run, held


def _run_ids(output: str) -> list[str]:
    """Return the ids of runs that may be held."""
    folder = runs_folder(output)
    found = list_folder(folder)
    if found is not None:
        return sorted(uri.rstrip("/").rpartition("/")[2] for uri in found.folders)
    uris = (info.uri for info in list_objects(folder))
    return sorted(uri.split("/")[-2] for uri in uris if uri.endswith(f"/{_HELD}"))
