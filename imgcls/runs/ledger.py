"""The ledger: which images are published already, read from the published rows themselves.

In: an output prefix and a model's digests. Out: (uri, member, etag, status, is_current,
has_older_thresholds) of every published row of that network. Invariant: there is no second book;
what no manifest names was never scored. Rows of a run that is held count as if they were
published.

A version of a model that differs only in its thresholds, or in its papers, gives the same
probabilities: what another version of the network scored is not scored again, but counted.

A row is current unless this imgcls would make another one of the same bytes: the pixels of its
format moved since, or it could not be read, or was no image, and more of its format is read now.
What a run's decoders could read, and by which versions, is in its manifest. Rows of commit 27535e0
and before have neither that nor a format: their decoders were of version 1 and read AT_27535E0, and
the suffix of the uri stands for the format. Where that says nothing a row that is ok stays current,
and is counted: to score it again might be to score whole buckets again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from imgcls.image.formats.abilities import AT_27535E0, Abilities, abilities_here, grown
from imgcls.image.outcome import family_by_name
from imgcls.image.versions import from_json, moved_between, versions_here
from imgcls.in_order import in_order
from imgcls.runs.commits import read_attempt, read_commits
from imgcls.runs.held import list_held
from imgcls.runs.plan import ModelDigests, read_plan
from imgcls.runs.published import (
    PARTS_AHEAD,
    Manifest,
    Part,
    list_published,
    read_columns,
    with_comparable_etags,
)
from imgcls.runs.row_keys import with_members
from imgcls.schema import MEMBER_FIELD, READ_LATER, Status
from imgcls.storage.uri import canonical

_COLUMNS: Final = ["uri", "etag", "status"]
_READ: Final = (*_COLUMNS, MEMBER_FIELD.name, "format")


@dataclass
class Outdated:
    """What the ledger found that this imgcls would make otherwise; filled while it is read."""

    moved_formats: set[str] = field(default_factory=set)
    """Families whose pixels moved since some published row of them."""
    num_untold: int = 0
    """Rows whose format neither a column nor a suffix tells, while pixels of some family moved."""


def published_keys(
    output: str,
    model: ModelDigests,
    *,
    abilities: Callable[[], Abilities] = abilities_here,
    outdated: Outdated | None = None,
    digests_of: Callable[[Manifest], ModelDigests] = lambda manifest: manifest.digests,
) -> Iterator[pa.Table]:
    """Yield uri, member, etag, status, is_current, has_older_thresholds of all rows of a network.

    Args:
        output: the output prefix.
        model: that of the night to come.
        abilities: tells what those who will score can read; called when a row depends on it.
        outdated: takes in what is found.
        digests_of: the digests of a manifest of another version of the model; by default what it
            says itself.
    """
    now = cache(abilities)
    outdated = outdated if outdated is not None else Outdated()
    seen = set()

    def parts() -> Iterator[tuple[str, Part, Manifest, bool]]:
        for folder, manifest in list_published(output):
            seen.add(manifest.run_id)
            theirs = manifest.digests
            if theirs.spec == model.spec and theirs.model != model.model:
                theirs = digests_of(manifest)
            if not is_same_network(theirs, model):
                continue
            has_older = theirs.model != model.model and theirs.calibration != model.calibration
            for part in manifest.parts:
                yield folder, part, manifest, has_older

    for table, manifest, has_older in in_order(_read_keys, parts(), PARTS_AHEAD):
        yield _judged(table, manifest.decoders, has_older, now, outdated)
    # After the published ones, so that a run that is published meanwhile is in one of the two.
    for run, held in list_held(canonical(output), seen):
        plan = read_plan(run)
        if plan is None or not is_same_network(plan.digests, model):
            continue
        for commit in read_commits(run):
            table = read_attempt(run, commit)
            wanted = [name for name in _READ if name in table.column_names]
            yield _judged(_keys_of(table.select(wanted)), held.decoders, False, now, outdated)


def _judged(
    table: pa.Table,
    decoders: dict[str, Any] | None,
    has_older: bool,
    now: Callable[[], Abilities],
    outdated: Outdated,
) -> pa.Table:
    """Return the keys of rows, and whether this imgcls would make the same of them."""
    current = _current(table, decoders, now, outdated)
    older = pa.repeat(pa.scalar(has_older), table.num_rows)
    return (
        table.select([*_COLUMNS, MEMBER_FIELD.name])
        .append_column("is_current", current)
        .append_column("has_older_thresholds", older)
    )


def is_same_network(one: ModelDigests, other: ModelDigests) -> bool:
    """Tell whether two models give the same probabilities, as far as their digests can tell."""
    if one.spec != other.spec:
        return False
    return one.model == other.model or (one.network == other.network != "")


def _read_keys(found: tuple[str, Part, Manifest, bool]) -> tuple[pa.Table, Manifest, bool]:
    folder, part, manifest, has_older = found
    return _keys_of(read_columns(folder, part, _READ)), manifest, has_older


def _keys_of(table: pa.Table) -> pa.Table:
    if "format" not in table.column_names:
        table = table.append_column("format", pa.nulls(table.num_rows, pa.string()))
    table = with_comparable_etags(with_members(table))
    for name in ("status", "format"):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, table[name].cast(pa.string()))
    return table


def _current(
    table: pa.Table,
    decoders: dict[str, Any] | None,
    now: Callable[[], Abilities],
    outdated: Outdated,
) -> pa.ChunkedArray:
    """Return for each row whether this imgcls would make the same of the same bytes."""
    record = decoders or {"reads": AT_27535E0, "versions": 1}
    moved = moved_between(from_json(record["versions"]), versions_here())
    may_be_read = pc.is_in(table["status"], value_set=pa.array(READ_LATER, pa.string()))
    has_failed = pc.any(may_be_read).as_py() or False
    family = table["format"]
    if decoders is None and (moved or has_failed):
        family = _told_by_name(table)
        if moved:
            untold = pc.and_(pc.is_null(family), pc.equal(table["status"], Status.OK.value))
            outdated.num_untold += pc.sum(untold).as_py() or 0
    current = pc.invert(pc.is_in(family, value_set=pa.array(moved, pa.string())))
    outdated.moved_formats |= set(pc.unique(family.filter(pc.invert(current))).to_pylist())
    if not has_failed:
        return current
    told = pc.unique(family.filter(may_be_read)).to_pylist()
    more = [name for name in told if grown(name, record["reads"], now())]
    is_of_more = pc.is_in(family, value_set=pa.array(more, pa.string()))
    return pc.and_(current, pc.invert(pc.and_(may_be_read, is_of_more)))


def _told_by_name(table: pa.Table) -> pa.ChunkedArray:
    """Return the formats; of rows without one, what the suffix of the uri says."""
    named = pa.array([family_by_name(uri) for uri in table["uri"].to_pylist()], pa.string())
    return pc.coalesce(table["format"], pa.chunked_array([named]))
