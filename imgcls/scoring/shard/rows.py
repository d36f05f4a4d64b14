"""Collect a shard's predictions and failures, and turn them into rows.

In: predictions and failures in order of completion. Out: one table of `prediction_schema`, in plan
order. Invariant: every planned row comes out as exactly one row (one per frame of a multi-frame
file), with its planned columns untouched; else nothing comes out. Which columns there are depends
on the bundle and the flags alone, so that all workers of a run agree.

Shape legend: B sample, K classes, T top-k, E embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from imgcls.drift.familiar import Familiar
from imgcls.image.decoders.pool import Decoded
from imgcls.image.facts.overlay import Overlay
from imgcls.image.outcome import outcome_of
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.heatmaps.picked import Asked, ShardHeatmaps
from imgcls.inference.predictor import Predictions
from imgcls.inference.stream import Predicted, Sample
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.operating_point import OperatingPoint, decide
from imgcls.report.choose import probability_of
from imgcls.runs.facts import lot_of
from imgcls.runs.plan import OF_THE_RUN, RunFacts
from imgcls.runs.row_options import RowOptions
from imgcls.schema import MEMBER_FIELD, PLACE_FIELDS, Status, carried_fields, prediction_schema
from imgcls.scoring.shard.facts import FLAGS, Key, Seen, ShardFacts
from imgcls.sources.containers import is_container

_PLACE = tuple(field.name for field in PLACE_FIELDS)


@dataclass(frozen=True)
class Provenance:
    """What every row says about how it came to be, and how its bundle reads probabilities."""

    run: RunFacts
    class_names: tuple[str, ...]
    multi_label: bool = False
    calibration: Calibration | None = None
    has_places: bool = False
    """The model looks at parts of a picture, and a row says at which its answer points."""
    background: int | None = None
    """Label of what a picture is where it shows nothing."""
    familiar: Familiar | None = None
    """Where the images of the model's reference lie; None: nobody can tell what is unfamiliar."""
    review_unfamiliar: bool = False
    """An unfamiliar image is for a person to decide on, whatever its probability."""

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Those of the bundle; the first one decides."""
        return self.calibration.operating_points if self.calibration is not None else ()

    @property
    def reasons(self) -> frozenset[str]:
        """What of the model gives rows optional columns, by the names of OPTIONAL_COLUMNS."""
        facts = {
            "multi_label": self.multi_label,
            "calibrated": self.calibration is not None,
            "operating_point": bool(self.operating_points),
            "tiles": self.has_places,
            "reference": self.familiar is not None,
        }
        return frozenset(name for name, holds in facts.items() if holds)

    def label_to_explain(self, row: Mapping[str, Any]) -> int | None:
        """Return the label that the answer of a row is about; None where no place can speak for it.

        Of a flagged row it is the class that the decision is about.
        """
        if row["status"] != Status.OK:
            return None
        label: int = row["label"]
        if row.get("decision") in FLAGS:
            label = self.class_names.index(self.operating_points[0].positive_class)
        return None if label == self.background else label


class ShardRows:
    """Collects a shard's rows in order of completion and returns them in plan order."""

    def __init__(
        self,
        plan_rows: pa.Table,
        provenance: Provenance,
        row_options: RowOptions,
        facts: ShardFacts,
        heatmaps: ShardHeatmaps | None = None,
    ) -> None:
        self._plan_rows, self._facts, self._heatmaps = plan_rows, facts, heatmaps
        self._provenance = provenance
        self._has_members = MEMBER_FIELD.name in plan_rows.column_names
        reasons = provenance.reasons | row_options.reasons()
        if self._has_members:
            reasons |= {"members"}
        self._schema = prediction_schema(reasons, carried_fields(plan_rows.schema))
        self._names = [name for name in ("uri", MEMBER_FIELD.name) if name in self._schema.names]
        planned = plan_rows.select(self._names).to_pylist()
        self._keys = [(row["uri"], row.get(MEMBER_FIELD.name)) for row in planned]
        self._rows: list[tuple[int, dict[str, Any], Seen | None]] = []
        self._scored_at = datetime.now(UTC)

    def add_failure(self, decoded: Decoded) -> None:
        """Add the row of an image that gave no pixels; what is no fault of it is raised."""
        assert decoded.error is not None, "called for a failure"
        uri, member = self._keys[decoded.index]
        name = member or uri
        if self._has_members and is_container(name) and decoded.format is None:
            # By its name it is not an image; but the images in it are what is lost.
            name = ""
        status, reason = outcome_of(decoded.error, name, decoded.format)
        row = {"status": status, "error": reason, "format": decoded.format}
        self._rows.append((decoded.index, row, None))

    def add(self, predicted: Predicted) -> None:
        """Add the rows of some samples."""
        if not predicted.samples:  # the first tiles of a picture
            return
        predictions = predicted.predictions
        columns = {
            "label": predictions.label_B.tolist(),
            "confidence": predictions.confidence_B.tolist(),
            "topk_label": predictions.topk_label_BT.tolist(),
            "topk_prob": predictions.topk_prob_BT.tolist(),
        }
        columns |= decide_columns(predictions, self._provenance)
        columns |= unfamiliar_columns(predictions, self._provenance, columns.get("decision"))
        if "probs" in self._schema.names:
            columns["probs"] = predictions.probs_BK.tolist()
        if "embedding" in self._schema.names:
            # Null where the model has none, which the log says: an ONNX network gives logits alone.
            columns["embedding"] = (
                [None] * len(predictions.label_B)
                if predictions.embedding_BE is None
                else predictions.embedding_BE.tolist()
            )
        rows = []
        for position, sample in enumerate(predicted.samples):
            crop = sample.crop
            row: dict[str, Any] = {
                "frame": crop.frame,
                "format": sample.format,
                "width_px": crop.width_px,
                "height_px": crop.height_px,
            }
            if position in predictions.error_by_row:
                row["status"] = Status.MODEL_ERROR
                row["error"] = predictions.error_by_row[position]
            else:
                row |= {name: values[position] for name, values in columns.items()}
                if crop.place is not None:
                    row |= zip(_PLACE, crop.place, strict=True)
                row["status"] = Status.OK
                row["class_name"] = self._provenance.class_names[row["label"]]
            rows.append(row)
        indices = [sample.index for sample in predicted.samples]
        keys = [self._keys[index] for index in indices]
        seen = self._facts.add(predicted.samples, keys, rows, predictions.sketch_BS)
        self._rows += zip(indices, rows, seen, strict=True)
        if self._heatmaps is not None:
            for sample, key, row, of_row in zip(predicted.samples, keys, rows, seen, strict=True):
                self._ask_for_heatmap(self._heatmaps, sample, key, row, of_row)

    def _ask_for_heatmap(
        self, heatmaps: ShardHeatmaps, sample: Sample, key: Key, row: dict[str, Any], seen: Seen
    ) -> None:
        label = self._provenance.label_to_explain(row)
        if label is None:
            return

        def keep(overlay: Overlay) -> None:
            row["peak_x_px"], row["peak_y_px"] = overlay.peak_px
            class_name = self._provenance.class_names[label]
            self._facts.add_heatmap(seen, sample, overlay.png, class_name)

        heatmaps.add(
            Asked(sample, label, keep),
            "flagged" if row.get("decision") in FLAGS else "other",
            probability_of(row) or 0.0,
            lot_of(*key),
        )

    def to_tables(self) -> tuple[pa.Table, pa.Table]:
        """Return all rows, and their facts in the same order; fails if a planned row has none."""
        if self._heatmaps is not None:
            self._heatmaps.finish()
        self._rows.sort(key=lambda item: (item[0], item[1].get("frame") or 0))
        keys = [self._keys[index] for index, _, _ in self._rows]
        facts = self._facts.table(keys, [(row, seen) for _, row, seen in self._rows])
        return self._to_table(), facts

    def _to_table(self) -> pa.Table:
        indices = np.array([index for index, _, _ in self._rows], dtype=np.int64)
        present = np.unique(indices)
        if len(present) != self._plan_rows.num_rows:
            raise AssertionError(
                f"{self._plan_rows.num_rows - len(present)} planned rows got no outcome"
            )
        planned = self._plan_rows.take(indices)
        constants = {
            **{name: getattr(self._provenance.run, name) for name in OF_THE_RUN},
            "scored_at": self._scored_at,
        }
        arrays = []
        for field in self._schema:
            if field.name in planned.column_names:
                arrays.append(planned[field.name].combine_chunks().cast(field.type))
            elif field.name in constants:
                arrays.append(_column([constants[field.name]] * len(self._rows), field.type))
            else:
                arrays.append(
                    _column([row.get(field.name) for _, row, _ in self._rows], field.type)
                )
        return pa.Table.from_arrays(arrays, schema=self._schema)


