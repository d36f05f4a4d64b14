"""Labelled images with their splits: a folder tree or a manifest, read once and frozen.

In: DATA, fractions, seed. Out: a `Dataset`. Invariant: training and evaluation read DATA by this
function alone, so the test images of an evaluation are those that no training with the same seed
and fractions has seen; `split_digest` proves it.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from imgcls.config.source_options import ListingOptions
from imgcls.data.boxes import LabelledBox
from imgcls.data.class_names import (
    ClassNames,
    enumerate_names,
    from_labels,
    refuse_lookalikes,
)
from imgcls.data.folder_names import SPLITS, split_of
from imgcls.data.label_manifest import (
    MULTI_LABEL_SEPARATOR,
    LabelRow,
    Roles,
    write_manifest,
)
from imgcls.data.left_out import LeftOut, leave_out, refuse_unknown, split_label
from imgcls.data.rows import Reading, read_rows_of
from imgcls.data.splits.draw import Draw, Known, Unit
from imgcls.errors import ConfigError, SourceError
from imgcls.sources.members import Member

_MAX_CLASSES_SHOWN = 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image. `labels` has one entry, or any number in a multi-label data set."""

    uri: str
    labels: tuple[int, ...]
    class_name: str  # as DATA has it; of several labels, joined by "|"
    split: str
    group: str
    key: str
    weight: float
    slice_name: str = ""
    boxes: tuple[LabelledBox, ...] = ()
    member: Member | None = None
    """Of an image in a container; its uri is that of the container, "/", its name."""
    unit: str = ""  # the study or part that it is of, as it is: never written

    @property
    def label(self) -> int:
        """The only label of a single-label image."""
        assert len(self.labels) == 1, f"{self.uri} has {len(self.labels)} labels"
        return self.labels[0]


