"""The published parts as a Delta Lake table: registered by metadata alone, nothing is copied.

In: an output and its published runs. Out: OUT/_delta_log, and where there are units
OUT/_groups/_delta_log. Invariant: the table names the files that manifests name, no others; what a
kill left out, or a rollback took away, is set right by whoever calls next, in one commit. A file
goes only where its manifest does not name it now: a list of nights may be older than the table.

deltalake opens the store by itself, with the credentials of the environment: this file alone does.
Needs the extra `delta`.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from imgcls.errors import ConfigError
from imgcls.runs.plan import Plan
from imgcls.runs.published import (
    Manifest,
    Night,
    Part,
    TableFile,
    files_of,
    list_published,
    open_part,
    read_manifest,
)
from imgcls.runs.run import Run
from imgcls.schema import plain_field
from imgcls.storage.objects import head, list_objects
from imgcls.storage.uri import join

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

log = logging.getLogger(__name__)

_LOG: Final = "_delta_log"
# Of the paths OUT/date=D/run=R; Polars refuses a path that names what is no partition.
_PARTITIONS: Final = (pa.field("date", pa.date32()), pa.field("run", pa.string()))
_PARTITION_NAMES: Final = tuple(each.name for each in _PARTITIONS)
_GROUPS: Final = "_groups"


@dataclass(frozen=True)
class _File:
    """A file that the table should name."""

    path: str  # below the root of the table
    folder: str
    manifest: Manifest
    what: Part | TableFile


def require_delta(flag: str) -> None:
    """Refuse a flag that needs deltalake where it is not installed.

    Raises:
        ConfigError: how to install it.
    """
    if find_spec("deltalake") is None:
        raise ConfigError(f"{flag} needs deltalake: pip install 'imgcls[delta]'")


def keep_delta(output: str, nights: Sequence[Night], *, create: bool) -> str:
    """Bring the Delta tables of an output up to its published runs; return where, "" for nowhere.

    Args:
        output: The output.
        nights: Its published runs.
        create: Make tables that are not there yet; others are kept up in any case, for a table that
            lags behind would tell less than was published.

    Raises:
        ConfigError: a column has two types, or deltalake is not installed.
    """
    roots = [root for root in (output, join(output, _GROUPS)) if create or is_delta(root)]
    if not roots:
        return ""
    require_delta("the Delta table of this output")
    for root in roots:
        _sync(output, root, _wanted(output, root, nights))
    return output


def is_delta(root: str) -> bool:
    """Tell whether there is a Delta table."""
    return any(info.uri.endswith(".json") for info in list_objects(join(root, _LOG)))


def forget_run(plan: Plan) -> None:
    """Take a run out of the Delta tables of its output, before its files go.

    Raises:
        ConfigError: there is a table, and deltalake is not installed.
    """
    if not is_delta(plan.output) and not is_delta(join(plan.output, _GROUPS)):
        return
    nights = [night for night in list_published(plan.output) if night[1].run_id != plan.run_id]
    keep_delta(plan.output, nights, create=False)


def _wanted(output: str, root: str, nights: Sequence[Night]) -> dict[str, _File]:
    found = dict[str, _File]()
    for night in nights:
        for folder, file in files_of(output, night, of_units=root != output):
            path = join(folder, file.path).removeprefix(f"{root}/")
            found[path] = _File(path, folder, night[1], file)
    return found


def _sync(output: str, root: str, wanted: dict[str, _File]) -> None:
    """Make the table name exactly the wanted files, by one commit."""
    from deltalake import DeltaTable
    from deltalake.transaction import RemoveAction

    options = _options(root)
    table = DeltaTable(root, storage_options=options) if is_delta(root) else None
    there = dict[str, Any]()
    if table is not None:
        actions = pa.table(table.get_add_actions(flatten=True))
        there = {row["path"]: row for row in actions.to_pylist()}
    new = [file for path, file in wanted.items() if path not in there]
    taken_back = _taken_back(output, new)
    new = [file for file in new if file.manifest.run_id not in taken_back]
    unlisted = [row for path, row in there.items() if path not in wanted]
    named = _named_now(output, root, unlisted)
    gone = [row for row in unlisted if row["path"] not in named]
    if not new and not gone:
        return
    schema, refused = _joined_schema(table, root, new)
    adds = [_add(file) for file in new if file.manifest.run_id not in refused]
    if table is None and adds:
        _create(root, schema, adds, options)
    elif table is not None and (adds or gone):
        known = {field.name for field in table.schema().fields}
        if more := [field for field in _delta_schema(schema).fields if field.name not in known]:
            table.alter.add_columns(more)
        removes = [
            RemoveAction(
                row["path"],
                True,
                0,
                row["size_bytes"],
                {name: str(row[f"partition.{name}"]) for name in _PARTITION_NAMES},
            )
            for row in gone
        ]
        table.create_write_transaction(
            [*adds, *removes], "append", _delta_schema(schema), list(_PARTITION_NAMES)
        )
    log.info("Delta table %s: %d files added, %d removed", root, len(adds), len(gone))
    if refused:
        raise ConfigError("; ".join(refused.values()))
    # Rollback marks first: whichever of us is second sees the other.
    if taken_back := _taken_back(output, new):
        left = {p: f for p, f in wanted.items() if f.manifest.run_id not in taken_back}
        _sync(output, root, left)


def _taken_back(output: str, files: Sequence[_File]) -> set[str]:
    """Return which runs of these files were rolled back."""
    run_ids = {file.manifest.run_id for file in files}
    return {run_id for run_id in run_ids if Run(output, run_id).is_rolled_back()}


def _named_now(output: str, root: str, rows: Sequence[dict[str, Any]]) -> set[str]:
    """Return the paths, of files of the table, that a manifest names now."""
    named = set[str]()
    for date, run_id in {(str(row["partition.date"]), row["partition.run"]) for row in rows}:
        run = Run(output, run_id)
        manifest = read_manifest(run.published(date))
        if manifest is not None and not run.is_rolled_back():
            named |= set(_wanted(output, root, [(run.published(date), manifest)]))
    return named


def _joined_schema(
    table: "DeltaTable | None", root: str, new: Sequence[_File]
) -> tuple[pa.Schema, dict[str, str]]:
    """Return the columns of a table with some files more, and which runs do not fit, and why."""
    fields = dict[str, pa.Field]()
    if table is not None:
        there = pa.schema(table.schema().to_arrow())
        fields = {each.name: each for each in there if each.name not in _PARTITION_NAMES}
    refused, seen = dict[str, str](), set[str]()
    for file in new:
        run_id = file.manifest.run_id
        if run_id in seen:
            continue  # the parts of a run have the same columns
        seen.add(run_id)
        ours = [plain_field(field) for field in open_part(file.folder, file.what).schema_arrow]
        for field in ours:
            if field.name in _PARTITION_NAMES:
                refused[run_id] = (
                    f"run {run_id} is not in the Delta table {root}: its column {field.name!r} has "
                    "the name of a partition there; carry it under another one, as in --carry "
                    f"my_{field.name}={field.name}"
                )
            known = plain_field(fields.get(field.name, field)).type
            if not known.equals(field.type):
                refused[run_id] = (
                    f"run {run_id} is not in the Delta table {root}: its column {field.name!r} is "
                    f"{field.type}, and {known} in the table, which has one type for "
                    "a column. Give the column one type in your manifests, or leave it out "
                    "(--carry none)"
                )
        if run_id not in refused:
            fields |= {field.name: field for field in ours if field.name not in fields}
    return pa.schema([*fields.values(), *_PARTITIONS]), refused


def _delta_schema(schema: pa.Schema) -> Any:  # noqa: ANN401 - deltalake is optional
    from deltalake import Schema

    return Schema.from_arrow(schema)


def _add(file: _File) -> "AddAction":
    from deltalake.transaction import AddAction

    return AddAction(
        file.path,
        file.what.size_bytes,
        dict(zip(_PARTITION_NAMES, (file.manifest.date, file.manifest.run_id), strict=True)),
        int(head(join(file.folder, file.what.path)).last_modified.timestamp() * 1000),
        True,
        json.dumps({"numRecords": file.what.num_rows}),
    )


def _create(root: str, schema: pa.Schema, adds: "list[AddAction]", options: dict[str, str]) -> None:
    from deltalake.transaction import create_table_with_add_actions

    create_table_with_add_actions(
        root,
        _delta_schema(schema),
        adds,
        mode="error",  # a twin made it meanwhile: the next start goes on from there
        partition_by=list(_PARTITION_NAMES),
        name="imgcls",
        description="What imgcls published: one row per image, or per unit. Do not compact it.",
        storage_options=options,
    )


def _options(root: str) -> dict[str, str]:
    """Return what deltalake does not find in the environment by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if not root.startswith("s3://") or not endpoint:
        return {}
    allow = {"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {}
    return {"AWS_ENDPOINT_URL": endpoint, **allow}
