"""What a page is made of, read from what a run left: rows, pictures, and the nights before.

In: a published folder and its manifest. Out: rows, thumbnails, counts. Invariant: no image is read,
and at most one batch of rows of one part is in memory as Python values.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import pyarrow.parquet as pq

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.report.cards import Picture
from imgcls.report.choose import Chosen, Key, Row, key_of
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import iter_facts
from imgcls.runs.published import Manifest, files_of, open_part
from imgcls.runs.run import Run
from imgcls.schema import WIDE_COLUMNS
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put, read

_ROWS_AT_A_TIME: Final = 512
_OF_A_PICTURE: Final = ("uri", "member", "frame", "thumbnail", "heatmap", "heatmap_class")
# What the answer of a unit has no column for, and those of its columns that are for programs.
_NO_IMAGE: Final[Row] = dict.fromkeys(("format", "width_px", "height_px", "error"))
_OF_UNITS: Final = ("rule", "version", "replaces_run_id")


@dataclass(frozen=True, slots=True)
class Night:
    """A published run as a page reads it: its rows, or the answers of its units.

    Attributes:
        output: of the run.
        folder: where it is published.
        manifest: of it.
        by_unit: one row per unit, by the image that decided, instead of one per image.
    """

    output: str
    folder: str
    manifest: Manifest
    by_unit: bool = False

    @property
    def run(self) -> Run:
        """The run."""
        return Run(self.output, self.manifest.run_id)

    @property
    def counted(self) -> str:
        """What its rows are, for people."""
        return "units" if self.by_unit else "images"

    def rows(self) -> Iterator[Row]:
        """Yield the rows, without their wide columns, in order."""
        for file in self._files():
            columns = _narrow(file)
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    yield _NO_IMAGE | row | {"error": _why(row)} if self.by_unit else row

    def columns(self) -> list[str]:
        """Return the columns that a page may show, in their order."""
        return next(map(_narrow, self._files()), [])

    def _files(self) -> Iterator[pq.ParquetFile]:
        night = (self.folder, self.manifest)
        for folder, file in files_of(self.output, night, of_units=self.by_unit):
            yield open_part(folder, file)


def _why(row: Row) -> str:
    """Say what became of the images of a unit: 1 corrupt, 3 ok."""
    counted = (each.rpartition(" ") for each in row["statuses"].split(", "))
    return ", ".join(f"{count} {status.replace('_', ' ')}" for status, _, count in counted)


def _narrow(file: pq.ParquetFile) -> list[str]:
    left_out = (*WIDE_COLUMNS, *_OF_UNITS)
    return [name for name in file.schema_arrow.names if name not in left_out]


def pictures_of(run: Run, keys: Iterable[Key]) -> dict[tuple[str, Key], Picture]:
    """Return the pictures of these rows, as far as the run has them, by run and row."""
    wanted, found = set(keys), dict[tuple[str, Key], Picture]()
    for commit in read_commits(run) if wanted else ():
        try:
            for row in chain.from_iterable(iter_facts(run, commit, _OF_A_PICTURE)):
                if row["thumbnail"] and key_of(row) in wanted:
                    heatmap, of_class = row.get("heatmap"), row.get("heatmap_class") or ""
                    found[run.run_id, key_of(row)] = Picture(row["thumbnail"], heatmap, of_class)
        except ObjectMissingError:
            continue  # somebody removed them: a page without pictures
    return found


def write_counts(run: Run, chosen: Chosen) -> None:
    """Leave a night's counts beside it, for the trends on the pages of nights to come."""
    counts = {name: dict(counted) for name, counted in chosen.counts().items()}
    put(run.counts, json.dumps(counts, indent=1).encode(), is_private=True)


def nights_before(
    output: str, published: Iterable[Manifest], until: Manifest, most: int
) -> list[dict[str, Counter[str]]]:
    """Return the counts of the published nights up to this one, this one last."""
    manifests = (m for m in published if m.published_at <= until.published_at)
    ordered = sorted(manifests, key=lambda m: (m.published_at, m.run_id))
    found = []
    for manifest in ordered[-most:]:
        counts = _counts_of(Run(output, manifest.run_id))
        counts = counts or {"status": manifest.status_counts}
        found.append({name: Counter(counted) for name, counted in counts.items()})
    return found


def _counts_of(run: Run) -> dict[str, Any]:
    try:
        return parse_object(read(run.counts), run.counts, SourceError)
    except (ObjectMissingError, SourceError):
        return {}


def report_of(run: Run) -> dict[str, Any]:
    """Return what the run's last start told of its work; empty where that is not there."""
    try:
        return parse_object(read(run.report), run.report, SourceError)
    except (ObjectMissingError, SourceError):
        return {}
