"""What was observed of many images: a bounded sample of their facts and answers, in one file.

In: tables of rows and of facts, shard by shard. Out: `Observed`. Invariant: which images are in the
sample is drawn by hash of their names, so whoever observes the same night has the same sample; a
reference in a bundle holds no name, and of a group no more than that its images belong together.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imgcls.errors import SourceError
from imgcls.inference.sketch import SKETCH_SIZE
from imgcls.runs.facts import lot_of
from imgcls.schema import TIMESTAMP
from imgcls.storage.json_text import parse_object

# So many images tell a twentieth of all from none; their file is smaller than a megabyte.
MAX_IMAGES: Final = 4096
CARRIED: Final = "carried:"
FOLDER: Final = f"{CARRIED}folder"
# A column with more values names images or patients, not scanners or cameras.
_MAX_VALUES: Final = 64
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
_TABLE, _ABOUT = "images.parquet", "about.json"

SCHEMA: Final = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("member", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("taken_at", TIMESTAMP),
        pa.field("unit", pa.string()),
        pa.field("status", pa.string()),
        pa.field("format", pa.string()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("brightness", pa.float32()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("levels", pa.int32()),
        pa.field("bits", pa.int32()),
        pa.field("modality", pa.string()),
        pa.field("class_name", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("decision", pa.string()),
        pa.field("is_repeated", pa.bool_()),
        pa.field("has_picture", pa.bool_()),  # a thumbnail, in the facts of the run
        pa.field("sketch", pa.list_(pa.float16())),
    ]
)
_NAMES: Final = ("uri", "member", "frame", "taken_at")
_LOOKS: Final = ("width_px", "height_px", "brightness", "contrast", "sharpness", "levels")


@dataclass(frozen=True, eq=False)
class Observed:
    """A sample of images.

    Attributes:
        table: SCHEMA, and a text column `carried:NAME` for each that was carried.
        num_images: how many there were in all.
        about: JSON-able, for people: what was observed, when.
    """

    table: pa.Table
    num_images: int
    about: dict[str, Any] = field(default_factory=dict)
    _seen: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # what was asked for, or added

    @property
    def carried(self) -> list[str]:
        """Names of the columns that were carried, with their prefix."""
        return [name for name in self.table.column_names if name.startswith(CARRIED)]

    @property
    def num_units(self) -> int:
        """How many groups there are; an image of none is one by itself."""
        return len(np.unique(self.units()))

    def units(self) -> npt.NDArray[np.int64]:
        """Return the number of each image's group."""
        found: npt.NDArray[np.int64] = self._once("unit", self._read_units)
        return found

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """Return a column of numbers, NaN where there is none."""
        found: npt.NDArray[np.float64]
        found = self._once(f"number {name}", lambda: self._read_numbers(name))
        return found

    def texts(self, name: str) -> npt.NDArray[np.object_]:
        """Return a column as text, None where there is none."""
        found: npt.NDArray[np.object_]
        found = self._once(f"text {name}", lambda: self._read_texts(name))
        return found

    def sketches(self) -> npt.NDArray[np.float64]:
        """Return the sketches [B,S], NaN in the rows without one."""
        found: npt.NDArray[np.float64] = self._once("sketch", self._read_sketches)
        return found

    def with_numbers(self, **numbers: npt.NDArray[np.float64]) -> "Observed":
        """Return the same images, of which more is known: numbers by name, [B] or [B,P]."""
        more = {f"number {name}": values for name, values in numbers.items()}
        return replace(self, _seen=self._seen | more)

    def _once(self, name: str, read: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if name not in self._seen:
            self._seen[name] = read()
        return self._seen[name]

    def _read_units(self) -> npt.NDArray[np.int64]:
        codes = self.table["unit"].combine_chunks().dictionary_encode().indices
        return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64)

    def _read_numbers(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self.table.column_names:
            return np.full(len(self.table), np.nan)
        column = self.table[name].cast(pa.float64())
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)

    def _read_texts(self, name: str) -> npt.NDArray[np.object_]:
        return np.array(self.table[name].cast(pa.string()).to_pylist(), dtype=object)

    def _read_sketches(self) -> npt.NDArray[np.float64]:
        column = self.table["sketch"].combine_chunks()
        found = np.full((len(column), SKETCH_SIZE), np.nan)
        has = pc.is_valid(column).to_numpy(zero_copy_only=False)
        if has.any():
            values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
            found[has] = values.astype(np.float64).reshape(-1, SKETCH_SIZE)
        return found

    def where(self, is_in: npt.NDArray[np.bool_]) -> "Observed":
        """Return some of the images."""
        seen = {name: values[is_in] for name, values in self._seen.items()}
        return Observed(self.table.filter(pa.array(is_in)), int(is_in.sum()), self.about, seen)

    def without_names(self) -> "Observed":
        """Return the same for a bundle: without names, and with numbers for groups."""
        table = self.table
        for name in _NAMES:
            at = table.schema.get_field_index(name)
            table = table.set_column(
                at, SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type)
            )
        codes = table["unit"].combine_chunks().dictionary_encode().indices.cast(pa.string())
        at = table.schema.get_field_index("unit")
        kept = [name for name in table.column_names if name != FOLDER]
        table = table.set_column(at, SCHEMA.field("unit"), codes).select(kept)
        return Observed(table, self.num_images, self.about)

    def to_bytes(self) -> bytes:
        """Return it as a file; equal ones are equal bytes."""
        parquet, packed = io.BytesIO(), io.BytesIO()
        pq.write_table(self.table, parquet, compression="zstd")
        about = {"format_version": 1, "num_images": self.num_images, "about": self.about}
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_TABLE, _ZIP_TIME), parquet.getvalue())
            archive.writestr(zipfile.ZipInfo(_ABOUT, _ZIP_TIME), json.dumps(about, indent=1))
        return packed.getvalue()


