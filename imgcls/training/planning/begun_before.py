"""Trainings that an earlier imgcls began, whose flags had other defaults.

In: a TrainConfig. Out: the flags as they were, and whether such a run is there. Invariant: the same
command finishes what it began, whatever has become the default since.
"""

import logging
from dataclasses import replace

from imgcls.config.training import TrainConfig
from imgcls.errors import ConfigError, ObjectMissingError
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import list_entries, read
from imgcls.storage.uri import join
from imgcls.training.train_plan import RUN_RECORD, TrainPlan, run_uri

log = logging.getLogger(__name__)


def as_it_was(config: TrainConfig) -> TrainConfig:
    """Return the flags with the earlier defaults of those that are left to us."""
    fit = "crop" if config.fit == "auto" else config.fit
    gray_range = "declared" if config.gray_range == "measured" else config.gray_range
    return replace(config, fit=fit, gray_range=gray_range)


def has_runs(config: TrainConfig) -> bool:
    """Tell whether there is any run of this name, finished or not."""
    parent = run_uri(config, "").rpartition("/")[0]
    return next(iter(list_entries(parent)), None) is not None


def was_begun(plan: TrainPlan) -> bool:
    """Tell whether this very training was begun, by flags that left the fit to us."""
    uri = join(plan.run_uri, RUN_RECORD)
    try:
        record = parse_object(read(uri), uri, ConfigError)
    except ObjectMissingError:
        return False
    if record.get("fit", "auto") != "auto":
        return False
    log.warning(
        "this training was begun by an earlier imgcls, which cut off the edges of pictures, and of "
        "deep greys took the range that a file declares: it continues so (%s). --fit pad begins "
        "one that sees all of them",
        plan.seen.describe(),
    )
    return True
