"""Make the morning page of a night that is published; the command `imgcls report`.

In: an output. Out: _runs/<run_id>/pages/report.html, a CSV beside it for each list, and the counts
that the pages of later nights show. Invariant: the night is published before its page is begun: a
page that cannot be made, or is killed half-way, is made at the next start, and no row depends on
it.
"""

import logging
from collections.abc import Sequence
from typing import Any, Final

from imgcls.config.scoring import ReportConfig
from imgcls.errors import ConfigError
from imgcls.logs import tell
from imgcls.report.choose import choose, key_of
from imgcls.report.csv_lists import CsvLists
from imgcls.report.names import Name, hashed_names, plain_names
from imgcls.report.page import render_night
from imgcls.report.read import (
    columns_of,
    nights_before,
    pictures_of,
    report_of,
    rows_of,
    write_counts,
)
from imgcls.runs.published import Manifest, list_published
from imgcls.runs.run import Run
from imgcls.storage.objects import delete, exists, list_objects, put

PAGE: Final = "report.html"
NIGHTS_SHOWN: Final = 14
# So many of the latest nights get a page if they have none yet.
_MENDED: Final = 3

log = logging.getLogger(__name__)


def report(config: ReportConfig) -> dict[str, Any]:
    """Make the page of one night again, the latest by default.

    Raises:
        ConfigError: no such night is published.
    """
    found = list(list_published(config.output))
    wanted = [pair for pair in found if config.run_id in ("", pair[1].run_id)]
    if not wanted:
        known = ", ".join(manifest.run_id for _, manifest in found[-5:]) or "none"
        what = f"run {config.run_id}" if config.run_id else "a run"
        raise ConfigError(f"{config.output}: {what} is not published there; published: {known}")
    if config.last < 1:
        raise ConfigError(f"--last {config.last}: must be 1 or more")
    folder, manifest = max(wanted, key=lambda pair: pair[1].published_at)
    name = hashed_names() if config.names == "hashed" else plain_names
    nights = [manifest for _, manifest in found]
    page = make_page(config.output, folder, manifest, nights, name, config.last)
    return {"run_id": manifest.run_id, "page": page}


def make_page(
    output: str,
    folder: str,
    manifest: Manifest,
    published: Sequence[Manifest],
    name: Name = plain_names,
    num_nights: int = NIGHTS_SHOWN,
) -> str:
    """Write the page of a published night; return where it is.

    Args:
        output: of the run.
        folder: where it is published.
        manifest: of the run.
        published: those of all runs of the output.
        name: how names of objects, and carried values, are shown.
        num_nights: how many nights the small charts show, this one among them.
    """
    run = Run(output, manifest.run_id)
    lists = CsvLists(columns_of(folder, manifest), name)
    chosen = choose(rows_of(folder, manifest), lists.add)
    keys = {key_of(row) for shown in chosen.lists for row in shown.rows()}
    pictures = pictures_of(run, keys)
    write_counts(run, chosen)
    nights = nights_before(output, published, manifest, num_nights)
    page = render_night(folder, manifest, chosen, pictures, nights, report_of(run), name)
    for file, data in lists.files():
        put(run.page(file), data, is_private=True)
    # Last: where it is, all is.
    put(run.page(PAGE), page.encode(), is_private=True)
    # Rollback marks first and deletes then: whichever of us is second sees the other.
    if run.is_rolled_back():
        remove_pages(run)
        raise ConfigError(f"run {run.run_id} was rolled back while its page was made")
    tell(f"the page of the run, for people: {run.page(PAGE)}")
    return run.page(PAGE)


def remove_pages(run: Run) -> None:
    """Take the pages of a run away, as what they show is taken back."""
    for info in list_objects(run.pages):
        delete(info.uri)


def make_missing_pages(output: str, published: Sequence[tuple[str, Manifest]]) -> str:
    """Make the pages of the latest nights that have none; return the latest page, "" for none.

    Args:
        output: of the runs.
        published: folder and manifest of each, the latest last.
    """
    nights, latest = [manifest for _, manifest in published], ""
    for folder, manifest in published[-_MENDED:]:
        page = Run(output, manifest.run_id).page(PAGE)
        latest = page if exists(page) else make_page(output, folder, manifest, nights)
    return latest
