"""Prove a run from what is stored: plan, commits, attempts, parts and manifest read again.

In: an output prefix. Out: counts, and every difference in words. Invariant: nothing is believed
that a counter or a log said; each statement is read from the objects themselves.
"""

import hashlib
import io
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.config.scoring import VerifyConfig
from imgcls.errors import ImgclsError, ObjectMissingError, RunStoppedError, SourceError
from imgcls.runs.commits import Commit, read_attempt, read_commits
from imgcls.runs.plan import OF_THE_RUN, Plan, PlannedRows, read_planned
from imgcls.runs.published import MANIFEST, Manifest, read_manifest
from imgcls.runs.run import list_run_ids
from imgcls.schema import MEMBER_FIELD
from imgcls.scoring.publishing.publish import compare_provenance, compare_with_plan
from imgcls.scoring.publishing.tables import check_committed_tiles, check_tables
from imgcls.scoring.publishing.twice import find_twice
from imgcls.storage.objects import list_objects, read
from imgcls.storage.uri import canonical, join

log = logging.getLogger(__name__)
_COLUMNS = ["uri", "etag", "frame", *OF_THE_RUN]
_OPTIONAL_COLUMNS = [MEMBER_FIELD.name]


def verify(config: VerifyConfig) -> dict[str, Any]:
    """Verify one run or all runs of an output.

    Raises:
        SourceError: there is no such run.
        ImgclsError: something differs; the message counts it, the log lists it.
    """
    output = canonical(config.output)
    run_ids = [config.run_id] if config.run_id else sorted(list_run_ids(output))
    problems: list[str] = []
    num_rows = num_published = 0
    for run_id in run_ids:
        plan = read_planned(output, run_id)
        found = [f"run {run_id}: {problem}" for problem in check_run(plan)]
        for problem in found:
            log.error("%s", problem)
        problems += found
        manifest = read_manifest(plan.published)
        if manifest is not None:
            num_published += 1
            num_rows += manifest.counts["rows"]
    if not run_ids:
        raise SourceError(f"{output}: no runs there")
    twice = find_twice(output, config.run_id)
    for problem in twice.problems:
        log.error("%s", problem)
    problems += twice.problems
    if problems:
        raise ImgclsError(f"{output}: {len(problems)} differences, the first: {problems[0]}")
    return {
        "output": output,
        "runs": len(run_ids),
        "runs_published": num_published,
        "rows": num_rows,
        "rows_repeated_by_score": twice.num_repeated,
        "problems": [],
    }


def check_run(plan: Plan) -> Iterator[str]:
    """Yield every way in which a run's objects contradict each other."""
    commits = {commit.shard_id: commit for commit in read_commits(plan.run)}
    manifest = read_manifest(plan.published)
    damaged = list(_check_plan_files(plan))
    yield from damaged
    if damaged:
        return  # there is nothing to compare the rows with
    planned = PlannedRows(plan)
    for shard in plan.shards():
        commit = commits.pop(shard.shard_id, None)
        if commit is None:
            if manifest is not None:
                yield f"published, but shard {shard.shard_id} has no commit"
            continue
        rows = planned.of(shard)
        yield from _check_attempt(plan, commit, rows, published=manifest is not None)
        yield from check_committed_tiles(plan, commit, published=manifest is not None)
    for shard_id in commits:
        yield f"commit {shard_id} is of no planned shard"
    if manifest is not None:
        yield from _check_parts(planned, manifest)
        yield from check_tables(plan, manifest)


def _check_plan_files(plan: Plan) -> Iterator[str]:
    for file in plan.files:
        try:
            data = read(plan.run.file(file.path))
        except ObjectMissingError:
            yield f"{file.path}: missing"
            continue
        if hashlib.sha256(data).hexdigest() != file.sha256:
            yield f"{file.path}: not the bytes that plan.json names"
    if sum(plan.shard_rows) != plan.counts["planned"]:
        yield f"plan.json counts {plan.counts['planned']} images, its shards {sum(plan.shard_rows)}"


def _check_attempt(
    plan: Plan, commit: Commit, planned: pa.Table, *, published: bool
) -> Iterator[str]:
    try:
        rows = read_attempt(plan.run, commit)
    except ObjectMissingError:
        # `gc` may remove the attempts of a published run: its parts hold the rows.
        if not published:
            yield f"{commit.attempt} is committed and missing"
        return
    except RunStoppedError:
        raise
    except ImgclsError as error:
        yield str(error)
        return
    problem = compare_with_plan(planned, rows) or compare_provenance(plan, rows)
    if problem:
        yield f"{commit.attempt}: {problem}"


def _check_parts(planned: PlannedRows, manifest: Manifest) -> Iterator[str]:
    """Compare part by part, each with the shards that it was made of."""
    plan = planned.plan
    folder, shards = plan.published, plan.shards()
    num_rows, last_uri = 0, ""
    for part in manifest.parts:
        expected = [
            _keys_only(planned.of(shard)) for shard in itertools.islice(shards, part.num_shards)
        ]
        data = read(join(folder, part.path))
        if hashlib.sha256(data).hexdigest() != part.sha256:
            yield f"{part.path}: not the bytes that the manifest names"
            continue
        file = pq.ParquetFile(io.BytesIO(data))
        there = [name for name in _OPTIONAL_COLUMNS if name in file.schema_arrow.names]
        rows = file.read(columns=_COLUMNS + there)
        num_rows += rows.num_rows
        problem = compare_with_plan(pa.concat_tables(expected), rows)
        problem = problem or compare_provenance(plan, rows)
        if problem:
            yield f"{part.path}: {problem}"
        uris = pa.chunked_array([[last_uri], *rows["uri"].chunks])
        if not pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py():
            yield f"{part.path}: not sorted by uri"
        last_uri = uris[-1].as_py()
    if next(shards, None) is not None:
        yield "the parts do not hold every planned shard"
    if num_rows != manifest.counts["rows"]:
        yield f"the parts hold {num_rows} rows, the manifest says {manifest.counts['rows']}"
    named = {part.path for part in manifest.parts} | {MANIFEST}
    for info in list_objects(folder):
        name = info.uri.removeprefix(f"{folder}/")
        if name not in named:
            yield f"{info.uri} is published, and the manifest does not name it"


def _keys_only(planned: pa.Table) -> pa.Table:
    there = set(planned.column_names)
    return planned.select([n for n in ("uri", "etag", *_OPTIONAL_COLUMNS) if n in there])
