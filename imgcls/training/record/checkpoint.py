"""Write a training's state down while it continues, and find it again.

In: a Snapshot and the run's prefix. Out: RUN/checkpoints/<step>-<random>/ with state.safetensors,
state.json and SHA256SUMS. Invariants: a checkpoint is a folder of its own, complete when its
SHA256SUMS is there, which is written last; an older one is removed only after that. Each holds the
best weights so far beside the latest. No pickle, the optimizer's state included.

The same on one machine and under Ray Train: rank 0 writes here, through our storage, and a
restarted worker group reads here. Ray's own checkpoint registry is not used: its snapshot on a
local disk is not written atomically, its S3 client knows no AWS_ENDPOINT_URL, and it knows nothing
of a driver that was killed and started again.
"""

import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load, save

from imgcls.errors import ConfigError, DamagedCheckpointError, ObjectMissingError
from imgcls.storage.json_text import parse_object
from imgcls.storage.objects import delete, list_objects, put_new, read
from imgcls.storage.uri import join
from imgcls.training.optim.train_state import Snapshot

TENSORS, VALUES, SUMS = "state.safetensors", "state.json", "SHA256SUMS"

_EVERY = re.compile(r"never|(?P<steps>[0-9]+)|(?P<minutes>[0-9]+(\.[0-9]+)?)m")

log = logging.getLogger(__name__)


class CheckpointSchedule:
    """Says when a checkpoint is due.

    Args:
        every: "500" for optimizer steps, "10m" for minutes, or "never".

    Raises:
        ConfigError: anything else.
    """

    def __init__(self, every: str) -> None:
        match = _EVERY.fullmatch(every)
        self._every_steps = int(match["steps"] or 0) if match else 0
        self._every_s = 60.0 * float(match["minutes"] or 0) if match else 0.0
        self.is_on = self._every_steps > 0 or self._every_s > 0
        if not self.is_on and every != "never":
            raise ConfigError(
                f"--checkpoint-every {every}: write a number of steps (500), of minutes (10m), "
                "or never"
            )
        self._last_s = time.monotonic()

    def is_due(self, total_steps: int) -> bool:
        """Say whether to write one after this optimizer step, the total_steps-th of the run."""
        if self._every_steps:
            return total_steps % self._every_steps == 0
        if self._every_s and time.monotonic() - self._last_s >= self._every_s:
            self._last_s = time.monotonic()
            return True
        return False


class CheckpointWriter:
    """Writes snapshots in a thread, one at a time, and removes old ones once a new one is complete.

    Args:
        run_uri: prefix of the run.
        earlier: checkpoints of earlier attempts at this run, as `list_checkpoints` has them.
        keep: how many of the last complete ones stay, 1 or more.
    """

    def __init__(self, run_uri: str, earlier: Mapping[str, bool], keep: int = 1) -> None:
        self._run_uri, self._keep = run_uri, keep
        self._incomplete = [folder for folder, is_complete in earlier.items() if not is_complete]
        self._complete = [folder for folder, is_complete in earlier.items() if is_complete]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="imgcls-checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, snapshot: Snapshot) -> None:
        """Start writing a snapshot; waits for the one before, and raises what that raised."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            StorageError: the store failed.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def remove_all(self) -> None:
        """Remove the checkpoints of a run that is done."""
        self.wait()
        self._remove_but(0)

    def _write(self, snapshot: Snapshot) -> None:
        self._complete.append(write_checkpoint(self._run_uri, snapshot))
        self._remove_but(self._keep)

    def _remove_but(self, num_kept: int) -> None:
        while self._incomplete:
            remove_checkpoint(self._incomplete.pop())
        while len(self._complete) > num_kept:
            remove_checkpoint(self._complete.pop(0))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error on the way out is the one to report, not what a write under way then met.
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()


def write_checkpoint(run_uri: str, snapshot: Snapshot) -> str:
    """Write a snapshot as a new folder.

    Returns:
        The folder's URI.

    Raises:
        StorageError: the store failed; what was written is not complete and will not be read.
    """
    step = snapshot.values["total_steps"]
    folder = join(run_uri, "checkpoints", f"{step:012d}-{uuid.uuid4().hex[:8]}")
    files = {
        TENSORS: save(snapshot.tensors),
        VALUES: json.dumps(snapshot.values, allow_nan=False).encode(),
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    for name, data in files.items():
        put_new(join(folder, name), data)
    put_new(join(folder, SUMS), sums.encode())
    return folder


def list_checkpoints(run_uri: str) -> dict[str, bool]:
    """Return the run's checkpoints, earliest step first, and whether each is complete."""
    found: dict[str, bool] = {}
    for entry in list_objects(join(run_uri, "checkpoints")):
        folder, _, name = entry.uri.rpartition("/")
        found[folder] = found.get(folder, False) or name == SUMS
    return dict(sorted(found.items()))


def read_checkpoint(folder: str) -> Snapshot:
    """Read a checkpoint and verify every byte.

    Raises:
        DamagedCheckpointError: a file is missing or is not the one that was written.
    """
    try:
        digests = [line.split("  ", 1) for line in read(join(folder, SUMS)).decode().splitlines()]
        files = {name: read(join(folder, name)) for _, name in digests}
        changed = [n for digest, n in digests if hashlib.sha256(files[n]).hexdigest() != digest]
        if changed:
            raise DamagedCheckpointError(f"{folder}: {', '.join(changed)} changed since written")
        return Snapshot(
            load(files[TENSORS]), parse_object(files[VALUES], VALUES, DamagedCheckpointError)
        )
    except (ObjectMissingError, SafetensorError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{folder} is damaged: {error}") from error


def read_latest(found: dict[str, bool]) -> Snapshot | None:
    """Return the last of these checkpoints that can be read; None where there is none."""
    for folder, is_complete in reversed(found.items()):
        try:
            if is_complete:
                return read_checkpoint(folder)
        except DamagedCheckpointError as error:
            log.warning("passed over a checkpoint: %s", error)
    return None


def remove_checkpoint(folder: str) -> None:
    """Remove a checkpoint, its SHA256SUMS first, so that none is ever complete in name only."""
    for name in (SUMS, VALUES, TENSORS):
        delete(join(folder, name))
