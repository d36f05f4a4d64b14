"""`imgcls labels`: what people said goes back to the images, whatever the night.

In: an export. Out: answers in the output, and a manifest that training takes beside its first one.
Invariants: an answer belongs to the version of the image that was shown; where the image was
overwritten since, the answer counts for measuring what was scored then, and never for training. An
export that names what nobody asked, or says two things of one image, loses that row alone, by name.
"""

import csv
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from imgcls.config.labelling import LabelsConfig
from imgcls.errors import ConfigError
from imgcls.inert import in_csv, in_log
from imgcls.labelling.exports import Answer, read_export
from imgcls.labelling.tasks import name_in_tools, name_of
from imgcls.runs.answers import Row, read_answers, read_queues, write_answers
from imgcls.runs.row_keys import path_of
from imgcls.storage.access import head_many
from imgcls.storage.info import ObjectInfo
from imgcls.storage.objects import put

_NUM_NAMED: Final = 5

log = logging.getLogger(__name__)


def labels(config: LabelsConfig) -> dict[str, Any]:
    """Take an export back, and write the manifest of all answers so far.

    Returns:
        num_answers (of this export), num_open (asked, not answered by it), num_unknown and unknown
        (rows that no queue asked for), num_unclear and unclear (two labels for one image),
        num_agreeing (with the model), by_label, num_changed (images that are not what they were),
        num_for_training, manifest, record.

    Raises:
        ConfigError: no queue of this output asked for anything that came back.
    """
    asked = read_queues(config.output)
    if not asked:
        raise ConfigError(f"{config.output} has no queue: `imgcls queue` makes one")
    export = read_export(config.from_)
    if not config.all_seen:
        untouched = sum(answer.is_prediction and answer.label != "" for answer in export)
        export = [answer for answer in export if not answer.is_prediction]
        if untouched:
            log.warning(
                "%s: %d predictions were not touched by anybody, and are no answers; if a person "
                "has seen them all, say --all-seen",
                config.from_, untouched,
            )  # fmt: skip
    taken, unknown, unclear, num_open = _join(export, asked)
    if not taken:
        raise ConfigError(
            f"{config.from_} holds no answer to a queue of {config.output}: {num_open} rows have "
            f"no label yet, {len(unknown)} name images that no queue asked for"
        )
    rows = [asked[key] | {"label": label} for key, label in taken.items()]
    record = write_answers(config.output, rows)
    _tell(config.from_, unknown, unclear, num_open)
    answers = read_answers(config.output)
    current, changed = _still_there(answers.values())
    put(config.to, _manifest(current))
    agreeing = sum(row["label"] == row["class_name"] for row in rows)
    log.info(
        "%d answers, %d of them as the model said; %s has %d images for training",
        len(rows), agreeing, config.to, len(current),
    )  # fmt: skip
    for uri in changed[:_NUM_NAMED]:
        log.warning("%s was overwritten or removed since: its answer is not for training", uri)
    return {
        "num_answers": len(rows),
        "num_open": num_open,
        "num_unknown": len(unknown),
        "unknown": unknown[:_NUM_NAMED],
        "num_unclear": len(unclear),
        "unclear": unclear[:_NUM_NAMED],
        "num_agreeing": agreeing,
        "by_label": dict(Counter(row["label"] for row in rows).most_common()),
        "num_changed": len(changed),
        "num_for_training": len(current),
        "manifest": config.to,
        "record": record,
    }


def _join(
    found: Iterable[Answer], asked: Mapping[str, Row]
) -> tuple[dict[str, str], list[str], list[str], int]:
    """Return the label by id, what no queue asked, what has two labels, and how many have none."""
    by_path: defaultdict[str, set[str]] = defaultdict(set)
    for key, row in asked.items():
        for path in _endings(name_in_tools(row)):
            by_path[path].add(key)
        by_path[path_of(row["uri"], row["member"])].add(key)
    said: defaultdict[str, set[str]] = defaultdict(set)
    unknown, num_open = list[str](), 0
    for answer in found:
        keys = {answer.id} if answer.id in asked else by_path.get(answer.path.lstrip("/"), set())
        keys = keys or by_path.get(answer.path, set())
        if not answer.label:
            num_open += 1
        elif len(keys) == 1:
            said[next(iter(keys))].add(answer.label)
        else:
            why = "several images of the queues are called so" if keys else "no queue asked for it"
            unknown.append(f"{in_log(answer.path or answer.id)} ({why})")
    unclear = [
        f"{in_log(name_of(asked[key]))}: {', '.join(map(in_log, sorted(labels)))}"
        for key, labels in said.items()
        if len(labels) > 1
    ]
    taken = {key: next(iter(labels)) for key, labels in said.items() if len(labels) == 1}
    return taken, unknown, unclear, num_open


def _endings(path: str) -> Iterator[str]:
    """Yield a path and all that it ends with: tools drop folders, never the name."""
    while path:
        yield path
        path = path.partition("/")[2]


def _tell(place: str, unknown: list[str], unclear: list[str], num_open: int) -> None:
    if num_open:
        log.info("%s: %d rows have no label yet", place, num_open)
    for name in unknown[:_NUM_NAMED]:
        log.warning("%s: left out: %s", place, name)
    for name in unclear[:_NUM_NAMED]:
        log.warning("%s: left out, it has two labels: %s", place, name)


def _still_there(rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """Return the answers to images that are what they were, and the names of the others."""
    rows = sorted(rows, key=lambda row: (row["uri"], row["member"] or ""))
    current, changed = list[Row](), list[str]()
    uris = list(dict.fromkeys(row["uri"] for row in rows))  # many images of one container are one
    heads = dict(zip(uris, head_many(uris), strict=True))
    for row in rows:
        info = heads[row["uri"]]
        is_same = isinstance(info, ObjectInfo) and info.etag == row["etag"]
        if is_same:
            current.append(row)
        else:
            changed.append(row["uri"])
    return current, changed


def _manifest(rows: list[Row]) -> bytes:
    carried = list(dict.fromkeys(name for row in rows for name in row["carried"]))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["uri", "label", *carried])
    for row in rows:
        path = path_of(row["uri"], row["member"])
        writer.writerow(
            map(in_csv, [path, row["label"], *(row["carried"].get(name, "") for name in carried)])
        )
    return text.getvalue().encode("utf-8", "surrogateescape")
