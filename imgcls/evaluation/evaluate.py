"""Measure a model on labelled images, or published predictions against labels.

In: an EvaluateConfig. Out: a JSON-able dict of metrics and counts. Invariant: every labelled image
is accounted for: it counts in `accuracy` when it has a prediction, in `accuracy_all` (as wrong)
when it could not be decoded, and by name when it was never scored. Each frame of a multi-frame file
counts as an image. Whether an image has one label or any number of them, the model says.

Images go the way of `score`: the bundle's decode spec, the decoder pool, the predict stream and the
backend that a night of so many images would have here; the result says which.
"""

import hashlib
import io
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.config.models import EvaluateConfig
from imgcls.config.selection import Selection
from imgcls.data.class_names import ClassNames, from_labels
from imgcls.data.dataset import (
    describe_classes,
    refuse_joined,
    unique_rows,
)
from imgcls.data.label_manifest import LabelRow, Roles, read_manifest
from imgcls.data.left_out import leave_out, select_rows, split_label
from imgcls.data.matching import Matching, refuse_no_match
from imgcls.data.tables.shape import TableShape
from imgcls.data.trained_on import choose_split, count_trained_on
from imgcls.errors import (
    BundleError,
    ConfigError,
    ObjectMissingError,
    SourceError,
)
from imgcls.evaluation.labelled_data import read_labelled
from imgcls.evaluation.of_published_units import (
    LabelledImage,
    measure_published_units,
    units_key,
)
from imgcls.evaluation.of_units import collect_units, measure_units, rule_of
from imgcls.evaluation.predict_samples import RunFlags, predict_samples
from imgcls.image.versions import describe_moved
from imgcls.metrics.outcomes import Outcomes
from imgcls.metrics.threshold_report import DecisionTable
from imgcls.model.bundle import BundleFacts, read_bundle, read_facts
from imgcls.model.bundle_files import refuse_backbone
from imgcls.model.registry import resolve
from imgcls.report.over_time import describe, measure_over_time
from imgcls.runs.latest import is_later
from imgcls.runs.published import MANIFEST, Manifest, Part, list_published
from imgcls.runs.row_keys import with_paths
from imgcls.schema import MEMBER_FIELD, UNIT_FIELD, Status
from imgcls.storage import objects
from imgcls.storage.uri import join

_NUM_NAMED = 10  # images that a result names one by one
_COLUMNS = ["uri", "status", "error", "class_name", "run_id", "scored_at", "model_digest"]
_OPTIONAL_COLUMNS = [
    MEMBER_FIELD.name,
    UNIT_FIELD.name,
    "labels",
    "calibrated_prob",
    "decision",
    "threshold_id",
]

_log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure what the config names: MODEL on DATA, or PREDICTIONS against LABELS.

    Raises:
        ConfigError: neither or both, unusable data, labels that the model does not know, or nothing
            to measure.
        AccessDeniedError: not one image may be read.
        StorageError: the store failed.
    """
    of_model = (config.model, config.data)
    of_predictions = (config.predictions, config.labels)
    if config.over != "none":
        if not config.predictions or any(of_model) or config.labels:
            raise ConfigError(
                f"--over {config.over} takes --predictions OUT alone, whose queues were answered"
            )
        over = measure_over_time(config.predictions, config.over, config.positive_class)
        for line in describe(over):
            _log.info("%s", line)
        return {"mode": "over time", "predictions": config.predictions, **over}
    if all(of_model) and not any(of_predictions):
        result = evaluate_model(config)
    elif all(of_predictions) and not any(of_model):
        result = evaluate_predictions(config)
    else:
        raise ConfigError(
            "evaluate takes --model REF --data DATA, or --predictions OUT --labels MANIFEST"
        )
    for line in describe_result(result):
        _log.info("%s", line)
    return result


def describe_result(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a person wants to know first: one line each, with 95 % intervals."""
    yield from _describe(result, f"on {result['num_ok']} of {result['num_rows']} images")
    if units := result.get("units"):
        found = len(units["unclear"]), units["num_incomplete"], units["num_failed"]
        yield f"per unit, pooled by {units['rule']}:"
        yield from _describe(units, f"on {units['num_ok']} of {units['num_units']} units")
        if any(found):
            yield (
                f"left out as they have no one label: {units['num_unclear']} units; some images "
                f"failed: {found[1]} units, all: {found[2]}"
            )


