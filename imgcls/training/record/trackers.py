"""The run's log, for those who watch with TensorBoard or MLflow.

In: the finished lines of one epoch, from step_log.py. Out: RUN/tensorboard/<run_id>/, one whole
event file per epoch; or points of one MLflow run, found again by its tag. Invariant: a point occurs
once, however often the run was killed and resumed: an event file is a function of its epoch's lines
and replaced as a whole, and MLflow is asked which steps it has.
"""

import http.client
import importlib
import importlib.util
import logging
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from imgcls.errors import ConfigError
from imgcls.storage.objects import put
from imgcls.storage.uri import join

Line = dict[str, Any]

log = logging.getLogger(__name__)

_ON_DISK = ("file:", "sqlite")
_ANSWER_WITHIN_S = 5.0

# MLflow takes at most so many metrics, and so many params, in one request.
_METRICS_PER_REQUEST, _PARAMS_PER_REQUEST = 1000, 100
_RUN_ID_TAG = "imgcls.run_id"
_STEP_VALUES, _EPOCH_PREFIX = {"loss": "train/loss", "lr": "train/lr"}, "epoch/"


class Tracker(Protocol):
    """Somebody who is told each epoch once it is over."""

    def add_epoch(self, lines: Sequence[Line]) -> None:
        """Take the lines of an epoch: its steps, then the epoch's own."""

    def finish(self) -> None:
        """Note that the run reached its end."""


def check_tracking(mlflow_uri: str) -> None:
    """Refuse what cannot work before the training begins; name a server that does not answer.

    Raises:
        ConfigError: MLflow is not installed, the URI holds a password, or a store on this machine's
            disk cannot be opened.
    """
    if "@" in mlflow_uri:
        raise ConfigError(
            "--mlflow-uri: give no user or password in it; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if mlflow_uri and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            f"--mlflow-uri {mlflow_uri}: MLflow is not installed; pip install 'imgcls[mlflow]'"
        )

    if mlflow_uri.startswith(_ON_DISK):
        try:
            _open_mlflow(mlflow_uri).search_experiments(max_results=1)
        except Exception as error:  # whatever MLflow and its database raise
            raise ConfigError(
                f"--mlflow-uri {mlflow_uri} cannot be logged to: {_first_sentence(error)}; "
                "pip install 'imgcls[mlflow]' brings what sqlite: and file: need"
            ) from error
    elif mlflow_uri.startswith(("http://", "https://")):
        _warn_of_silence(mlflow_uri)


def _open_mlflow(uri: str) -> Any:  # noqa: ANN401  # MLflow is imported where it is asked for
    if uri.startswith("file:"):
        # MLflow keeps folders for those who ask for them, and --mlflow-uri file: does.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)


def _first_sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _warn_of_silence(uri: str) -> None:
    """Say before the first step that a tracking server is out of reach; the training continues."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_WITHIN_S):  # noqa: S310  # http or https
            return
    except urllib.error.HTTPError:
        return  # it answers; what it wants, such as a token, the client knows
    except (OSError, ValueError, http.client.HTTPException) as error:
        log.warning(
            "--mlflow-uri %s does not answer (%s): the training continues, and its log is in the "
            "run's folder; what MLflow lacks at the end is said there",
            uri,
            error,
        )


def points(lines: Sequence[Line]) -> Iterator[tuple[str, float, int, float]]:
    """Yield (tag, value, step, unix time in s) of every number in an epoch's lines.

    A step's points are at the run's optimizer step, an epoch's at the epoch.
    """
    time_s = 0.0
    for line in lines:
        if line["kind"] == "step":
            time_s = line["time_s"]
            for name, tag in _STEP_VALUES.items():
                yield tag, float(line[name]), line["total_steps"], time_s
            continue
        for name, value in line.items():
            if name != "epoch" and isinstance(value, (int, float)):
                yield _EPOCH_PREFIX + name, float(value), line["epoch"], time_s


class TensorBoardTracker:
    """Writes event files.

    Args:
        run_uri: prefix of the run.
        run_id: of the run.
    """

    def __init__(self, run_uri: str, run_id: str) -> None:
        self._folder = join(run_uri, "tensorboard", run_id)

    def add_epoch(self, lines: Sequence[Line]) -> None:
        """Write the epoch's event file, or write it again."""
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{lines[-1]['epoch']:010d}.imgcls"
        put(join(self._folder, name), encode_events(lines))

    def finish(self) -> None:
        """Leave the files as they are."""


def encode_events(lines: Sequence[Line]) -> bytes:
    """Return an event file: TFRecords of Event messages, the first of which names the version."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    events = [Event(wall_time=lines[0].get("time_s", 0.0), file_version="brain.Event:2")]
    events += [
        Event(
            wall_time=time_s,
            step=step,
            summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]),
        )
        for tag, value, step, time_s in points(lines)
    ]
    return b"".join(_record(event.SerializeToString()) for event in events)


def _record(data: bytes) -> bytes:
    """Frame a TFRecord: length, its checksum, data, its checksum; all little-endian."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join(
        (
            length,
            struct.pack("<I", masked_crc32c(length)),
            data,
            struct.pack("<I", masked_crc32c(data)),
        )
    )


class MlflowTracker:
    """Adds points to one MLflow run, which is made where there is none with this run's tag.

    Args:
        uri: of the tracking server, or of a store that MLflow knows.
        experiment: its name; made where there is none.
        run_name: what a person sees.
        run_id: ours; becomes a tag.
        params: flags of the run.
    """

    def __init__(
        self, uri: str, experiment: str, run_name: str, run_id: str, params: dict[str, Any]
    ) -> None:
        self._entities = importlib.import_module("mlflow.entities")
        self._client = _open_mlflow(uri)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs(
            [experiment_id], filter_string=f"tags.`{_RUN_ID_TAG}` = '{run_id}'", max_results=1
        )
        if runs:
            self._id = runs[0].info.run_id
        else:
            tags = {_RUN_ID_TAG: run_id}
            run = self._client.create_run(experiment_id, tags=tags, run_name=run_name)
            self._id = run.info.run_id
            all_params = [self._entities.Param(name, str(v)) for name, v in params.items()]
            for start in range(0, len(all_params), _PARAMS_PER_REQUEST):
                some = all_params[start : start + _PARAMS_PER_REQUEST]
                self._client.log_batch(self._id, params=some)
        self._known: dict[str, set[int]] = {}  # steps that the run has, by tag

    def add_epoch(self, lines: Sequence[Line]) -> None:
        """Add the points that the run does not have yet."""
        new = []
        for tag, value, step, time_s in points(lines):
            if tag not in self._known:
                history = self._client.get_metric_history(self._id, tag)
                self._known[tag] = {metric.step for metric in history}
            if step not in self._known[tag]:
                new.append(self._entities.Metric(tag, value, round(time_s * 1000), step))
        for start in range(0, len(new), _METRICS_PER_REQUEST):
            some = new[start : start + _METRICS_PER_REQUEST]
            self._client.log_batch(self._id, metrics=some)
            for metric in some:
                self._known[metric.key].add(metric.step)

    def finish(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id, "FINISHED")
