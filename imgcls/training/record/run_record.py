"""What a run was started with: run.json, the flags, and split.csv, the frozen splits.

In: a TrainPlan. Out: both files in the run's folder. Invariant: a start that is refused leaves the
files of an earlier run as they are.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from imgcls.data.dataset import freeze_split
from imgcls.data.keys import Key
from imgcls.errors import ConfigError
from imgcls.identity import pseudonyms
from imgcls.image.versions import from_json, moved_between
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import put, put_first, read
from imgcls.storage.uri import join
from imgcls.training.train_plan import RUN_RECORD, TrainPlan

SPLIT = "split.csv"
# Applied once the weights are there: the fingerprint leaves them out, so a run may continue with
# others.
AT_THE_END = ("positive_class", "target_recall", "target_specificity", "slice_by")

log = logging.getLogger(__name__)


def check_writable(plan: TrainPlan) -> None:
    """Find out before the training whether the run's folder can be written to.

    Raises:
        StorageError: it cannot.
    """
    uri = join(plan.run_uri, RUN_RECORD)
    put(uri, put_first(uri, _flags(plan)))


def write_start(plan: TrainPlan, *, resumed: bool) -> None:
    """Write the files of a start that nothing speaks against any more.

    RUN/split.csv as --data gives every image the same side again.

    Args:
        plan: the training's plan.
        resumed: an earlier attempt has trained already; then flags that count at the end alone and
            that were others are named in the log.
    """
    uri = join(plan.run_uri, RUN_RECORD)
    if resumed:
        earlier = parse_object(read(uri), uri, ConfigError)
        for name in changed_at_the_end(plan, earlier):
            log.warning(
                "--%s is %r and was %r when this run began: it is applied after the last epoch, "
                "so the new one counts; the weights do not depend on it",
                name.replace("_", "-"),
                getattr(plan.config, name),
                earlier[name],
            )
        trained_by = from_json(earlier.get("decoder_version", 1))
        if moved := moved_between(trained_by, plan.decode_spec.decoder_version):
            log.warning(
                "this training began with an earlier version of the decoders: pixels of %s have "
                "moved since, and its last steps see other ones than its first",
                ", ".join(moved),
            )
    put(uri, _flags(plan))
    named = pseudonyms(sample.group for sample in plan.samples)
    samples = [replace(sample, group=named[sample.group]) for sample in plan.samples]
    frozen = freeze_split(samples, slice_by=_slice_column(plan.config.slice_by))
    put(join(plan.run_uri, SPLIT), frozen)


def _slice_column(slice_by: str) -> str:
    """Return what the column of the slices is called, where --slice-by finds it again."""
    if not slice_by:
        return ""
    key = Key.parse(slice_by, "--slice-by")
    return str(key.detail) if key.kind == "column" else key.column or "slice"


def changed_at_the_end(plan: TrainPlan, earlier: Mapping[str, Any]) -> list[str]:
    """Return the names of AT_THE_END whose value is another than in the flags `earlier`."""
    values = asdict(plan.config)
    return [name for name in AT_THE_END if name in earlier and earlier[name] != values[name]]


def _flags(plan: TrainPlan) -> bytes:
    noted = {
        "image_versions": plan.image_versions,
        "decoder_version": plan.decode_spec.to_dict()["decoder_version"],
    }
    return json.dumps(asdict(plan.config) | noted, indent=1).encode()
