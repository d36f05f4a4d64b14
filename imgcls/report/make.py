"""Make the pages of nights that are published; the command `imgcls report`.

In: an output. Out: _runs/<run_id>/pages/report.html, a CSV beside it for each list, and the counts
that the pages of later nights show; of several nights together OUT/_pages/nights.html. Invariant: a
night is published before its page is begun: a page that cannot be made, or is killed half-way, is
made at the next start, and no row depends on it.
"""

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any, Final

from imgcls.config.scoring import ReportConfig
from imgcls.drift.record import read_judged
from imgcls.errors import ConfigError
from imgcls.logs import tell
from imgcls.report.cards import Picture, Pictures, picture_keys
from imgcls.report.changes import changes_of, keys_of
from imgcls.report.choose import Chosen, Key, choose, nothing_chosen
from imgcls.report.csv_lists import CsvLists
from imgcls.report.names import Name, hashed_names, plain_names
from imgcls.report.page import render_night, render_nights
from imgcls.report.read import Night, nights_before, pictures_of, write_counts
from imgcls.runs.published import Manifest, list_published, pick_published
from imgcls.runs.run import Run, pages_folder
from imgcls.storage.objects import delete, exists, list_objects, put
from imgcls.storage.uri import join

PAGE: Final = "report.html"
UNIT_PAGE: Final = "units.html"
NIGHTS_PAGE: Final = "nights.html"
NIGHTS_UNIT_PAGE: Final = "nights-units.html"
NIGHTS_SHOWN: Final = 14
# So many of the latest nights get a page if they have none yet.
_MENDED: Final = 3


def report(config: ReportConfig) -> dict[str, Any]:
    """Make the page of one night again, the latest by default, or one of several together.

    Raises:
        ConfigError: no such night is published, or it has no units.
    """
    found = sorted(list_published(config.output), key=lambda pair: pair[1].published_at)
    wanted = pick_published(found, config.output, config.run_id)
    if config.last < 0 or (config.last and config.run_id):
        raise ConfigError(
            f"--last {config.last}: a number of runs, 1 or more, and not together with --run-id"
        )
    nights = [
        Night(config.output, folder, manifest, config.unit)
        for folder, manifest in wanted[-(config.last or 1) :]
    ]
    if config.unit:
        nights = [night for night in nights if night.manifest.unit]
        if not nights:
            raise ConfigError(
                f"--unit: run {wanted[-1][1].run_id} has no units; score with --unit, such as "
                "--unit dicom:StudyInstanceUID"
            )
    name = hashed_names() if config.names == "hashed" else plain_names
    published = [manifest for _, manifest in found]
    if config.last:
        return {"runs": len(nights), "page": make_nights_page(nights, name)}
    page = make_page(nights[-1], published, name)
    return {"run_id": nights[-1].manifest.run_id, "page": page}


def make_page(night: Night, published: Sequence[Manifest], name: Name = plain_names) -> str:
    """Write the page of a published night; return where it is.

    Args:
        night: the night.
        published: the manifests of all runs of the output.
        name: how names of objects, and carried values, are shown.
    """
    run = night.run
    lists = CsvLists(night.columns(), name)
    chosen = nothing_chosen()
    choose(chosen, night.rows(), lists.add)
    if not night.by_unit:
        write_counts(run, chosen)
    before = nights_before(night.output, published, night.manifest, NIGHTS_SHOWN)
    counts = [chosen.counts()] if night.by_unit else before
    judged = None if night.by_unit else read_judged(run)
    pictures = _pictures(chosen, [night], keys_of(judged))
    changes = changes_of(run, judged, pictures, name)
    page = render_night(night, chosen, pictures, counts, name, changes)
    for file, data in lists.files():
        put(run.page(f"unit-{file}" if night.by_unit else file), data, is_private=True)
    # Last: where it is, all is.
    uri = run.page(UNIT_PAGE if night.by_unit else PAGE)
    put(uri, page.encode(), is_private=True)
    _refuse_rolled_back([night])
    tell(f"the page of the run, for people: {uri}")
    return uri


def make_nights_page(nights: Sequence[Night], name: Name = plain_names) -> str:
    """Write one page of several nights, the latest last; return where it is."""
    folder, by_unit = pages_folder(nights[0].output), nights[0].by_unit
    columns = list(dict.fromkeys(chain.from_iterable(night.columns() for night in nights)))
    lists = CsvLists(columns, name)
    chosen = nothing_chosen()
    counts = [choose(chosen, night.rows(), lists.add) for night in nights]
    page = render_nights(nights, chosen, _pictures(chosen, nights), counts, name)
    prefix = "nights-unit-" if by_unit else "nights-"
    for file, data in lists.files():
        put(join(folder, f"{prefix}{file}"), data, is_private=True)
    uri = join(folder, NIGHTS_UNIT_PAGE if by_unit else NIGHTS_PAGE)
    put(uri, page.encode(), is_private=True)
    _refuse_rolled_back(nights)
    return uri


def _pictures(
    chosen: Chosen, nights: Sequence[Night], also: Collection[Key] = frozenset()
) -> Pictures:
    """Return the pictures of the rows that are shown, and of others of the last night."""
    wanted = {nights[-1].manifest.run_id: set(also)}
    for row in chain.from_iterable(shown.rows() for shown in chosen.lists):
        for run_id, key in picture_keys(row):
            wanted.setdefault(run_id, set()).add(key)
    found: dict[tuple[str, Key], Picture] = {}
    output = nights[0].output
    for run_id, keys in wanted.items():
        found |= pictures_of(Run(output, run_id), keys)
    return found


def _refuse_rolled_back(nights: Sequence[Night]) -> None:
    """Take a page away of runs that were taken back while it was made.

    Rollback marks first and deletes then: whichever of us is second sees the other.
    """
    for night in nights:
        if night.run.is_rolled_back():
            remove_pages(night.run)
            run_id = night.run.run_id
            raise ConfigError(f"run {run_id} was rolled back while its page was made")


def remove_pages(run: Run) -> None:
    """Take the pages of a run away, and those that show it among others."""
    for folder in (run.pages, pages_folder(run.output)):
        for info in list_objects(folder):
            delete(info.uri)


def make_missing_pages(output: str, published: Sequence[tuple[str, Manifest]]) -> str:
    """Make the pages of the latest nights that have none; return the latest page, "" for none.

    Args:
        output: of the runs.
        published: folder and manifest of each, the latest last.
    """
    nights, latest = [manifest for _, manifest in published], ""
    for folder, manifest in published[-_MENDED:]:
        night = Night(output, folder, manifest)
        latest = night.run.page(PAGE)
        if not exists(latest):
            make_page(night, nights)
        if manifest.unit and not exists(night.run.page(UNIT_PAGE)):
            make_page(Night(output, folder, manifest, by_unit=True), nights)
    return latest
