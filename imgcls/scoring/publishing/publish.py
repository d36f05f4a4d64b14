"""Publish a run: committed attempts become the night's Parquet, the manifest makes it visible.

In: the plan and its commits. Out: OUT/date=D/run=R/part-*.parquet sorted by uri, then
_manifest.json. Invariant: a run is published when its manifest exists, and the manifest names only
parts that hold exactly one row per planned image (and frame): compared with the plan here, row by
row, before anything is written.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.errors import ConfigError, ImgclsError, ObjectExistsError
from imgcls.runs.commits import Commit, read_attempt
from imgcls.runs.facts import sum_greys
from imgcls.runs.plan import OF_THE_RUN, Plan, PlannedRows, RunFacts, Shard
from imgcls.runs.published import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    Part,
    read_manifest,
)
from imgcls.runs.row_keys import describe_key, image_keys
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.scoring.planning.decoders import moved_formats, record_of_run
from imgcls.scoring.publishing.tables import publish_tiles, unnamed_files
from imgcls.scoring.publishing.units import Units
from imgcls.scoring.shard.commit import count_kinds, count_statuses, to_parquet
from imgcls.storage.objects import delete, put_new, read
from imgcls.storage.records import record_text
from imgcls.storage.uri import join

# A part of this many rows is 20 to 60 MB: few files for a night, and small enough to build in
# memory. Rows with wide columns (probs, embedding) reach the bytes first.
ROWS_PER_PART = 262_144
BYTES_PER_PART = 256 << 20


def publish(
    plan: Plan,
    commits: dict[str, Commit],
    before_manifest: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write the parts and the manifest; return the manifest that counts: the first one there.

    Args:
        plan: the run's plan.
        commits: of every shard.
        before_manifest: called when everything else is written; what it raises leaves the run
            unpublished.

    Raises:
        ImgclsError: an attempt is damaged or does not hold the planned rows. Nothing is published
            then.
    """
    folder = plan.published
    parts: list[Part] = []
    status_counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    planned = PlannedRows(plan)
    tables = (_checked_attempt(planned, shard, commits[shard.shard_id]) for shard in plan.shards())
    with Units(plan) if plan.row_options.unit else nullcontext() as units:
        for num_shards, table in _regroup(tables):
            status_counts.update(count_statuses(table))
            kinds.update(count_kinds(table))
            parts.append(_write_part(folder, f"part-{len(parts):05d}.parquet", table, num_shards))
            if units is not None:
                units.add(table)
        of_units = units.publish() if units is not None else {}
    records = [commits[shard.shard_id].decoders for shard in plan.shards()]
    counts = plan.counts | {"rows": sum(part.num_rows for part in parts)}
    manifest = Manifest(
        **plan.facts() | {"counts": counts},
        parts=tuple(parts),
        status_counts=dict(sorted(status_counts.items())),
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        decoders=record_of_run(records),
        moved_formats=moved_formats(records),
        not_an_image=dict(kinds.most_common()),
        greys=sum_greys(commits[shard.shard_id] for shard in plan.shards()),
        tiles=publish_tiles(plan, (commits[shard.shard_id] for shard in plan.shards())),
        **of_units,
    )
    before_manifest()
    try:
        text = record_text(manifest, format_version=FORMAT_VERSION, indent=1)
        put_new(join(folder, MANIFEST), text)
    except ObjectExistsError:
        winner = find_published(plan)
        if winner is None:
            raise ConfigError(f"run {plan.run_id} was rolled back while it published") from None
        return winner
    # Rollback marks first and deletes then: whichever of us is second sees the other.
    if plan.run.is_rolled_back():
        delete(join(folder, MANIFEST))
        raise ConfigError(f"run {plan.run_id} was rolled back while it published")
    _remove_unnamed(plan, manifest)
    return manifest


def find_published(plan: Plan) -> Manifest | None:
    """Return the manifest of a run that is published already, and finish its publication."""
    manifest = read_manifest(plan.published)
    if manifest is not None:
        _remove_unnamed(plan, manifest)
    return manifest