def decide_columns(predictions: Predictions, provenance: Provenance) -> dict[str, list[Any]]:
    """Return what a bundle's calibration and thresholds make of the probabilities.

    `calibrated_prob` is that of the first operating point's class, and `decision` and
    `threshold_id` are of that point; without a point it is that of the class on top. `labels` are
    the classes of a multi-label model that reach their thresholds.
    """
    columns: dict[str, list[Any]] = {}
    names = provenance.class_names
    rule = DecisionRule(names, provenance.calibration, provenance.multi_label)
    prob_B = rule.deciding_prob(predictions.probs_BK, predictions.label_B)
    if prob_B is not None:
        columns["calibrated_prob"] = prob_B.tolist()
        if rule.first_point is not None:
            columns["decision"] = decide(prob_B, rule.first_point)
            columns["threshold_id"] = [rule.first_point.threshold_id] * len(prob_B)
    if provenance.multi_label:
        columns["labels"] = [
            [names[label] for label in labels] for labels in rule.labels(predictions.probs_BK)
        ]
    return columns


def unfamiliar_columns(
    predictions: Predictions, provenance: Provenance, decisions: list[Any] | None
) -> dict[str, list[Any]]:
    """Return how far images are from those of the reference, in multiples of its threshold.

    Null where the backend gives no embeddings. Of unfamiliar images the decisions become `review`
    where that was asked for.
    """
    familiar = provenance.familiar
    if familiar is None or familiar.threshold is None or predictions.sketch_BS is None:
        return {}
    times_B = familiar.distances(predictions.sketch_BS.astype(np.float64)) / familiar.threshold
    is_unfamiliar_B = (times_B > 1).tolist()
    columns: dict[str, list[Any]] = {
        "unfamiliar": is_unfamiliar_B,
        "unfamiliarity": times_B.tolist(),
    }
    if decisions is not None and provenance.review_unfamiliar:
        columns["decision"] = [
            "review" if is_unfamiliar else decision
            for is_unfamiliar, decision in zip(is_unfamiliar_B, decisions, strict=True)
        ]
    return columns


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        # The dictionary in order of first use, so that equal rows give equal files.
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)