@dataclass(frozen=True)
class Dataset:
    """All labelled images, sorted by key, and what was left out of DATA on the way."""

    samples: tuple[Sample, ...]
    class_names: ClassNames
    split_digest: str
    num_duplicates: int = 0
    num_skipped: dict[str, int] = field(default_factory=dict)
    names_splits: bool = False  # DATA itself says which image is of which split
    left_out: LeftOut = field(default_factory=LeftOut)
    moved: dict[str, str] = field(default_factory=dict)
    """Sides that no hash gives, see `Draw.moved`; empty where DATA names its test images."""

    def of_split(self, split: str) -> list[Sample]:
        """Return the samples of "train", "val", "test", or "all"."""
        return [sample for sample in self.samples if split in (sample.split, "all")]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images per split and class name (multi-label: of each label)."""
        return count_images(self.samples, self.class_names)


def read_dataset(
    data: str,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    known: Callable[[], Known | None] = Known,
    is_balanced: bool = False,
    class_names: ClassNames | None = None,
    multi_label: bool = False,
    roles: Roles | None = None,
    options: ListingOptions | None = None,
    may_lack_labels: bool = False,
    group_by_folder: bool = False,
    keeps_units: bool = False,
) -> Dataset:
    """Read DATA and give every image its split.

    Splits that DATA names are kept; if it names some but no val, val is drawn from its train images
    (a missing test is not). Where it names none, both are drawn by hash, see `split.py`.

    Args:
        data: Folder tree or manifest, any store.
        val_fraction: Share to draw for validation, in [0, 1).
        test_fraction: Share to draw for testing, in [0, 1).
        seed: Seed of the draw.
        known: Gives the sides of an earlier draw, which are kept.
        is_balanced: Sides hold their shares, where a hash alone may miss them; see `Draw`.
        class_names: The classes of a model to evaluate; by default those that DATA has.
        multi_label: A manifest's label is any number of class names joined by "|", or empty.
        roles: Keys that give the group, the slice or the label of an image.
        options: What of DATA is meant, what is read beside it, and how a manifest is laid out.
        may_lack_labels: Rows without a label are left out and counted; of a model to evaluate also
            those with a label that it does not know.
        group_by_folder: In a folder tree, the first folder below a class is the group.
        keeps_units: All images of a unit are on one side.

    Raises:
        ConfigError: fractions out of range, classes that are not in `class_names`, one class only,
            names that differ only in case.
        SourceError: missing, empty or contradictory data, or too few images of a class.
    """
    draw = Draw(val_fraction, test_fraction, seed, known, is_balanced)
    options = options or ListingOptions()
    known_names = () if class_names is None else class_names.names
    reading = Reading(
        roles or Roles(), options, multi_label, may_lack_labels, group_by_folder, known_names
    )
    found_rows = read_rows_of(data, reading)
    rows = found_rows.rows
    unique, left_out = unique_rows(rows), LeftOut()
    if found_rows.are_texts and not multi_label:
        refuse_joined(sorted({row.label for row in unique}), class_names, data)
    if may_lack_labels:
        unique, left_out = leave_out(unique, class_names, multi_label, data)
    names_of = {label: split_label(label, multi_label) for label in {row.label for row in unique}}
    names_by_uri = {row.uri: names_of[row.label] for row in unique}
    found = frozenset[str]().union(*names_of.values())
    if class_names is None:
        class_names = from_labels(found)
        refuse_lookalikes(found, data)
    refuse_unknown(found, class_names, data)
    names_splits = any(row.split for row in unique)
    if keeps_units:
        unique = _grouped_by_unit(unique)
    unique, moved = _with_splits(unique, names_by_uri, draw, data)
    if keeps_units:
        _refuse_cut_units(unique, data)
    samples = tuple(
        _sample(row, names_by_uri[row.uri], class_names, multi_label)
        for row in sorted(unique, key=lambda row: row.key)
    )
    return Dataset(
        samples=samples,
        class_names=class_names,
        split_digest=split_digest(samples),
        num_duplicates=_num_repeated(rows, unique),
        num_skipped=found_rows.num_skipped,
        names_splits=names_splits,
        left_out=left_out,
        moved=moved,
    )


def _sample(
    row: LabelRow, names: Iterable[str], class_names: ClassNames, multi_label: bool
) -> Sample:
    return Sample(
        uri=row.uri,
        labels=tuple(sorted(map(class_names.label_of, names))),
        class_name=row.label,
        split=row.split,
        group=row.group,
        key=row.key,
        weight=row.weight,
        slice_name=row.slice_name,
        boxes=_boxes(row, class_names, multi_label),
        member=row.member,
        unit=row.unit,
    )


def _boxes(row: LabelRow, class_names: ClassNames, multi_label: bool) -> tuple[LabelledBox, ...]:
    return tuple(
        LabelledBox(
            *place,
            labels=tuple(sorted(map(class_names.label_of, split_label(label, multi_label)))),
            class_name=label,
        )
        for place, label in row.boxes
    )


def count_images(samples: Iterable[Sample], class_names: ClassNames) -> dict[str, dict[str, int]]:
    """Return the number of images per split and class name (multi-label: of each label)."""
    tally = Counter((s.split, label) for s in samples for label in s.labels)
    return {
        split: {name: tally[split, label] for label, name in enumerate(class_names.names)}
        for split in SPLITS
    }


def describe_classes(dataset: Dataset) -> Iterator[str]:
    """Yield what DATA was read as, a line per class: its name and its images by split."""
    counts = dataset.counts()
    by_class = {
        name: {split: counts[split][name] for split in SPLITS} for name in dataset.class_names.names
    }
    in_order = sorted(by_class.items(), key=lambda item: -sum(item[1].values()))
    shown = in_order if len(in_order) <= _MAX_CLASSES_SHOWN else in_order[: _MAX_CLASSES_SHOWN - 1]
    for name, by_split in shown:
        parts = ", ".join(f"{count} {split}" for split, count in by_split.items() if count)
        yield f"class {name!r}: {sum(by_split.values())} images ({parts or 'none'})"
    rest = in_order[len(shown) :]
    if rest:
        name, by_split = rest[-1]
        yield (
            f"and {len(rest)} classes with fewer images each, the last is {name!r} with "
            f"{sum(by_split.values())}"
        )


def freeze_split(samples: Iterable[Sample], *, slice_by: str = "") -> bytes:
    """Return a CSV manifest that gives these samples these splits again, with the same digest.

    Args:
        samples: All of them.
        slice_by: What the column of their slices is called; "" for none.
    """
    rows = (
        LabelRow(
            *(s.uri, s.key, s.class_name, s.split, s.group, s.weight, s.slice_name),
            boxes=tuple((box.place, box.class_name) for box in s.boxes),
        )
        for s in sorted(samples, key=lambda sample: sample.key)
    )
    return write_manifest(rows, slice_by=slice_by)


def split_digest(samples: Iterable[Sample]) -> str:
    """Return the sha256 (hex) of every (key, class name, split), sorted: the frozen split."""
    lines = sorted(json.dumps([s.key, s.class_name, s.split]) for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def unique_rows(rows: list[LabelRow]) -> list[LabelRow]:
    """Return each image once, with all of its boxes, and the labels of all of them.

    Raises:
        SourceError: an image that is listed twice, unlike, other than with two boxes.
    """
    by_uri: dict[str, LabelRow] = {}
    for row in rows:
        first = by_uri.setdefault(row.uri, row)
        if first is row:
            continue
        if (row.member is None) != (first.member is None):
            raise SourceError(f"{row.uri} is an object and a member of a container: move one away")
        has_boxes = bool(row.boxes and first.boxes)
        for column in ("label", "split", "group", "weight", "slice_name"):
            given, before = getattr(row, column), getattr(first, column)
            if given != before and not (column == "label" and has_boxes):
                # A group may be a patient, who is named nowhere.
                values = "s that differ" if column == "group" else f" {before!r} and {given!r}"
                raise SourceError(f"{row.uri} is listed twice, with {column}{values}: keep one")
        if bool(row.boxes) != bool(first.boxes):
            raise SourceError(
                f"{row.uri} is listed with a box and without one: a row without a box says that "
                "nothing more is known; keep the rows with a box"
            )
        if has_boxes:
            labels = dict.fromkeys(
                label for each in (first, row) for label in each.label.split(MULTI_LABEL_SEPARATOR)
            )
            boxes = tuple(dict.fromkeys((*first.boxes, *row.boxes)))
            label = first.label if row.label == first.label else MULTI_LABEL_SEPARATOR.join(labels)
            by_uri[row.uri] = replace(first, boxes=boxes, label=label)
    unique = list(by_uri.values())
    if num := _num_repeated(rows, unique):
        _log.info("%d images are listed more than once: each counts once", num)
    return unique


def _num_repeated(rows: list[LabelRow], unique: list[LabelRow]) -> int:
    """Return how many rows say nothing that another one does not say."""
    return len(rows) - sum(max(1, len(row.boxes)) for row in unique)


def refuse_joined(labels: list[str], class_names: ClassNames | None, data: str) -> None:
    """Refuse labels that join several of the other ones, or of the model's classes.

    Raises:
        ConfigError: names one, and says what such data need.
    """
    num_labels = Counter(part for label in labels for part in label.split(MULTI_LABEL_SEPARATOR))
    known = class_names.names if class_names else [n for n, num in num_labels.items() if num > 1]
    for label in labels:
        parts = label.split(MULTI_LABEL_SEPARATOR)
        is_one_class = class_names is not None and label in class_names.names
        if len(parts) > 1 and not is_one_class and not set(parts).isdisjoint(known):
            raise ConfigError(
                f"{data} gives images several classes, such as {label!r}: that needs a model "
                "trained with --multi-label"
            )


def _with_splits(
    rows: list[LabelRow],
    names_by_uri: dict[str, frozenset[str]],
    draw: Draw,
    data: str,
) -> tuple[list[LabelRow], dict[str, str]]:
    """Return the rows with a split each, as DATA says, the rest drawn; and what no hash gives."""
    named = {row.split for row in rows}
    unknown = sorted(named - {*SPLITS, ""})
    if unknown:
        raise SourceError(
            f"{data} names unknown splits {enumerate_names(unknown)}; they are {', '.join(SPLITS)}"
            + "".join(f"; {name!r} may mean {split_of(name)}" for name in unknown if split_of(name))
        )
    if named == {""}:
        to_split = rows
    elif "" in named:
        without = next(row.uri for row in rows if not row.split)
        raise SourceError(f"{data} gives some images a split and others none, such as {without}")
    else:
        _refuse_untrained(rows, names_by_uri, data)
        if "val" in named or not draw.val_fraction:
            return rows, {}
        _log.info("%s names no val: it is drawn from its train images", data)
        to_split = [row for row in rows if row.split == "train"]
        draw = replace(draw, test_fraction=0.0)
    units = dict[str, Unit]()
    for row in to_split:
        unit = units.setdefault(_unit(row), Unit(row.group))
        unit.keys.append(row.key)
        unit.images.update(names_by_uri[row.uri])
    split = draw.sides(units)
    drawn = [
        row if row.split not in ("", "train") else replace(row, split=split[_unit(row)])
        for row in rows
    ]
    return drawn, draw.moved(units, split)


def _grouped_by_unit(rows: list[LabelRow]) -> list[LabelRow]:
    """Return the rows with the unit as group, where they have no other."""
    return [row if row.group else replace(row, group=row.unit) for row in rows]


def _refuse_cut_units(rows: list[LabelRow], data: str) -> None:
    """Refuse units that lie on several sides; they are named by an image, for they may be patients.

    Raises:
        SourceError: there is one, or one of several groups, which are to stay whole, too.
    """
    first = dict[str, LabelRow]()
    for row in rows:
        other = first.setdefault(row.unit, row) if row.unit else row
        if other.group != row.group:
            raise SourceError(
                f"--unit: images of one unit are of two groups (--group), such as {other.uri} and "
                f"{row.uri}: a group holds whole units"
            )
        if other.split != row.split:
            raise SourceError(
                f"--unit: {data} gives images of one unit two sides, such as {other.uri} "
                f"({other.split}) and {row.uri} ({row.split}): a unit is learnt and measured whole"
            )


def _unit(row: LabelRow) -> str:
    """Return what stays together: the group, or else the image itself."""
    return f"group {row.group}" if row.group else f"image {row.key}"


def _refuse_untrained(
    rows: list[LabelRow], names_by_uri: dict[str, frozenset[str]], data: str
) -> None:
    trained, found = set[str](), set[str]()
    for row in rows:
        found |= names_by_uri[row.uri]
        if row.split == "train":
            trained |= names_by_uri[row.uri]
    if trained and found - trained:
        missing = enumerate_names(sorted(found - trained))
        raise SourceError(f"{data} has classes without an image in train: {missing}")