def _remove_unnamed(plan: Plan, manifest: Manifest) -> None:
    """Remove tables of starts that were killed, or came second, once it is known which count."""
    if manifest.unit:
        for info in unnamed_files(plan, manifest):
            delete(info.uri)


def _checked_attempt(planned: PlannedRows, shard: Shard, commit: Commit) -> pa.Table:
    """Read a committed attempt and prove that it holds the planned rows of its shard."""
    plan = planned.plan
    table = with_all_columns(read_attempt(plan.run, commit))
    problem = compare_with_plan(planned.of(shard), table)
    problem = problem or compare_provenance(plan, table)
    if problem:
        raise ImgclsError(f"run {plan.run_id}, {commit.attempt}: {problem}. Nothing was published.")
    return table


def with_all_columns(rows: pa.Table) -> pa.Table:
    """Return rows of any version with the columns of this one, null where they were not written."""
    for field in PREDICTION_SCHEMA:
        if field.name not in rows.column_names:
            position = PREDICTION_SCHEMA.get_field_index(field.name)
            before = set(PREDICTION_SCHEMA.names[:position])
            at = 1 + max(i for i, name in enumerate(rows.column_names) if name in before)
            rows = rows.add_column(at, field, pa.nulls(rows.num_rows, field.type))
    return rows


def compare_provenance(plan: RunFacts, rows: pa.Table) -> str:
    """Return how rows come from another run, model or spec than planned, or "" if they do not."""
    for name in OF_THE_RUN:
        # An older version, or a part, may lack a column that came later: that is null.
        is_newer = PREDICTION_SCHEMA.field(name).nullable
        if name not in rows.column_names and is_newer:
            continue
        found = set(pc.unique(rows[name].cast(pa.string())).to_pylist())
        others = found - {str(getattr(plan, name))} - ({None} if is_newer else set())
        if others:
            return f"rows have {name} {others.pop()}, the plan {getattr(plan, name)}"
    return ""


def compare_with_plan(planned: pa.Table, rows: pa.Table) -> str:
    """Return how prediction rows differ from their plan rows, or "" if they do not."""
    planned_keys, found_keys = image_keys(planned), image_keys(rows)
    if found_keys.equals(planned_keys) and rows["etag"].equals(planned["etag"]):
        # Planned images are unique: the same ones in the same order are one row each.
        return ""
    keys = list(zip(found_keys.to_pylist(), rows["frame"].to_pylist(), strict=True))
    if len(set(keys)) != len(keys):
        key, frame = next(key for key, times in Counter(keys).items() if times > 1)
        return f"row {describe_key(key), frame} is there twice"
    expected = dict(zip(planned_keys.to_pylist(), planned["etag"].to_pylist(), strict=True))
    found = dict(zip(found_keys.to_pylist(), rows["etag"].to_pylist(), strict=True))
    if expected != found:
        missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
        return (
            f"{len(missing)} planned images have no row, {len(extra)} rows were never planned, "
            "or an etag differs"
        )
    return ""


def _regroup(tables: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Concatenate tables into ones of a part's size, and count them; none is split."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        num_rows = sum(each.num_rows for each in held)
        if num_rows >= ROWS_PER_PART or sum(each.nbytes for each in held) >= BYTES_PER_PART:
            yield len(held), pa.concat_tables(held).unify_dictionaries().combine_chunks()
            held = []
    if held:
        yield len(held), pa.concat_tables(held).unify_dictionaries().combine_chunks()


def _write_part(folder: str, name: str, table: pa.Table, num_shards: int) -> Part:
    """Put one part; a twin's part of the same rows is as good, other rows there are an error."""
    data = to_parquet(table)
    try:
        put_new(join(folder, name), data)
    except ObjectExistsError:
        data = read(join(folder, name))
        there = with_all_columns(pq.read_table(io.BytesIO(data)))
        if not there.equals(pq.read_table(io.BytesIO(to_parquet(table)))):
            raise ImgclsError(
                f"{join(folder, name)}: holds other rows than this run committed. Something else "
                "wrote there; move it away and start the same command again."
            ) from None
    return Part(name, hashlib.sha256(data).hexdigest(), table.num_rows, len(data), num_shards)
