"""A training that is done: its result, so that the same command again need not train.

In: a TrainPlan and a result. Out: finished.json in the run's folder. Invariant: written after the
version is registered and before the checkpoints go; believed only for the very same flags, over the
same versions of the images, and while that version is there, with that digest.
"""

import json
import logging
from dataclasses import MISSING, asdict, fields
from typing import Any, Final

from imgcls.config.training import TrainConfig
from imgcls.errors import BundleError, ConfigError, ObjectMissingError
from imgcls.model.bundle_files import read_digest
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put, read
from imgcls.storage.uri import join
from imgcls.training.record.run_record import AT_THE_END
from imgcls.training.train_plan import TrainPlan

FINISHED: Final = "finished.json"

log = logging.getLogger(__name__)


def write_finished(plan: TrainPlan, result: dict[str, Any]) -> None:
    """Keep the result of a training that is registered."""
    text = json.dumps({"config": _flags(plan), "result": result}, indent=1)
    put(join(plan.run_uri, FINISHED), text.encode())


def read_finished(plan: TrainPlan) -> dict[str, Any] | None:
    """Return the result of this very training where it is done already, else None."""
    result, changed = _read(plan)
    if result is None or changed:
        return None
    log.warning(
        "this training is done already: it gave %s. Nothing is trained again; for another one "
        "change a flag, such as --seed, or remove %s",
        result["model"],
        join(plan.run_uri, FINISHED),
    )
    return {**result, "already_trained": True}


def read_finished_otherwise(plan: TrainPlan) -> dict[str, Any] | None:
    """Return the result where only flags differ that count after the last epoch, else None."""
    result, changed = _read(plan)
    return result if changed and changed <= set(AT_THE_END) else None


def _read(plan: TrainPlan) -> tuple[dict[str, Any] | None, set[str]]:
    """Return the result of a finished training that is still there, and the flags that differ."""
    uri = join(plan.run_uri, FINISHED)
    try:
        done = parse_object(read(uri), uri, ConfigError)
    except ObjectMissingError:
        return None, set()
    earlier, now = _defaults() | done["config"], _flags(plan)
    changed = {name for name in earlier | now if earlier.get(name) != now.get(name)}
    return (done["result"] if _is_there(done["result"]) else None), changed


def _flags(plan: TrainPlan) -> dict[str, Any]:
    """Return the flags as JSON gives them back."""
    flags: dict[str, Any] = json.loads(json.dumps(asdict(plan.config)))
    return flags


def _defaults() -> dict[str, Any]:
    """Return the flags' defaults: a version that did not know a flag trained by its default."""
    return {flag.name: flag.default for flag in fields(TrainConfig) if flag.default is not MISSING}


def _is_there(result: dict[str, Any]) -> bool:
    try:
        return read_digest(str(result["uri"])) == str(result["digest"])
    except BundleError:
        return False
