"""Measure a model on labelled images, or published predictions against labels.

In: an EvaluateConfig. Out: a JSON-able dict of metrics and counts. Invariant: every labelled image
is accounted for: it counts in `accuracy` when it has a prediction, in `accuracy_all` (as wrong)
when it could not be decoded, and by name when it was never scored. Each frame of a multi-frame file
counts as an image.

Images go the way of `score`: the bundle's decode spec, the decoder pool and the same `Predictor`.
"""

import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.config.models import EvaluateConfig
from imgcls.config.training import TrainConfig
from imgcls.errors import (
    BundleError,
    ConfigError,
    DecodeError,
    ObjectChangedError,
    ObjectMissingError,
    SourceError,
)
from imgcls.image.pool import Crop, DecoderPool
from imgcls.logs import Progress
from imgcls.model.artifact import Bundle, read_bundle, read_class_names
from imgcls.model.calibration import Calibration, measure_calibration
from imgcls.model.dataset import Dataset, Sample, read_dataset
from imgcls.model.intervals import metrics_with_intervals, slice_metrics
from imgcls.model.labels import ClassNames, enumerate_names, from_labels
from imgcls.model.manifest import read_manifest
from imgcls.model.predict import Predictor
from imgcls.model.registry import resolve
from imgcls.published import MANIFEST, Manifest, list_published
from imgcls.schema import Status
from imgcls.storage import objects
from imgcls.storage.transfer import GetRequest, get_many
from imgcls.storage.uri import join

_NUM_NAMED = 10  # images that a result names one by one
_COLUMNS = ["uri", "status", "error", "class_name", "run_id", "scored_at", "model_digest"]

