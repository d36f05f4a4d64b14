"""What a page is made of, read from what a run left: rows, pictures, and the nights before.

In: a published folder and its manifest. Out: rows, thumbnails, counts. Invariant: no image is read,
and at most one batch of rows of one part is in memory as Python values.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow.parquet as pq

from imgcls.errors import ObjectMissingError, SourceError
from imgcls.report.cards import Picture
from imgcls.report.choose import Chosen, Key, Row, key_of
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import read_facts
from imgcls.runs.published import Manifest
from imgcls.runs.run import Run
from imgcls.schema import WIDE_COLUMNS
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join

_ROWS_AT_A_TIME: Final = 2048
_OF_A_PICTURE: Final = ("uri", "member", "frame", "thumbnail", "heatmap", "heatmap_class")


def rows_of(folder: str, manifest: Manifest) -> Iterator[Row]:
    """Yield the published rows, without their wide columns, in order."""
    for part in manifest.parts:
        file = pq.ParquetFile(io.BytesIO(read(join(folder, part.path))))
        columns = [name for name in file.schema_arrow.names if name not in WIDE_COLUMNS]
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=columns):
            yield from batch.to_pylist()


def columns_of(folder: str, manifest: Manifest) -> list[str]:
    """Return the columns of a night that a page may show, in their order."""
    for part in manifest.parts:
        names = pq.read_schema(io.BytesIO(read(join(folder, part.path)))).names
        return [name for name in names if name not in WIDE_COLUMNS]
    return []


def pictures_of(run: Run, keys: Iterable[Key]) -> dict[tuple[str, Key], Picture]:
    """Return the pictures of these rows, as far as the run has them, by run and row."""
    wanted, found = set(keys), dict[tuple[str, Key], Picture]()
    for commit in read_commits(run) if wanted else ():
        try:
            facts = read_facts(run, commit)
        except ObjectMissingError:
            continue  # somebody removed them: a page without pictures
        names = [name for name in _OF_A_PICTURE if name in facts.column_names]
        for row in facts.select(names).to_pylist():
            if row["thumbnail"] and key_of(row) in wanted:
                heatmap, of_class = row.get("heatmap"), row.get("heatmap_class") or ""
                found[run.run_id, key_of(row)] = Picture(row["thumbnail"], heatmap, of_class)
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
