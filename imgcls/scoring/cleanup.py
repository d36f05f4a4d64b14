"""Take back and clean up: roll a published run back, remove what no run needs any more.

In: an output prefix. Out: counts of what was removed. Invariant: what a manifest names is never
removed by gc; rollback removes the manifest first, so that no reader sees half a night.
"""

import json
import logging
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from imgcls.config import GcConfig, RollbackConfig, check_name
from imgcls.errors import ConfigError, ObjectExistsError, SourceError
from imgcls.scoring.plan import read_plan, run_uri
from imgcls.scoring.publish import published_uri, read_manifest
from imgcls.storage.objects import (
    ObjectInfo,
    delete,
    exists,
    list_objects,
    put_new,
)
from imgcls.storage.uploads import PendingUpload, abort_upload, list_pending_uploads
from imgcls.storage.uri import join, split_uri

log = logging.getLogger(__name__)
_AGE = re.compile(r"(\d+)([smhd])")
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# Of a published run the plan and the commits stay: they are small, and `verify` reads them.
_NEEDED_WHEN_PUBLISHED = ("plan.json", "plan/", "commits/", "rolled_back.json")


def rollback(config: RollbackConfig) -> dict[str, Any]:
    """Take a published run back.

    A marker first (so that the run id is never resumed), then the manifest (now unpublished), then
    its parts.

    Raises:
        SourceError: there is no such run.
    """
    check_name(config.run_id, "--run-id")
    plan = read_plan(config.output, config.run_id)
    if plan is None:
        raise SourceError(f"{config.output}: there is no run {config.run_id}")
    folder = published_uri(config.output, plan)
    manifest = read_manifest(folder)
    record = {"rolled_back_at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        put_new(_marker(config.output, config.run_id), json.dumps(record).encode())
    except ObjectExistsError:
        log.info("run %s was rolled back before; finishing that", config.run_id)
    delete(join(folder, "_manifest.json"))
    removed = [info.uri for info in list_objects(folder)]
    for uri in removed:
        delete(uri)
    return {
        "run_id": config.run_id,
        "output": folder,
        "rows": manifest.counts["rows"] if manifest else 0,
        "parts_removed": len(removed),
    }


def refuse_rolled_back(output: str, run_id: str) -> None:
    """Refuse to go on with a run that was taken back."""
    if is_rolled_back(output, run_id):
        raise ConfigError(f"run {run_id} was rolled back; choose another --run-id")


def is_rolled_back(output: str, run_id: str) -> bool:
    """Return whether a run was taken back."""
    return exists(_marker(output, run_id))


def _marker(output: str, run_id: str) -> str:
    return join(run_uri(output, run_id), "rolled_back.json")


def gc(config: GcConfig) -> dict[str, Any]:
    """Remove attempts of published runs, abandoned runs (on request) and pending multipart uploads.

    Raises:
        ConfigError: --older-than is no age.
    """
    before = datetime.now(UTC) - parse_age(config.older_than)
    by_run: dict[str, list[ObjectInfo]] = defaultdict(list)
    runs = join(config.output, "_runs")
    for info in list_objects(runs):
        by_run[info.uri.removeprefix(f"{runs}/").partition("/")[0]].append(info)
    removed = [
        info for run_id, infos in by_run.items() for info in _garbage(config, run_id, infos, before)
    ]
    for info in removed:
        log.info("%s %s", "would remove" if config.dry_run else "removing", info.uri)
        if not config.dry_run:
            delete(info.uri)
    uploads = _pending_uploads(config.output, before)
    for upload in uploads:
        log.info("%s upload of %s", "would abort" if config.dry_run else "aborting", upload.uri)
        if not config.dry_run:
            abort_upload(upload)
    return {
        "output": config.output,
        "runs": len(by_run),
        "removed": len(removed),
        "removed_bytes": sum(info.size_bytes for info in removed),
        "uploads_aborted": len(uploads),
        "dry_run": config.dry_run,
    }


def _pending_uploads(output: str, before: datetime) -> list[PendingUpload]:
    """Return the uploads in parts that nobody finished; only S3 has them."""
    if split_uri(output)[0] != "s3":
        return []
    pending = list_pending_uploads(f"{output.rstrip('/')}/")
    return [upload for upload in pending if upload.initiated < before]


def _garbage(
    config: GcConfig, run_id: str, infos: list[ObjectInfo], before: datetime
) -> list[ObjectInfo]:
    """Return what may go of one run: nothing of a run still written to, nothing needed."""
    if max(info.last_modified for info in infos) >= before:
        return []
    plan = read_plan(config.output, run_id)
    if plan is not None and read_manifest(published_uri(config.output, plan)) is not None:
        folder = f"{run_uri(config.output, run_id)}/"
        return [
            info
            for info in infos
            if not info.uri.removeprefix(folder).startswith(_NEEDED_WHEN_PUBLISHED)
        ]
    # plan.json goes first: a run without it is none, so a gc killed here leaves nothing half-alive.
    ordered = sorted(infos, key=lambda info: not info.uri.endswith("/plan.json"))
    return ordered if config.abandoned else []


def parse_age(text: str) -> timedelta:
    """Parse an age such as 90m, 24h or 7d.

    Raises:
        ConfigError: not of this form.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--older-than {text!r}: write a number and s, m, h or d, such as 24h")
    return timedelta(**{_UNIT[match[2]]: int(match[1])})