_log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure what the config names: MODEL on DATA, or PREDICTIONS against LABELS.

    Raises:
        ConfigError: neither or both, unusable data, labels that the model does not know, or nothing
            to measure.
        StorageError: the store failed.
    """
    of_model = (config.model, config.data)
    of_predictions = (config.predictions, config.labels)
    if all(of_model) and not any(of_predictions):
        return evaluate_model(config)
    if all(of_predictions) and not any(of_model):
        return evaluate_predictions(config)
    raise ConfigError(
        "evaluate takes --model REF --data DATA, or --predictions OUT --labels MANIFEST"
    )


@dataclass
class _Tally:
    """Rows by what became of them; the one place that knows how they are counted."""

    labels: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # the group, or else the image
    slices: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    not_ok: list[dict[str, str]] = field(default_factory=list)

    def add_ok(self, label: int, predicted: int, unit: str, slice_name: str) -> None:
        self.labels.append(label)
        self.units.append(unit)
        self.slices.append(slice_name)
        self.predicted.append(predicted)
        self.statuses[Status.OK] += 1

    def add_failure(self, uri: str, status: str, error: str) -> None:
        self.statuses[status] += 1
        if len(self.not_ok) < _NUM_NAMED:
            self.not_ok.append({"uri": uri, "status": status, "error": error})

    def result(
        self, class_names: ClassNames, probs_BK: npt.NDArray[np.float32] | None
    ) -> dict[str, Any]:
        num_rows = self.statuses.total()
        if not self.labels:
            raise ConfigError(
                f"none of {num_rows} labelled images has a prediction: {self.counts()}"
            )
        label_B, predicted_B = np.array(self.labels), np.array(self.predicted)
        metrics = metrics_with_intervals(label_B, predicted_B, class_names, probs_BK, self.units)
        return {
            "accuracy": metrics["accuracy"],
            "accuracy_all": float((label_B == predicted_B).sum() / num_rows),
            "num_rows": num_rows,
            "num_ok": len(self.labels),
            "statuses": self.counts(),
            "not_ok": self.not_ok,
            **metrics,
            "slices": slice_metrics(self.slices, label_B, predicted_B, class_names, self.units)
            if any(self.slices)
            else {},
        }

    def counts(self) -> dict[str, int]:
        return {str(status): count for status, count in sorted(self.statuses.items())}


def evaluate_model(config: EvaluateConfig) -> dict[str, Any]:
    """Run MODEL on the images of a split of DATA; see `evaluate`."""
    uri = resolve(config.model)
    bundle = read_bundle(uri)
    dataset = _read_data(config, bundle)
    samples = dataset.of_split(config.split)
    if not samples:
        counts = {name: len(dataset.of_split(name)) for name in ("train", "val", "test")}
        raise ConfigError(f"{config.data} has no images in split {config.split!r}: {counts}")
    same_split = dataset.split_digest == bundle.split_digest
    if config.split != "all" and not same_split:
        _log.warning(
            "%s is not split as it was when the model was trained: images were added, or it is "
            "other data",
            config.data,
        )
    # Decoders start before torch has threads.
    num_cpus = len(os.sched_getaffinity(0))
    with DecoderPool(
        bundle.decode_spec, bundle.preprocess_spec, config.num_decoders or num_cpus
    ) as pool:
        predictor = Predictor(bundle, device=config.device, batch_size=config.batch_size)
        tally, probs_BK = _predict(samples, pool, predictor)
    return {
        "mode": "model",
        "model": config.model,
        "model_uri": uri,
        "model_digest": bundle.digest,
        "data": config.data,
        "split": config.split,
        "split_digest": dataset.split_digest,
        "same_split_as_training": None if config.split == "all" else same_split,
        **tally.result(bundle.class_names, probs_BK),
        "calibrated": _measure_calibration(bundle, probs_BK, tally),
    }


def _measure_calibration(
    bundle: Bundle, probs_BK: npt.NDArray[np.float32], tally: _Tally
) -> dict[str, Any]:
    if bundle.calibration is None:
        return {}
    calibration = Calibration.from_dict(bundle.calibration)
    return measure_calibration(calibration, probs_BK, np.array(tally.labels), bundle.class_names)


def _read_data(config: EvaluateConfig, bundle: Bundle) -> Dataset:
    """Read DATA with the shares and the seed of the training, so that its test split comes back."""
    trained = bundle.training.get("config", {})
    whole = config.split == "all"
    return read_dataset(
        config.data,
        val_fraction=0.0 if whole else trained.get("val_fraction", TrainConfig.val_fraction),
        test_fraction=0.0 if whole else trained.get("test_fraction", TrainConfig.test_fraction),
        seed=trained.get("seed", TrainConfig.seed),
        class_names=bundle.class_names,
        slice_by=config.slice_by,
    )


def _predict(
    samples: list[Sample], pool: DecoderPool, predictor: Predictor
) -> tuple[_Tally, npt.NDArray[np.float32]]:
    """Predict every sample; the probabilities are those of the ok rows, in the tally's order."""
    tally, probs = _Tally(), list[npt.NDArray[np.float32]]()
    batch: list[tuple[int, Crop]] = []

    def flush() -> None:
        predictions = predictor.predict(np.stack([crop.x_CHW for _, crop in batch]))
        finite_B = predictions.finite_B
        probs.append(predictions.probs_BN[finite_B])
        for row, (index, _) in enumerate(batch):
            if finite_B[row]:
                sample = samples[index]
                unit = sample.group or sample.uri
                predicted = int(predictions.label_B[row])
                tally.add_ok(sample.label, predicted, unit, sample.slice_name)
            else:
                tally.add_failure(samples[index].uri, Status.MODEL_ERROR, "not finite")
        batch.clear()

    requests = (GetRequest(index, sample.uri) for index, sample in enumerate(samples))
    with Progress("evaluating", len(samples), "images") as progress:
        for decoded in pool.decode_many(get_many(requests)):
            if decoded.error is not None:
                status = _status_of(decoded.error)
                tally.add_failure(samples[decoded.index].uri, status, str(decoded.error))
            for crop in decoded.crops:
                batch.append((decoded.index, crop))
                if len(batch) == predictor.batch_size:
                    flush()
            progress.advance(1)
        if batch:
            flush()
    return tally, np.concatenate(probs) if probs else np.empty((0, predictor.num_classes), "f4")


def _status_of(error: Exception) -> str:
    match error:
        case DecodeError():
            return error.status
        case ObjectMissingError():
            return Status.MISSING
        case ObjectChangedError():
            return Status.CHANGED
    raise error


