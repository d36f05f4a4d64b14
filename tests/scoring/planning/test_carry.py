"""Columns of a source travel into the rows: typed, null where absent, under their own names."""

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.config.scoring import NightlyConfig, VerifyConfig
from imgcls.errors import ConfigError, SourceError
from imgcls.nightly import nightly
from imgcls.schema import PREDICTION_SCHEMA
from imgcls.scoring.publishing.verify import verify
from imgcls.storage.objects import put
from tests.scoring.nights import leave_unfinished, make_night
from tests.scoring.tiny import image_bytes, published_rows


@pytest.fixture
def night(tmp_path: Path) -> NightlyConfig:
    return make_night(tmp_path, num_images=0)


def _put_images(night: NightlyConfig, *names: str) -> None:
    for number, name in enumerate(names):
        put(f"{night.source}/{name}", image_bytes(number))


def _carried(night: NightlyConfig) -> tuple[pa.Schema, dict[str, list[Any]]]:
    """Publish; return the extra columns and their values in order of uri."""
    result = nightly(night)
    assert result["verified"], result
    verify(VerifyConfig(night.output))
    table = published_rows(night.output).sort_by("uri")
    extra = [name for name in table.column_names if name not in PREDICTION_SCHEMA.names]
    extra = [name for name in extra if name not in ("date", "run")]
    return table.select(extra).schema, table.select(extra).to_pydict()


def test_a_csv_brings_its_columns_along_typed_and_null_where_absent(
    night: NightlyConfig, tmp_path: Path
) -> None:
    _put_images(night, "a.png", "b.png", "c.png")
    lines = [
        "uri,label,Scanner,thick,num,lot,empty",
        "a.png,x,GE,1.5,7,007,", "b.png,y,,2,-8,012,", "c.png,z,Siemens,,,1,",
    ]  # fmt: skip
    put(f"{night.source}/list.csv", "\n".join(lines).encode())
    schema, values = _carried(replace(night, source=f"{night.source}/list.csv"))
    assert values == {
        "Scanner": ["GE", None, "Siemens"],
        "thick": [1.5, 2.0, None],
        "num": [7, -8, None],
        "lot": ["007", "012", "1"],
        "empty": [None, None, None],
    }
    kinds = [pa.string(), pa.float64(), pa.int64(), pa.string(), pa.string()]
    assert schema.types == kinds


def test_parquet_keeps_its_types(night: NightlyConfig) -> None:
    _put_images(night, "a.png", "b.png")
    moments = [dt.datetime(2026, 11, 22, 6, tzinfo=dt.UTC), None]
    columns = {
        "uri": pa.array(["a.png", "b.png"]),
        "taken": pa.array(moments, pa.timestamp("us", tz="UTC")),
        "day": pa.array([dt.date(2026, 1, 2), None], pa.date32()),
        "small": pa.array([3, None], pa.int16()),
        "good": pa.array([True, None]),
        "cam": pa.array(["x", None]).dictionary_encode(),
    }
    path = Path(night.source) / "list.parquet"
    pq.write_table(pa.table(columns), path)
    schema, values = _carried(replace(night, source=str(path)))
    assert values == {name: column.to_pylist() for name, column in columns.items() if name != "uri"}
    assert schema.field("taken").type == pa.timestamp("us", tz="UTC")
    assert schema.field("day").type == pa.date32()
    assert schema.field("small").type == pa.int16()
    assert schema.field("cam").type == pa.string()


def test_keys_give_columns_of_paths_and_rename_those_of_a_manifest(night: NightlyConfig) -> None:
    _put_images(night, "camera=3/lot_17/a.png", "x/b_lot_4.png")
    keys = ("camera", "folder:1", r"lot=name:lot_(\d+)", "folder:-1")
    schema, values = _carried(replace(night, carry=keys))
    assert values == {
        "camera": ["3", None],
        "folder_1": ["camera=3", "x"],
        "lot": [None, "4"],
        "folder_last_1": ["lot_17", "x"],
    }
    assert set(schema.types) == {pa.string()}


def test_a_manifest_and_keys_together(night: NightlyConfig) -> None:
    _put_images(night, "camera=3/a.png", "camera=4/b.png")
    lines = ["uri,status,part", "camera=3/a.png,fine,1", "camera=4/b.png,,2"]
    put(f"{night.source}/list.csv", "\n".join(lines).encode())
    manifest = replace(night, source=f"{night.source}/list.csv")
    with pytest.raises(ConfigError, match=r"column 'status'.*--carry my_status=status"):
        nightly(manifest)
    _, values = _carried(replace(manifest, carry=("verdict=status", "camera")))
    assert values == {"part": [1, 2], "verdict": ["fine", None], "camera": ["3", "4"]}
    other = replace(manifest, output=f"{night.output}2")
    _, values = _carried(replace(other, carry=("none", "part", "place=uri")))
    assert values == {"part": [1, 2], "place": [None, None]}


@pytest.mark.parametrize(
    ("carry", "message"),
    [
        (("label=name:x",), "rows have a column 'label'"),
        (("camera", "camera=folder:1"), "a column 'camera' is carried already"),
        ((r"name:lot_\d",), "give it a name, as in lot=name"),
        (("dicom:PatientName",), "may tell who a patient is; what is carried is Modality"),
        (("dicom:StudyDate",), "may tell who a patient is"),
        (("dicom:PatientID",), "needs a secret key.*IMGCLS_IDENTITY_KEY"),
    ],
)
def test_what_may_not_be_carried_is_refused_before_anything_is_written(
    carry: tuple[str, ...], message: str, night: NightlyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMGCLS_IDENTITY_KEY", raising=False)
    _put_images(night, "a.png")
    with pytest.raises(ConfigError, match=message):
        nightly(replace(night, carry=carry))
    assert not list(Path(night.output).rglob("plan*"))


def test_an_unfinished_night_is_continued_with_the_same_carry_only(night: NightlyConfig) -> None:
    _put_images(night, "camera=3/a.png", "camera=4/b.png")
    leave_unfinished(night, carry=("camera",))
    _, values = _carried(replace(night, carry=("camera",)))
    assert values == {"camera": ["3", "4"]}
    _put_images(night, "camera=5/c.png")
    leave_unfinished(night, carry=("camera",))
    assert nightly(night)["run_id"] == "nightly-2026-11-22-3"


def test_plain_rows_keep_exactly_their_columns(night: NightlyConfig) -> None:
    _put_images(night, "camera=3/a.png")
    schema, _ = _carried(night)
    assert schema.names == []


def test_manifests_that_contradict_each_other_are_refused(night: NightlyConfig) -> None:
    _put_images(night, "a.png", "b.png")
    put(f"{night.source}/one.csv", b"uri,x\na.png,1\n")
    put(f"{night.source}/two.csv", b"uri,x\nb.png,word\n")
    config = replace(night, source=f"{night.source}/one.csv", also=(f"{night.source}/two.csv",))
    with pytest.raises(SourceError, match="columns of one name and two types"):
        nightly(config)
