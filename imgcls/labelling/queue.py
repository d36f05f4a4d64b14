"""`imgcls queue`: the images of a night that a person should label next, as tasks.

In: a published night. Out: a record in the output, and a folder with queue.csv, tasks for Label
Studio and for CVAT. Invariants: the record is written before the first task, so that no answer
comes back unknown; nobody is asked about one version of an image twice; signed links stand in the
task files and nowhere else.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from imgcls.config.labelling import QueueConfig
from imgcls.errors import ConfigError, ObjectMissingError, StorageError
from imgcls.labelling.choose import Candidates, Choice, choose
from imgcls.labelling.links import parse_expires, signed
from imgcls.labelling.tasks import write_tasks
from imgcls.model.bundle import read_facts
from imgcls.report.choose import probability_of
from imgcls.runs.answers import id_of, read_queues, write_queue
from imgcls.runs.commits import read_commits
from imgcls.runs.facts import iter_facts, lot_of
from imgcls.runs.published import (
    Manifest,
    list_published,
    open_part,
    pick_published,
    read_columns,
    with_comparable_etags,
)
from imgcls.runs.run import Run
from imgcls.schema import ROW_COLUMNS, Status

_COLUMNS: Final = (
    *("uri", "member", "frame", "etag", "status", "class_name", "confidence", "topk_prob"),
    *("decision", "threshold_id", "calibrated_prob", "labels"),
    *("unfamiliar", "unfamiliarity", "width_px", "height_px"),
)
_TAKEN_OVER: Final = (
    *("uri", "member", "frame", "etag", "width_px", "height_px"),
    *("class_name", "decision", "threshold_id"),
)
# A decision that is left to a person is less sure than any that the model made.
_REVIEW_DOUBT: Final = 1.0

Row = dict[str, Any]
Key = tuple[str, str]

log = logging.getLogger(__name__)


def queue(config: QueueConfig) -> dict[str, Any]:
    """Choose images of a night, keep which, and write the tasks.

    Returns:
        run_id, num_images of the night that nobody was asked about, num_asked, by_reason, record
        (where the output keeps it), tasks (the files that were written).

    Raises:
        ConfigError: a flag is wrong, or nothing is left to ask.
    """
    if config.most < 1:
        raise ConfigError(f"--most {config.most}: must be 1 or more")
    if not 0 <= config.random_share <= 1:
        raise ConfigError(f"--random-share {config.random_share}: must be from 0 to 1")
    expires_s = parse_expires(config.expires)
    published = sorted(list_published(config.output), key=lambda pair: pair[1].published_at)
    folder, manifest = pick_published(published, config.output, config.run_id)[-1]
    known = read_queues(config.output)
    rows = {
        key: row
        for key, row in _rows_of(folder, manifest).items()
        if id_of(row["uri"], row.get("member"), row["etag"]) not in known
    }
    if not rows:
        raise ConfigError(
            f"run {manifest.run_id} has no scored image that nobody was asked about yet"
        )
    others = _other_answers(published, manifest, rows)
    choices = choose(
        _candidates(config.output, manifest, rows, others), config.most, config.random_share
    )
    # The first queue of a night has drawn from all of it: what comes later says nothing new of it.
    is_first = all(asked["run_id"] != manifest.run_id for asked in known.values())
    if not is_first:
        log.info("this night has a queue already: estimates of the model rest on the first one")
    asked = _asked(config, manifest, list(rows.values()), choices, is_first)
    links = {}
    if config.links:
        links = signed([row for row in asked if not row["member"]], expires_s)
        log.warning(
            "the tasks hold signed links: whoever has the files sees the pictures for %s",
            config.expires,
        )
    record = write_queue(config.output, asked)
    files = write_tasks(config.to, asked, _classes(manifest, rows), links)
    by_reason = dict(Counter(row["why"] for row in asked))
    log.info(
        "%d of %d images of run %s to label: %s",
        len(asked), len(rows), manifest.run_id,
        ", ".join(f"{count} {why}" for why, count in by_reason.items()),
    )  # fmt: skip
    return {
        "run_id": manifest.run_id,
        "num_images": len(rows),
        "num_asked": len(asked),
        "by_reason": by_reason,
        "record": record,
        "tasks": files,
    }


def _rows_of(folder: str, manifest: Manifest) -> dict[Key, Row]:
    """Return a row for each scored image: of several frames, the one with the most doubt."""
    found: dict[Key, Row] = {}
    for row in _read(folder, manifest):
        if row["status"] != Status.OK:
            continue
        if row.get("labels") is not None:
            raise ConfigError("queue asks for one class per image; this model gives several labels")
        key = (row["uri"], row.get("member") or "")
        if key not in found or _doubt(row) > _doubt(found[key]):
            found[key] = row
    return found


def _read(folder: str, manifest: Manifest) -> Iterator[Row]:
    """Yield the columns that matter: ours, and all that were carried along."""
    for part in manifest.parts:
        names = open_part(folder, part).schema_arrow.names
        carried = [name for name in names if name not in ROW_COLUMNS]
        table = read_columns(folder, part, [*_COLUMNS, *carried])
        yield from with_comparable_etags(table).to_pylist()


def _doubt(row: Row) -> float:
    """Return how unsure the model is: 1 less how far its best class is ahead of the next."""
    if row.get("decision") == "review":
        return _REVIEW_DOUBT + float(row["confidence"])
    probs: Sequence[float] = row.get("topk_prob") or ()
    if len(probs) > 1:
        return 1.0 - float(probs[0] - probs[1])
    return 1.0 - abs(2.0 * (probability_of(row) or 0.0) - 1.0)


def _other_answers(
    published: Sequence[tuple[str, Manifest]], manifest: Manifest, rows: dict[Key, Row]
) -> dict[Key, float]:
    """Return how sure another model was of another class, of the same versions of images."""
    others = [pair for pair in published if pair[1].model_digest != manifest.model_digest]
    found: dict[Key, float] = {}
    for folder, other in others[-1:]:
        wanted = ["uri", "member", "etag", "status", "class_name", "confidence"]
        for part in other.parts:
            for row in with_comparable_etags(read_columns(folder, part, wanted)).to_pylist():
                key = (row["uri"], row.get("member") or "")
                mine = rows.get(key)
                if mine is None or row["status"] != Status.OK or mine["etag"] != row["etag"]:
                    continue
                if mine["class_name"] != row["class_name"]:
                    found[key] = min(float(mine["confidence"]), float(row["confidence"]))
    return found


def _candidates(
    output: str, manifest: Manifest, rows: dict[Key, Row], others: dict[Key, float]
) -> Candidates:
    embedding_by_key = _embeddings(Run(output, manifest.run_id), rows)
    embedding_NE = None
    if embedding_by_key:
        width = len(next(iter(embedding_by_key.values())))
        unknown = np.full(width, np.nan, np.float32)
        embedding_NE = np.stack([embedding_by_key.get(key, unknown) for key in rows])
    return Candidates(
        called=[_called(row) for row in rows.values()],
        lot=np.array([lot_of(row["uri"], row.get("member")) for row in rows.values()]),
        doubt=np.array([_doubt(row) for row in rows.values()]),
        unfamiliar=np.array(
            [row["unfamiliarity"] if row.get("unfamiliar") else np.nan for row in rows.values()],
            np.float64,
        ),
        disagreeing=np.array([others.get(key, np.nan) for key in rows], np.float64),
        embedding_NE=embedding_NE,
    )


def _called(row: Row) -> str:
    return str(row.get("decision") or row["class_name"])


def _embeddings(run: Run, rows: dict[Key, Row]) -> dict[Key, np.ndarray[Any, Any]]:
    """Return what the run kept of the embeddings of these images, if it did."""
    found: dict[Key, np.ndarray[Any, Any]] = {}
    for commit in read_commits(run):
        try:
            for facts in iter_facts(run, commit, ("uri", "member", "sketch")):
                for row in facts:
                    key = (row["uri"], row["member"] or "")
                    if key in rows and row.get("sketch") is not None:
                        found[key] = np.asarray(row["sketch"], np.float32)
        except ObjectMissingError:
            continue  # somebody removed them
    return found


def _asked(
    config: QueueConfig, manifest: Manifest, rows: list[Row], choices: list[Choice], is_first: bool
) -> list[Row]:
    asked = []
    for choice in choices:
        row = rows[choice.index]
        carried = {
            name: str(value)
            for name, value in row.items()
            if name not in ROW_COLUMNS and name not in _COLUMNS and value is not None
        }
        if config.group and config.group not in carried:
            raise ConfigError(
                f"--group {config.group}: no such carried column; there are "
                + (", ".join(carried) or "none: score with --carry")
            )
        asked.append(
            {
                "id": id_of(row["uri"], row.get("member"), row["etag"]),
                **{name: row.get(name) for name in _TAKEN_OVER},
                "run_id": manifest.run_id,
                "date": manifest.date,
                "model_digest": manifest.model_digest,
                "why": choice.why,
                "probability": probability_of(row),
                "stratum": choice.stratum if is_first else "",
                "stratum_images": choice.stratum_images if is_first else 0,
                "group": carried.get(config.group),
                "carried": carried,
            }
        )
    return asked


def _classes(manifest: Manifest, rows: dict[Key, Row]) -> list[str]:
    """Return the classes that a person may choose: the model's, else those of the rows."""
    try:
        return list(read_facts(manifest.model_uri).class_names.names)
    except (ConfigError, StorageError) as error:
        log.warning("the model is gone, its classes are taken from the rows: %s", error)
        return sorted({row["class_name"] for row in rows.values()})
