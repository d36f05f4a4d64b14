"""Which side each image was on when this name was trained before.

In: a TrainConfig. Out: the sides of the last version of its name, or of a run that has not ended.
Invariant: a split of the same seed and shares is never forgotten while its file is there, so that
no image or group crosses from training to test, or back, between two versions of a model.
"""

import logging
from collections.abc import Mapping
from typing import Any

from imgcls.config.training import TrainConfig
from imgcls.data.label_manifest import LabelRow, read_manifest
from imgcls.data.splits.draw import Known, hash_of
from imgcls.errors import ConfigError, ObjectMissingError, SourceError
from imgcls.model.bundle import read_facts
from imgcls.model.registry import list_versions
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import exists, list_objects, read
from imgcls.storage.uri import join
from imgcls.training.record.run_record import SPLIT
from imgcls.training.train_plan import RUN_RECORD, run_uri

# With another of these, another split is asked for.
_DECISIVE = ("seed", "val_fraction", "test_fraction")

log = logging.getLogger(__name__)


def read_last_split(config: TrainConfig) -> Known | None:
    """Return the sides that images and groups of this name have already; None where none have.

    Raises:
        ConfigError, StorageError: the registry cannot be read.
    """
    versions = list_versions(config.registry, config.name)
    if not versions:
        return _of_unfinished(config)
    last = versions[-1]
    training = read_facts(last.uri).training
    flags = training.get("config", {})
    if changed := _changed(config, flags):
        log.warning(
            "the split is drawn again, not that of v%d: --%s was %s and is %s",
            last.version, changed.replace("_", "-"), flags[changed], getattr(config, changed),
        )  # fmt: skip
        return None
    folder = run_uri(config, str(training.get("run", "")))
    if not exists(join(folder, SPLIT)):
        log.warning(
            "there is no %s, the split of v%d: it is drawn as if there were no earlier version. "
            "Images that v%d was trained on may be tested on now",
            join(folder, SPLIT), last.version, last.version,
        )  # fmt: skip
        return None
    return _read_split(folder, f"v{last.version}")


def _of_unfinished(config: TrainConfig) -> Known | None:
    """Return the split of a run that ended before it could register a version.

    Of several, that of the most images: each began with what the earlier ones had.
    """
    parent = run_uri(config, "").rpartition("/")[0]
    found = [
        entry.uri.rpartition("/")[0]
        for entry in list_objects(parent)
        if entry.uri.endswith(f"/{SPLIT}")
    ]
    splits = list[Known]()
    for folder in sorted(found):
        try:
            record = join(folder, RUN_RECORD)
            flags = parse_object(read(record), record, ConfigError)
        except ObjectMissingError:
            continue
        if not _changed(config, flags):
            splits.append(_read_split(folder, f"the unfinished run {folder.rpartition('/')[2]}"))
    return max(splits, key=lambda known: len(known.side_by_hash), default=None)


def _changed(config: TrainConfig, flags: Mapping[str, Any]) -> str:
    return next((n for n in _DECISIVE if n in flags and flags[n] != getattr(config, n)), "")


def _read_split(folder: str, source: str) -> Known:
    uri = join(folder, SPLIT)
    try:
        rows: list[LabelRow] = read_manifest(uri)
    except SourceError as error:
        raise ConfigError(
            f"{uri} cannot be read, so nobody knows which images were tested on: {error}. Put it "
            "back, or give another --seed"
        ) from error
    return Known(
        {hash_of(row.key): row.split for row in rows},
        {row.group: row.split for row in rows if row.group},
        source,
    )