def evaluate_predictions(config: EvaluateConfig) -> dict[str, Any]:
    """Compare the published rows under PREDICTIONS with LABELS, by uri; see `evaluate`.

    Where several runs scored an image, the rows of the newest `scored_at` count.
    """
    labelled = read_manifest(config.labels, slice_by=config.slice_by)
    row_by_uri = {row.uri: row for row in labelled}
    label_by_uri = {uri: row.label for uri, row in row_by_uri.items()}
    manifests = [
        (folder, manifest)
        for folder, manifest in list_published(config.predictions)
        if config.run_id in ("", manifest.run_id)
    ]
    if not manifests:
        run = f" of run {config.run_id}" if config.run_id else ""
        raise SourceError(f"there are no published predictions{run} under {config.predictions}")
    joined = _Joined(label_by_uri)
    for folder, manifest in manifests:
        for part in manifest.parts:
            joined.add(_read_part(folder, part))
    if joined.num_superseded:
        _log.info("%d rows were scored again later: the newest counts", joined.num_superseded)
    class_names = _known_classes(manifests, set(label_by_uri.values()), joined)
    tally = _Tally()
    for uri, rows in joined.rows_by_uri.items():
        for row in rows:
            if row["status"] == Status.OK:
                label = class_names.label_of(label_by_uri[uri])
                predicted = class_names.label_of(row["class_name"])
                group = row_by_uri[uri].group or uri
                tally.add_ok(label, predicted, group, row_by_uri[uri].slice_name)
            else:
                tally.add_failure(uri, row["status"], row["error"] or "")
    without_row = [uri for uri in label_by_uri if uri not in joined.rows_by_uri]
    return {
        "mode": "predictions",
        "predictions": config.predictions,
        "labels": config.labels,
        "runs": [manifest.run_id for _, manifest in manifests],
        "model_digests": sorted(joined.distinct("model_digest")),
        "num_labels": len(label_by_uri),
        "num_labels_without_row": len(without_row),
        "labels_without_row": without_row[:_NUM_NAMED],
        "num_rows_without_label": joined.num_unlabelled,
        "rows_without_label": joined.unlabelled,
        "num_rows_superseded": joined.num_superseded,
        **tally.result(class_names, None),
    }


class _Joined:
    """The newest rows of every labelled image; memory grows with the labels, not with the rows."""

    def __init__(self, label_by_uri: Mapping[str, str]) -> None:
        self._labelled = pa.array(list(label_by_uri), pa.string())
        self.rows_by_uri: dict[str, list[dict[str, Any]]] = {}
        self.num_superseded = self.num_unlabelled = 0
        self.unlabelled: list[str] = []

    def add(self, table: pa.Table) -> None:
        is_labelled = pc.is_in(table["uri"], value_set=self._labelled)
        others = table["uri"].filter(pc.invert(is_labelled))
        self.num_unlabelled += len(others)
        room = _NUM_NAMED - len(self.unlabelled)
        self.unlabelled += [str(uri) for uri in others.slice(0, room).to_pylist()]
        for row in table.filter(is_labelled).to_pylist():
            kept = self.rows_by_uri.setdefault(row["uri"], [])
            if not kept or row["run_id"] == kept[0]["run_id"]:
                kept.append(row)  # of one run: the frames of one file
            elif row["scored_at"] > kept[0]["scored_at"]:
                self.num_superseded += len(kept)
                self.rows_by_uri[row["uri"]] = [row]
            else:
                self.num_superseded += 1

    def distinct(self, column: str) -> set[str]:
        return {r[column] for rows in self.rows_by_uri.values() for r in rows if r[column]}


def _read_part(folder: str, part: Mapping[str, Any]) -> pa.Table:
    uri = join(folder, part["path"])
    try:
        data = objects.read(uri)
    except ObjectMissingError as error:
        raise SourceError(f"{uri} is missing, although {MANIFEST} lists it") from error
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise SourceError(f"{uri} was changed: it has not the sha256 that {MANIFEST} lists")
    return pq.read_table(io.BytesIO(data), columns=_COLUMNS)


def _known_classes(
    manifests: list[tuple[str, Manifest]], labels: set[str], joined: _Joined
) -> ClassNames:
    """Return the classes of the models that predicted.

    Raises:
        ConfigError: a label that none of the models knows.
    """
    names = joined.distinct("class_name")
    for uri in sorted({manifest.model_uri for _, manifest in manifests}):
        try:
            names |= set(read_class_names(uri).names)
        except BundleError as error:
            _log.warning("labels cannot be compared with the classes of the model: %s", error)
            return from_labels(names | labels)
    unknown = sorted(labels - names)
    if unknown:
        raise ConfigError(
            f"labels that the model does not know: {enumerate_names(unknown)}; "
            f"it knows {enumerate_names(sorted(names))}"
        )
    return from_labels(names)