def parse_observed(data: bytes) -> Observed:
    """Return what `to_bytes` gave.

    Raises:
        ValueError: it is something else, or of a later version.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            about = parse_object(archive.read(_ABOUT), _ABOUT, SourceError)
            table = pq.read_table(io.BytesIO(archive.read(_TABLE)))
    except (zipfile.BadZipFile, KeyError, pa.ArrowException, SourceError) as error:
        raise ValueError(f"not what imgcls observed: {error}") from error
    if about["format_version"] != 1:
        raise ValueError(f"observed by another version of imgcls ({about['format_version']!r})")
    return Observed(table, int(about["num_images"]), about["about"])


def pool(many: Iterable[Observed]) -> Observed | None:
    """Return several samples as one, thinned evenly to MAX_IMAGES; None of none."""
    found = [one for one in many if len(one.table)]
    if not found:
        return None
    table = pa.concat_tables([one.table for one in found], promote_options="default")
    if len(table) > MAX_IMAGES:
        table = table.take(np.linspace(0, len(table) - 1, MAX_IMAGES).astype(np.int64))
    return Observed(table, sum(one.num_images for one in found), found[-1].about)


class Observing:
    """Takes in tables of rows and facts, shard by shard; keeps a sample.

    Args:
        carried: columns of the rows that were carried from the source.
        unit: which of them tells what belongs together; "" where none does.
    """

    def __init__(self, carried: Iterable[str] = (), unit: str = "") -> None:
        self._carried, self._unit = [name for name in carried if name != unit], unit
        self._tables: list[pa.Table] = []
        self._lots: list[npt.NDArray[np.float64]] = []
        self._looks: list[npt.NDArray[np.uint64]] = []
        self._num_images = self._num_held = 0

    def add(self, rows: pa.Table, facts: pa.Table) -> None:
        """Take in a shard: prediction rows, and FACTS_SCHEMA in their order."""
        if not rows.num_rows:
            return
        names = zip(facts["uri"].to_pylist(), facts["member"].to_pylist(), strict=True)
        named = list(names)
        self._lots.append(np.array([lot_of(uri, member) for uri, member in named]))
        self._looks.append(_hash_looks(facts))
        self._tables.append(self._columns(rows, facts, named))
        self._num_images += rows.num_rows
        self._num_held += rows.num_rows
        if self._num_held > 4 * MAX_IMAGES:
            self._thin()

    def done(self, about: dict[str, Any] | None = None) -> Observed:
        """Return the sample."""
        if not self._tables:
            return Observed(SCHEMA.empty_table(), 0, about or {})
        self._thin()
        [table] = self._tables
        looks, counts = np.unique(np.concatenate(self._looks), return_counts=True)
        many = looks[counts > 1]
        hashes = table["_looks"].to_numpy()
        is_repeated = pa.array(np.isin(hashes, many), mask=hashes == 0)
        at = table.schema.get_field_index("is_repeated")
        table = table.set_column(at, "is_repeated", is_repeated).drop_columns(["_looks"])
        for name in [name for name in table.column_names if name.startswith(CARRIED)]:
            if len(pc.unique(table[name])) > _MAX_VALUES:
                table = table.drop_columns([name])
        return Observed(table, self._num_images, about or {})

    def _thin(self) -> None:
        table, lots = pa.concat_tables(self._tables), np.concatenate(self._lots)
        if len(lots) > MAX_IMAGES:
            kept = np.sort(np.argpartition(lots, MAX_IMAGES)[:MAX_IMAGES])
            table, lots = table.take(kept), lots[kept]
        self._tables, self._lots, self._num_held = [table], [lots], len(lots)

    def _columns(
        self, rows: pa.Table, facts: pa.Table, named: list[tuple[str, str | None]]
    ) -> pa.Table:
        there = set(rows.column_names)
        arrays = []
        for each in SCHEMA:
            if each.name == "unit":
                arrays.append(self._units(rows, named))
            elif each.name == "taken_at" and "last_modified" in there:
                arrays.append(rows["last_modified"].cast(each.type))
            elif each.name == "has_picture":
                arrays.append(facts["thumbnail_for"].is_valid())
            elif each.name in facts.column_names:
                arrays.append(facts[each.name])
            elif each.name in there:
                arrays.append(rows[each.name].cast(each.type))
            else:
                arrays.append(pa.nulls(rows.num_rows, each.type))
        table = pa.table(arrays, schema=SCHEMA).append_column("_looks", pa.array(self._looks[-1]))
        folders = [(member or uri).rpartition("/")[0].rpartition("/")[2] for uri, member in named]
        table = table.append_column(FOLDER, pa.array(folders, pa.string()))
        for name in self._carried:
            if name in there:
                table = table.append_column(f"{CARRIED}{name}", rows[name].cast(pa.string()))
        return table

    def _units(self, rows: pa.Table, named: list[tuple[str, str | None]]) -> pa.Array:
        own = [f"{uri}\0{member or ''}" for uri, member in named]
        if self._unit not in rows.column_names:
            return pa.array(own, pa.string())
        groups = rows[self._unit].cast(pa.string()).to_pylist()
        return pa.array([group or one for group, one in zip(groups, own, strict=True)], pa.string())


def _hash_looks(facts: pa.Table) -> npt.NDArray[np.uint64]:
    """Return a number per image, equal for those that look alike in every fact; 0 without any."""
    columns = [facts[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in _LOOKS]
    looks_BX = np.ascontiguousarray(np.stack(columns, axis=1), np.float64)
    has = np.atleast_1d(np.isfinite(looks_BX).all(axis=1))
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest()) or 1 if ok else 0
            for row, ok in zip(looks_BX, has.tolist(), strict=True)
        ],
        np.uint64,
    )
