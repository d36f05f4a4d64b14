"""The columns of plan and prediction files, and the statuses a row may have.

In: nothing. Out: pyarrow schemas. Invariant: which columns there are, of which type and for which
reason, is told here alone; who makes or reads one knows its name.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import pyarrow as pa


class UnitStatus(StrEnum):
    """What became of a unit. Only OK and INCOMPLETE have an answer."""

    OK = "ok"
    INCOMPLETE = "incomplete"  # some of its images failed: what is negative is to be reviewed
    FAILED = "failed"  # none of its images gave an answer
    NOT_AN_IMAGE = "not_an_image"  # all that is of it is something else
    EMPTY = "empty"  # its images are of other units by now


class Status(StrEnum):
    """What became of a planned image. Everything but OK leaves label and probabilities null."""

    OK = "ok"
    MISSING = "missing"  # 404: deleted between plan and read
    CHANGED = "changed"  # 412: overwritten between plan and read
    UNREADABLE = "unreadable"  # 403 or EACCES on this one, while others of the run were read
    NOT_AN_IMAGE = "not_an_image"  # by content something else: a report, a text, an archive
    UNSUPPORTED = "unsupported"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    DECODER_CRASH = "decoder_crash"
    MODEL_ERROR = "model_error"  # decoded, but the model gave no finite probabilities


# What a status means beyond its row; those of none of these lists failed, and for good.
# Count for nothing in a failure budget.
NOT_FAILED = (Status.OK, Status.NOT_AN_IMAGE)
# Say nothing of the version that was planned: the next night plans what is there then.
NOTHING_LEARNT = (Status.MISSING, Status.CHANGED)
# Planned again each night: somebody may have opened the door.
ASKED_AGAIN = (Status.UNREADABLE,)
# Planned again once the decoders of a night read more of the format.
READ_LATER = (Status.UNSUPPORTED, Status.NOT_AN_IMAGE)

TIMESTAMP = pa.timestamp("us", tz="UTC")

# One row per object to score; one row group per shard.
PLAN_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("last_modified", TIMESTAMP, nullable=False),
        pa.field("version_id", pa.string()),
    ]
)

# Only in plans and rows of sources with containers: the name of the image in the container that
# `uri` names; null for what lies by itself, and for a container that could not be opened.
MEMBER_FIELD = pa.field("member", pa.string())
# Only in such plans: where the bytes of the member are, see sources/members.py.
MEMBER_PLACE_FIELD = pa.field(
    "member_place",
    pa.struct(
        [
            pa.field("method", pa.string()),
            pa.field("start", pa.int64()),
            pa.field("num_bytes", pa.int64()),
            pa.field("crc32", pa.int64()),
            pa.field("inner_start", pa.int64()),
            pa.field("column", pa.string()),
            pa.field("problem", pa.string()),
            pa.field("container_bytes", pa.int64()),
        ]
    ),
)

_OF_CONTAINERS = (MEMBER_FIELD, MEMBER_PLACE_FIELD)

# Only in plans that try images again which failed in an earlier night: true for those.
FAILED_BEFORE_FIELD = pa.field("failed_before", pa.bool_())

# A dictionary column stays small when a value repeats on every row, and reads as a plain string.
_REPEATED = pa.dictionary(pa.int32(), pa.string())

# The columns of every night. Runs that were planned before a column was added have nulls in it, so
# a new one is nullable.
PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("last_modified", TIMESTAMP, nullable=False),
        pa.field("frame", pa.int32()),
        pa.field("status", _REPEATED, nullable=False),
        pa.field("error", pa.string()),
        pa.field("format", _REPEATED),  # family, told by content; null where it tells nothing
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("label", pa.int32()),
        pa.field("class_name", _REPEATED),
        pa.field("confidence", pa.float32()),
        pa.field("topk_label", pa.list_(pa.int32())),
        pa.field("topk_prob", pa.list_(pa.float32())),
        pa.field("model", _REPEATED, nullable=False),
        pa.field("model_digest", _REPEATED, nullable=False),
        pa.field("spec_digest", _REPEATED, nullable=False),
        pa.field("run_id", _REPEATED, nullable=False),
        pa.field("scored_at", TIMESTAMP, nullable=False),
    ]
)

PLACE_FIELDS = tuple(pa.field(name, pa.int32()) for name in ("x_px", "y_px", "w_px", "h_px"))
# One row per tile, for --write-tiles.
TILES_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        MEMBER_FIELD,
        pa.field("frame", pa.int32()),
        *PLACE_FIELDS,
        pa.field("label", pa.int32(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("probs", pa.list_(pa.float32()), nullable=False),
    ]
)
# Of runs with --unit: which unit an image is of, null where it is of none.
UNIT_FIELD = pa.field("unit", pa.string())
# One row per unit, for --unit. `uri` to `h_px` are of the image, or its part, that decided.
GROUPS_SCHEMA = pa.schema(
    [
        UNIT_FIELD,  # null: an image that is of none, and so answers for itself
        pa.field("status", pa.string(), nullable=False),
        pa.field("num_images", pa.int32(), nullable=False),
        pa.field("num_ok", pa.int32(), nullable=False),
        pa.field("num_failed", pa.int32(), nullable=False),
        pa.field("statuses", pa.string(), nullable=False),  # of rows: corrupt 1, ok 3
        pa.field("label", pa.int32()),
        pa.field("class_name", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("calibrated_prob", pa.float32()),
        pa.field("decision", pa.string()),
        pa.field("threshold_id", pa.string()),
        pa.field("uri", pa.string()),
        MEMBER_FIELD,
        pa.field("frame", pa.int32()),
        *PLACE_FIELDS,
        pa.field("probs", pa.list_(pa.float32())),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("spec_digest", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("scored_at", TIMESTAMP),
        pa.field("version", pa.int32(), nullable=False),  # the highest of a unit counts
        pa.field("replaces_run_id", pa.string()),  # the run of the version before
        pa.field("runs", pa.list_(pa.string()), nullable=False),  # whose rows it is made of
    ]
)


@dataclass(frozen=True)
class OptionalColumn:
    """A column that rows have for a reason; the rows of a run all have it, or none."""

    field: pa.Field
    when: str
    """The reason: a row option that is on (runs/row_options.py), or a fact of the model
    (`Provenance.reasons` of scoring/shard/rows.py), or "members": the source has containers."""
    after: str
    """The column of PREDICTION_SCHEMA that it follows; those of one place in the order below."""
    is_wide: bool = False
    """Many numbers per row: pages for people leave it out."""


OPTIONAL_COLUMNS: Final = (
    OptionalColumn(MEMBER_FIELD, "members", after="uri"),
    *(OptionalColumn(field, "tiles", after="height_px") for field in PLACE_FIELDS),
    # Where in the source as displayed the answer rests on most; null where no heatmap was made.
    *(
        OptionalColumn(pa.field(name, pa.int32()), "heatmaps", after="height_px")
        for name in ("peak_x_px", "peak_y_px")
    ),
    OptionalColumn(pa.field("labels", pa.list_(pa.string())), "multi_label", after="confidence"),
    OptionalColumn(pa.field("calibrated_prob", pa.float32()), "calibrated", after="confidence"),
    OptionalColumn(pa.field("decision", _REPEATED), "operating_point", after="confidence"),
    OptionalColumn(pa.field("threshold_id", _REPEATED), "operating_point", after="confidence"),
    OptionalColumn(pa.field("unfamiliar", pa.bool_()), "reference", after="confidence"),
    OptionalColumn(pa.field("unfamiliarity", pa.float32()), "reference", after="confidence"),
    OptionalColumn(
        pa.field("probs", pa.list_(pa.float32())), "write_probs", after="topk_prob", is_wide=True
    ),
    OptionalColumn(
        pa.field("embedding", pa.list_(pa.float32())),
        "write_embedding",
        after="topk_prob",
        is_wide=True,
    ),
)


def prediction_schema(reasons: Collection[str] = (), carried: Iterable[pa.Field] = ()) -> pa.Schema:
    """Return the schema of prediction rows.

    Args:
        reasons: those of OPTIONAL_COLUMNS that hold.
        carried: columns of the source that are carried along, at the end.
    """
    fields: list[pa.Field] = []
    for field in PREDICTION_SCHEMA:
        here = [each for each in OPTIONAL_COLUMNS if each.after == field.name]
        fields += [field, *(each.field for each in here if each.when in reasons)]
    return pa.schema([*fields, *carried])


# Rows with every column that they may have by themselves.
WIDEST_SCHEMA = prediction_schema({each.when for each in OPTIONAL_COLUMNS})
# What pages for people leave out.
WIDE_COLUMNS: Final = (
    "topk_label",
    "topk_prob",
    *(each.field.name for each in OPTIONAL_COLUMNS if each.is_wide),
)
# Every name that a column of rows or of plans may have by itself.
ROW_COLUMNS = frozenset(
    {
        *WIDEST_SCHEMA.names,
        *PLAN_SCHEMA.names,
        *(field.name for field in (*_OF_CONTAINERS, FAILED_BEFORE_FIELD)),
    }
)


def carried_fields(planned: pa.Schema) -> list[pa.Field]:
    """Return the fields of planned rows that rows take over beside their own."""
    usual = {*PLAN_SCHEMA.names, *(f.name for f in (*_OF_CONTAINERS, FAILED_BEFORE_FIELD))}
    return [each for each in planned if each.name not in usual]


def plain_field(field: pa.Field) -> pa.Field:
    """Return a field as a table of many files has it: plain text, and it may be null."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = pa.list_(kind.value_type)
    kind = pa.string() if pa.types.is_large_string(kind) else kind
    return pa.field(field.name, kind)