def _describe(result: Mapping[str, Any], of: str) -> Iterator[str]:
    yield f"accuracy {_between(result['accuracy'], result['intervals']['accuracy'])} {of}"
    if reason := result["intervals"].get("no_interval_because"):
        yield f"no intervals: there are {reason}"
    for name, row in result["slices"].items():
        accuracy = _between(row["accuracy"], row["accuracy_interval"])
        yield f"  {name or '(no slice)'}: {accuracy} on {row['num_images']} images"
    after = result.get("calibrated")
    if after:
        yield f"calibrated: log loss {after['log_loss']:.4f}, ECE {after['ece']:.4f}"
        for threshold_id, point in after["operating_points"].items():
            reached_there = ", ".join(
                f"{name} {_between(point[name], point[f'{name}_interval'])}"
                for name in ("recall", "specificity")
            )
            yield f"{threshold_id}: {reached_there}, {point['review_fraction']:.1%} to review"


def _between(value: float | None, bounds: list[float] | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.4f}" + (f" ({bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else "")


def evaluate_model(config: EvaluateConfig) -> dict[str, Any]:
    """Run MODEL on the images of a split of DATA; see `evaluate`."""
    uri = resolve(config.model)
    bundle = read_bundle(uri)
    refuse_backbone(bundle.is_backbone, config.model, "evaluate")
    dataset = read_labelled(config, bundle, whole=config.split == "all")
    split: str = config.split
    if split == "auto":
        share = count_trained_on(bundle.attachments, dataset.samples)
        split = choose_split(config.data, dataset, bundle.training, share)
    samples = dataset.of_split(split)
    if not samples:
        counts = {name: len(dataset.of_split(name)) for name in ("train", "val", "test")}
        raise ConfigError(f"{config.data} has no images in split {split!r}: {counts}")
    for line in describe_classes(dataset):
        _log.info("  %s", line)
    same_split = dataset.split_digest == bundle.split_digest
    if split != "all" and not same_split:
        _log.warning(
            "%s is not split as it was when the model was trained: images were added, or it is "
            "other data",
            config.data,
        )
    if moved := bundle.decode_spec.moved_formats():
        _log.warning("%s", describe_moved(moved))
    predicted = predict_samples(bundle, samples, RunFlags.of(config))
    outcomes, probs_BK = predicted.outcomes(samples, bundle), predicted.found.probs_BK
    calibration, calibrated = bundle.fitted(), dict[str, Any]()
    if calibration is not None:
        calibrated = outcomes.calibrated(calibration, bundle.class_names, probs_BK)
    of_units = dict[str, Any]()
    if config.unit or any(sample.unit for sample in samples):  # as the training learnt them
        rule = rule_of(config.unit_rule, bundle)
        units = collect_units(predicted, samples, rule)
        of_units["units"] = measure_units(units, rule, rule.calibration, bundle)
    return of_units | {
        "mode": "model",
        "model": config.model,
        "model_uri": uri,
        "model_digest": bundle.digest,
        "backend": predicted.backend,
        "precision": predicted.precision,
        "data": config.data,
        "split": split,
        "split_digest": dataset.split_digest,
        **dataset.left_out.to_dict(),
        "same_split_as_training": None if split == "all" else same_split,
        **outcomes.result(bundle.class_names, probs_BK),
        "calibrated": calibrated,
        "moved_formats": bundle.decode_spec.moved_formats(),
    }


def evaluate_predictions(config: EvaluateConfig) -> dict[str, Any]:
    """Compare the published rows under PREDICTIONS with LABELS, by uri; see `evaluate`.

    Where several runs scored an image, the rows of the newest `scored_at` count.
    """
    roles = Roles.parse(group=config.group, slice_by=config.slice_by, label=config.label)
    shape, selection = TableShape.of(config), Selection.of(config)
    labelled = unique_rows(
        [
            row
            for place in (config.labels, *config.also)
            for row in select_rows(
                read_manifest(place, roles=roles, shape=shape, may_lack_labels=True),
                selection,
                place,
            )
        ]
    )
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
    runs = [manifest for _, manifest in manifests]
    key = units_key(config.unit, runs)
    joined = _Joined(Matching(label_by_uri, config.match_by))
    for folder, manifest in manifests:
        for part in manifest.parts:
            joined.add(_read_part(folder, part))
    if not joined.rows_by_uri and joined.unlabelled:
        refuse_no_match(label_by_uri, joined.unlabelled[0], config.match_by)
    if joined.num_superseded:
        _log.info("%d rows were scored again later: the newest counts", joined.num_superseded)
    multi_label = joined.is_multi_label()
    names_by_uri = {uri: split_label(label, multi_label) for uri, label in label_by_uri.items()}
    facts_by_digest = _read_facts(manifests)
    class_names = _known_classes(manifests, facts_by_digest, names_by_uri.values(), joined)
    kept, left_out = leave_out(labelled, class_names, multi_label, config.labels)
    usable = {row.uri for row in kept}
    outcomes, decisions, images = _count(
        joined, usable, row_by_uri, names_by_uri, class_names, multi_label
    )
    of_units = dict[str, Any]()
    if key:
        of_units["units"] = measure_published_units(
            config.predictions, runs, key, images, class_names, facts_by_digest,
            multi_label=multi_label,
        )  # fmt: skip
    without_row = [uri for uri in label_by_uri if uri not in joined.rows_by_uri]
    return of_units | {
        "mode": "predictions",
        "predictions": config.predictions,
        "labels": config.labels,
        "runs": [manifest.run_id for _, manifest in manifests],
        "model_digests": sorted(joined.distinct("model_digest")),
        "num_labels": len(label_by_uri),
        **left_out.to_dict(),
        "num_labels_without_row": len(without_row),
        "labels_without_row": without_row[:_NUM_NAMED],
        "num_rows_without_label": joined.num_unlabelled,
        "rows_without_label": joined.unlabelled,
        "num_rows_superseded": joined.num_superseded,
        **outcomes.result(class_names, None),
        "decisions": decisions.result({d: f.calibration for d, f in facts_by_digest.items()}),
    }


def _count(
    joined: "_Joined",
    usable: Container[str],
    row_by_uri: Mapping[str, LabelRow],
    names_by_uri: Mapping[str, frozenset[str]],
    class_names: ClassNames,
    multi_label: bool,
) -> tuple[Outcomes, DecisionTable, list[LabelledImage]]:
    """Return what became of the usable images: row by row, by threshold, and of which unit."""
    outcomes, decisions = Outcomes(multi_label), DecisionTable()
    images = list[LabelledImage]()
    for uri, rows in joined.rows_by_uri.items():
        if uri not in usable:
            continue
        labels = tuple(sorted(map(class_names.label_of, names_by_uri[uri])))
        of_label = row_by_uri[uri]
        unit = str(rows[0].get(UNIT_FIELD.name) or "")
        images.append(LabelledImage(uri, unit, labels, of_label.group, of_label.slice_name))
        for row in rows:
            if row["status"] == Status.OK:
                found = row["labels"] if multi_label else [row["class_name"]]
                predicted = tuple(sorted(map(class_names.label_of, found)))
                group = of_label.group or unit or uri
                outcomes.add_ok(labels, predicted, group, of_label.slice_name)
                decisions.add(row, names_by_uri[uri], group)
            else:
                outcomes.add_failure(uri, row["status"], row["error"] or "")
    return outcomes, decisions, images


class _Joined:
    """The newest rows of every labelled image, by the uri of its label.

    Memory grows with the labels, not with the rows.
    """

    def __init__(self, matching: Matching) -> None:
        self._matching = matching
        self.rows_by_uri: dict[str, list[dict[str, Any]]] = {}
        self.num_superseded = self.num_unlabelled = 0
        self.unlabelled: list[str] = []

    def add(self, table: pa.Table) -> None:
        labels = [self._matching.of(str(uri)) for uri in table["uri"].to_pylist()]
        is_labelled = pa.array([label is not None for label in labels])
        others = table["uri"].filter(pc.invert(is_labelled))
        self.num_unlabelled += len(others)
        room = _NUM_NAMED - len(self.unlabelled)
        self.unlabelled += [str(uri) for uri in others.slice(0, room).to_pylist()]
        rows = table.filter(is_labelled).to_pylist()
        for label, row in zip(filter(None, labels), rows, strict=True):
            kept = self.rows_by_uri.setdefault(label, [])
            if not kept or row["run_id"] == kept[0]["run_id"]:
                kept.append(row)  # of one run: the frames of one file
            elif is_later(row, kept[0]):
                self.num_superseded += len(kept)
                self.rows_by_uri[label] = [row]
            else:
                self.num_superseded += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(self.rows_by_uri.values())

    def distinct(self, column: str) -> set[str]:
        return {row[column] for row in self.rows() if row[column]}

    def is_multi_label(self) -> bool:
        """Whether the models give any number of labels per image.

        Raises:
            ConfigError: some do and others do not.
        """
        kinds = {row.get("labels") is not None for row in self.rows() if row["status"] == Status.OK}
        if len(kinds) > 1:
            raise ConfigError(
                "some of these predictions are of a multi-label model and some are not: measure "
                "one run at a time, with --run-id"
            )
        return True in kinds


def _read_part(folder: str, part: Part) -> pa.Table:
    uri = join(folder, part.path)
    try:
        data = objects.read(uri)
    except ObjectMissingError as error:
        raise SourceError(f"{uri} is missing, although {MANIFEST} lists it") from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise SourceError(f"{uri} was changed: it has not the sha256 that {MANIFEST} lists")
    # Which of the optional columns there are depends on the model of the run.
    file = pq.ParquetFile(io.BytesIO(data))
    there = [name for name in _OPTIONAL_COLUMNS if name in file.schema_arrow.names]
    return with_paths(file.read(columns=_COLUMNS + there))


def _read_facts(manifests: list[tuple[str, Manifest]]) -> dict[str, BundleFacts]:
    """Return what the models say of themselves, by digest; one that is gone is left out."""
    facts = {}
    for digest, uri in sorted({(m.model_digest, m.model_uri) for _, m in manifests}):
        try:
            facts[digest] = read_facts(uri)
        except BundleError as error:
            _log.warning("labels cannot be compared with the classes of the model: %s", error)
    return facts


def _known_classes(
    manifests: list[tuple[str, Manifest]],
    facts_by_digest: Mapping[str, BundleFacts],
    labels: Iterable[frozenset[str]],
    joined: _Joined,
) -> ClassNames:
    """Return the classes of the models that predicted.

    Raises:
        ConfigError: a label that joins several of their classes.
    """
    labelled = frozenset[str]().union(*labels) - {""}
    names = joined.distinct("class_name").union(*(row.get("labels") or () for row in joined.rows()))
    if any(manifest.model_digest not in facts_by_digest for _, manifest in manifests):
        return from_labels(names | labelled)
    names = names.union(*(facts.class_names.names for facts in facts_by_digest.values()))
    unknown = sorted(labelled - names)
    if unknown:
        refuse_joined(unknown, ClassNames(tuple(sorted(names))), "--labels")
    return from_labels(names)
