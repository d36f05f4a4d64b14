"""Take back and clean up: roll a published run back, remove what no run needs any more.

In: an output prefix. Out: counts of what was removed. Invariant: what a manifest names is never
removed by gc; rollback removes the manifest first, so that no reader sees half a night.
"""

import json
import logging
import re
from collections import defaultdict
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from imgcls.config.choices import check_name
from imgcls.config.scoring import GcConfig, RollbackConfig
from imgcls.errors import ConfigError, ObjectExistsError
from imgcls.runs.facts import remove_pictures
from imgcls.runs.held import read_held
from imgcls.runs.plan import Plan, read_plan, read_planned
from imgcls.runs.published import MANIFEST, read_manifest
from imgcls.runs.run import Run, is_facts, is_for_eyes, pages_folder, runs_folder
from imgcls.scoring.publishing.after_night import undo_after_night
from imgcls.scoring.publishing.lease import Lease
from imgcls.scoring.publishing.tables import unnamed_files
from imgcls.storage.objects import (
    ObjectInfo,
    delete,
    head,
    list_objects,
    put,
    put_new,
)
from imgcls.storage.pending_uploads import PendingUpload, abort_upload, list_pending_uploads
from imgcls.storage.uri import canonical, join, split_uri

log = logging.getLogger(__name__)
CLOCK = "_clock.json"
_RESOLUTION = timedelta(seconds=1)
_AGE = re.compile(r"(\d+)([smhd])")
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def rollback(config: RollbackConfig) -> dict[str, Any]:
    """Take a published run back.

    A marker first (so that the run id is never resumed), then what was made of the night, then the
    manifest (now unpublished), then its parts.

    Raises:
        SourceError: there is no such run.
    """
    check_name(config.run_id, "--run-id")
    output = canonical(config.output)
    plan = read_planned(output, config.run_id)
    run = plan.run
    folder = plan.published
    manifest = read_manifest(folder)
    record = {"rolled_back_at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        put_new(run.rolled_back, json.dumps(record).encode())
    except ObjectExistsError:
        log.info("run %s was rolled back before; finishing that", config.run_id)
    undo_after_night(plan)
    delete(join(folder, MANIFEST))
    removed = [info.uri for info in run.everything_published(plan.date)]
    for uri in removed:
        delete(uri)
    # Pictures of images that nobody is to see any more.
    for info in list_objects(run.facts):
        delete(info.uri)
    return {
        "run_id": config.run_id,
        "output": folder,
        "rows": manifest.counts["rows"] if manifest else 0,
        "parts_removed": len(removed),
    }


def refuse_rolled_back(run: Run) -> None:
    """Refuse to continue with a run that was taken back."""
    if run.is_rolled_back():
        raise ConfigError(f"run {run.run_id} was rolled back; choose another --run-id")


def gc(config: GcConfig) -> dict[str, Any]:
    """Remove attempts of published runs, abandoned runs (on request) and pending multipart uploads.

    Ages are by the clock of the store, which dated what lies there, whatever this machine's says.

    Raises:
        ConfigError: --older-than is not an age.
    """
    age = parse_age(config.older_than)
    output = canonical(config.output)
    if config.pictures_older_than:
        parse_age(config.pictures_older_than, "--pictures-older-than")
    runs = runs_folder(output)
    by_run: dict[str, list[ObjectInfo]] = defaultdict(list)
    removed: list[ObjectInfo] = []
    uploads = _pending_uploads(output)
    if uploads or any(True for _ in list_objects(runs)):
        before = now_of_store(output) - age
        uploads = [upload for upload in uploads if upload.initiated < before]
        # Abandoned is what no run continues with: under the lease no nightly run can begin to.
        with Lease(output, "gc") if config.abandoned and not config.dry_run else nullcontext():
            for info in list_objects(runs):
                by_run[info.uri.removeprefix(runs).partition("/")[0]].append(info)
            for run_id, infos in by_run.items():
                removed += _garbage(Run(output, run_id), infos, before, abandoned=config.abandoned)
            _remove(removed, dry_run=config.dry_run)
    _abort(uploads, dry_run=config.dry_run)
    # Last: what it writes again looks young.
    of_pictures = _remove_old_pictures(config, output) if config.pictures_older_than else {}
    return {
        "output": output,
        "runs": len(by_run),
        "removed": len(removed),
        "removed_bytes": sum(info.size_bytes for info in removed),
        "uploads_aborted": len(uploads),
        "dry_run": config.dry_run,
    } | of_pictures


def _remove_old_pictures(config: GcConfig, output: str) -> dict[str, int]:
    """Remove pages, pictures and thumbnails of images, however much else of their runs stays."""
    age = parse_age(config.pictures_older_than, "--pictures-older-than")
    before = now_of_store(output) - age
    removed, num_emptied = list[ObjectInfo](), 0
    for info in chain(list_objects(pages_folder(output)), list_objects(runs_folder(output))):
        if info.last_modified >= before:
            continue
        if is_for_eyes(info.uri):
            removed.append(info)
        elif is_facts(info.uri) and remove_pictures(info.uri, dry_run=config.dry_run):
            log.info("%s of %s", "would remove pictures" if config.dry_run else "removed pictures",
                     info.uri)  # fmt: skip
            num_emptied += 1
    _remove(removed, dry_run=config.dry_run)
    return {"pages_and_pictures_removed": len(removed), "shards_without_pictures": num_emptied}


def now_of_store(output: str) -> datetime:
    """Return the time that the store would give to an object written now, by writing one.

    A store tells whole seconds, or ticks of a disk: what it dated before is never later than this.
    """
    uri = join(output, CLOCK)
    put(uri, b'{"for": "gc, which asks the store for its time"}\n')
    return head(uri).last_modified + _RESOLUTION


def _remove(infos: list[ObjectInfo], *, dry_run: bool) -> None:
    for info in infos:
        log.info("%s %s", "would remove" if dry_run else "removing", info.uri)
        if not dry_run:
            delete(info.uri)


def _abort(uploads: list[PendingUpload], *, dry_run: bool) -> None:
    for upload in uploads:
        log.info("%s upload of %s", "would abort" if dry_run else "aborting", upload.uri)
        if not dry_run:
            abort_upload(upload)


def _pending_uploads(output: str) -> list[PendingUpload]:
    """Return the uploads in parts that nobody finished; only S3 has them."""
    if split_uri(output)[0] != "s3":
        return []
    return list(list_pending_uploads(f"{output.rstrip('/')}/"))


def _garbage(
    run: Run, infos: list[ObjectInfo], before: datetime, *, abandoned: bool
) -> list[ObjectInfo]:
    """Return what may go of one run: nothing of a run still written to, nothing needed."""
    if max(info.last_modified for info in infos) >= before:
        return []
    plan = read_plan(run)
    manifest = read_manifest(plan.published) if plan is not None else None
    if plan is not None and manifest is not None:
        left = (info for info in infos if not run.stays_when_published(info.uri))
        return [*unnamed_files(plan, manifest), *left]
    if not abandoned or run.is_rolled_back() or read_held(run) is not None:
        return []
    ordered = sorted(infos, key=lambda info: run.order_of_removal(info.uri))
    if plan is None:
        return ordered
    # Parts of a publication that was killed before its manifest.
    return [*run.everything_published(plan.date), *ordered]


def is_published(plan: Plan) -> bool:
    """Return whether a planned run has its manifest."""
    return read_manifest(plan.published) is not None


def parse_age(text: str, flag: str = "--older-than") -> timedelta:
    """Parse an age such as 90m, 24h or 7d.

    Raises:
        ConfigError: not of this form.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{flag} {text!r}: write a number and s, m, h or d, such as 24h")
    return timedelta(**{_UNIT[match[2]]: int(match[1])})
