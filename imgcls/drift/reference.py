"""The reference of a model: a sample of images as they should be, observed by the code that scores.

In: a bundle and images; or the place of a bundle. Out: reference.zip, an attachment of the bundle.
Invariant: it changes no answer, so a version that differs in it alone scores nothing again; it
holds no picture and no name of an image.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from imgcls.config.choices import Device
from imgcls.drift.familiar import Familiar
from imgcls.drift.gate import MIN_IMAGES
from imgcls.drift.observed import MAX_IMAGES, Observed, Observing, parse_observed
from imgcls.errors import BundleError
from imgcls.image.crops import facts_of
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.image.outcome import outcome_of
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.predictor import make_predictor
from imgcls.inference.sketch import short_sketch
from imgcls.inference.stream import Predicted, predict_stream
from imgcls.metrics.operating_point import decide
from imgcls.model.bundle import Bundle
from imgcls.model.bundle_files import REFERENCE, SUMS, parse_sums, read_file, read_sums
from imgcls.runs.facts import FACTS_SCHEMA, lot_of
from imgcls.schema import Status
from imgcls.sources.located import in_reading_order
from imgcls.sources.read import get_images
from imgcls.storage.bulk_get import GetRequest

MAX_BYTES: Final = 2_000_000
_UNIT: Final = "group"

log = logging.getLogger(__name__)


def with_reference(
    bundle: Bundle,
    requests: Sequence[GetRequest],
    *,
    made_by: str,
    num_cores: int,
    device: Device = "auto",
    num_decoders: int = 0,
    columns: Mapping[str, Sequence[str | None]] | None = None,
) -> tuple[Bundle, int]:
    """Return a bundle with a reference, and of how many images that is; without one if too few.

    Args:
        bundle: the model.
        requests: images as they should be; their indices are 0, 1, 2 ...
        made_by: the command, for people.
        num_cores: how many cores may be used.
        device: where the model runs.
        num_decoders: 0 takes the cores.
        columns: by name what else is known of each image, such as its scanner; `group` is what
            belongs together.
    """
    chosen = _spread(requests)
    found = observe(bundle, chosen, num_cores, device, num_decoders or num_cores, columns or {})
    about = {
        "made_by": made_by,
        "made_at": f"{datetime.now(UTC):%Y-%m-%d}",
        "calibration": _calibration_of(bundle.calibration),
    }
    reference = Observed(found.table, len(requests), about).without_names()
    if len(reference.table) < MIN_IMAGES:
        log.warning(
            "the model gets no reference: %d images are too few to tell what pictures of a night "
            "should look like (%d are needed). Make one later: imgcls reference",
            len(reference.table), MIN_IMAGES,
        )  # fmt: skip
        return bundle, 0
    data = reference.to_bytes()
    assert len(data) <= MAX_BYTES, f"a reference of {len(data)} bytes"
    attachments = bundle.attachments | {REFERENCE: data}
    return replace(bundle, attachments=attachments), len(reference.table)


def read_reference(model_uri: str, calibration: dict[str, Any] | None) -> Observed | None:
    """Return the reference of a stored bundle; None where it has none.

    Args:
        model_uri: of the bundle.
        calibration: the bundle's; of other thresholds the reference's decisions say nothing.

    Raises:
        BundleError: the bundle is damaged.
    """
    sha256_by_name = parse_sums(read_sums(model_uri), model_uri)
    if REFERENCE not in sha256_by_name:
        return None
    return parse_reference(read_file(model_uri, REFERENCE, sha256_by_name[REFERENCE]), calibration)


def familiar_of(bundle: Bundle) -> Familiar | None:
    """Return where the images of a bundle's reference lie; None where nobody can tell.

    Raises:
        BundleError: its reference is none.
    """
    data = bundle.attachments.get(REFERENCE)
    if data is None:
        return None
    found = Familiar.of(parse_reference(data, bundle.calibration).sketches())
    return found if found is not None and found.threshold is not None else None


def parse_reference(data: bytes, calibration: dict[str, Any] | None) -> Observed:
    """Return a reference from its bytes.

    Raises:
        BundleError: it is none.
    """
    try:
        found = parse_observed(data)
    except ValueError as error:
        raise BundleError(f"{REFERENCE}: {error}; {SUMS} lists it") from error
    if found.about.get("calibration") == _calibration_of(calibration):
        return found
    at = found.table.schema.get_field_index("decision")
    nulls = pa.nulls(len(found.table), pa.string())
    return Observed(found.table.set_column(at, "decision", nulls), found.num_images, found.about)


def _calibration_of(calibration: dict[str, Any] | None) -> str:
    text = json.dumps(calibration, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _spread(requests: Sequence[GetRequest]) -> list[GetRequest]:
    """Return at most MAX_IMAGES, drawn by hash of their names."""
    drawn = sorted(requests, key=lambda one: lot_of(one.uri, getattr(one, "member", None)))
    return in_reading_order(sorted(drawn[:MAX_IMAGES], key=lambda one: one.index))


def observe(
    bundle: Bundle,
    requests: Sequence[GetRequest],
    num_cores: int,
    device: Device,
    num_decoders: int,
    columns: Mapping[str, Sequence[str | None]],
) -> Observed:
    """Return what a night would see of images, with their names; arguments as above."""
    seen = _Seen(bundle, {one.index: one for one in requests}, columns)
    with DecoderPool(
        bundle.decode_spec, bundle.preprocess_spec, num_decoders, look="facts"
    ) as pool:
        demand = demand_of_run(
            device=device,
            precision="auto",
            batch_size=0,
            num_images=max(1, len(requests)),
            num_cores=num_cores,
            sketch=True,
        )
        images = pool.decode_many(get_images(requests, gives_unreadable=True))
        with (
            make_predictor(bundle, demand) as predictor,
            closing(predict_stream(images, predictor)) as stream,
        ):
            for one in stream:
                if isinstance(one, Decoded):
                    seen.add_failure(one)
                else:
                    seen.add(one)
    return seen.done()


class _Seen:
    """Rows and facts of images, as `score` would write them, as far as they are watched."""

    def __init__(
        self,
        bundle: Bundle,
        request_by_index: Mapping[int, GetRequest],
        columns: Mapping[str, Sequence[str | None]],
    ) -> None:
        self._bundle, self._requests, self._columns = bundle, request_by_index, columns
        self._rule = DecisionRule.of(bundle)
        self._rows: list[dict[str, Any]] = []
        self._facts: list[dict[str, Any]] = []

    def add_failure(self, decoded: Decoded) -> None:
        """Take in an image that gave no pixels."""
        assert decoded.error is not None, "called for a failure"
        name = self._requests[decoded.index].uri
        status, _ = outcome_of(decoded.error, name, decoded.format)
        self._add(decoded.index, {"status": status}, {"format": decoded.format})

    def add(self, predicted: Predicted) -> None:
        """Take in samples."""
        if not predicted.samples:
            return
        answers = predicted.predictions
        crops = [sample.looked_at for sample in predicted.samples]
        facts = facts_of(crops, self._bundle.preprocess_spec)
        prob_B = self._rule.deciding_prob(answers.probs_BK, answers.label_B)
        point = self._rule.first_point
        decisions = decide(prob_B, point) if prob_B is not None and point is not None else None
        names = self._bundle.class_names.names
        for at, (sample, crop, fact) in enumerate(
            zip(predicted.samples, crops, facts, strict=True)
        ):
            ok = at not in answers.error_by_row
            row: dict[str, Any] = {"status": Status.OK if ok else Status.MODEL_ERROR}
            if ok:
                row |= {
                    "class_name": names[int(answers.label_B[at])],
                    "confidence": float(answers.confidence_B[at]),
                    "decision": decisions[at] if decisions is not None else None,
                }
            sketch_S = answers.sketch_BS[at] if ok and answers.sketch_BS is not None else None
            looks, source = fact.looks, fact.source
            self._add(
                sample.index,
                row,
                {
                    "format": sample.format,
                    "width_px": crop.width_px,
                    "height_px": crop.height_px,
                    "brightness": looks.brightness,
                    "contrast": looks.contrast,
                    "sharpness": looks.sharpness,
                    "levels": looks.levels,
                    "bits": source.bits,
                    "modality": source.modality or None,
                    "sketch": None if sketch_S is None else short_sketch(sketch_S),
                },
            )

    def _add(self, index: int, row: dict[str, Any], facts: dict[str, Any]) -> None:
        request = self._requests[index]
        self._facts.append({"uri": request.uri, "member": getattr(request, "member", None)} | facts)
        self._rows.append(row | {name: values[index] for name, values in self._columns.items()})

    def done(self) -> Observed:
        """Return the sample."""
        names: Iterable[str] = self._columns
        fields = [pa.field(name, pa.string()) for name in ("status", "class_name", "decision")]
        fields += [pa.field(name, pa.string()) for name in names]
        rows = pa.Table.from_pylist(
            self._rows, schema=pa.schema([*fields, pa.field("confidence", pa.float32())])
        )
        facts = pa.Table.from_pylist(self._facts, schema=FACTS_SCHEMA)
        observing = Observing([name for name in names if name != _UNIT], unit=_UNIT)
        observing.add(rows, facts)
        return observing.done()
