"""Tables are read strictly: a cell is what its line says, or the line is refused by number."""

import datetime as dt
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.data.columns import SUFFIXES
from imgcls.data.dataset import read_dataset
from imgcls.data.label_manifest import is_manifest, read_manifest, read_uris
from imgcls.errors import ConfigError, SourceError

ROWS = [("a b.png", "cat", "train"), ("c,d;e.png", "dog|owl", "val"), ("f\tg.png", "ox", "")]


def quoted(separator: str) -> str:
    lines = [("uri", "label", "split"), *ROWS]
    return "".join(separator.join(f'"{cell}"' for cell in line) + "\r\n" for line in lines)


def as_json(*, by_line: bool) -> str:
    entries = [dict(zip(("uri", "label", "split"), row, strict=True)) for row in ROWS]
    return "\n".join(map(json.dumps, entries)) if by_line else json.dumps(entries, indent=1)


TABLES: dict[str, Callable[[], bytes]] = {
    **{f"m{i}.csv": lambda s=s: quoted(s).encode() for i, s in enumerate(",;\t|")},  # type: ignore[misc]
    "m.tsv": lambda: quoted("\t").encode(),
    "m.txt": lambda: quoted("\t").encode(),
    "n.txt": lambda: quoted(",").encode(),
    "m.CSV": lambda: b"\xef\xbb\xbf" + quoted(",").encode(),
    "m.jsonl": lambda: as_json(by_line=True).encode(),
    "m.ndjson": lambda: as_json(by_line=True).encode(),
    "m.json": lambda: as_json(by_line=False).encode(),
    "n.json": lambda: as_json(by_line=True).encode(),
    "m.csv.gz": lambda: gzip.compress(quoted(";").encode()),
    "two.csv.gz": lambda: b"".join(gzip.compress(p.encode()) for p in _halves(quoted(","))),
    "m.ndjson.gz": lambda: gzip.compress(as_json(by_line=True).encode()),
    "m.json.gz": lambda: gzip.compress(as_json(by_line=False).encode()),
}


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


@pytest.mark.parametrize("name", TABLES)
def test_every_common_kind_of_table_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TABLES[name]())
    assert is_manifest(str(tmp_path / name))
    rows = read_manifest(str(tmp_path / name))
    assert [(row.uri, row.label, row.split) for row in rows] == [
        (f"{tmp_path}/{uri}", label, split) for uri, label, split in ROWS
    ]
    assert list(read_uris(str(tmp_path / name))) == [row.uri for row in rows]


def test_a_folder_is_never_a_table(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"folder{suffix}").mkdir()
        assert not is_manifest(str(tmp_path / f"folder{suffix}"))
        assert is_manifest(f"s3://b/x{suffix}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "uri,label\na.png,dark, left\n", "row 1 has 3 cells, the header has 2: put a"),
        ("m.csv", "uri,label\na.png,x\n\nscan,7.png,x\n", "row 2 has 3 cells"),
        ("m.csv", "uri,label,group\na.png,x\n", "row 1 has 2 cells, the header has 3: write an"),
        ("m.csv", "uri;label\na;b;x\n", "row 1 has 3 cells.*';' into"),
        ("m.csv", 'uri,label\n"a.png,x\n', "not what its suffix says"),
        ("m.csv", 'uri,label\n"a"b.png,x\n', "not what its suffix says"),
        ("m.csv", "uri,label,label\na,b,c\n", "the column 'label' twice"),
        ("m.csv", "uri,label,group,group\na,b,c,c\n", "the column 'group' twice"),
        ("m.csv", "uri,label,Group\na,b,c\n", "'Group'.*--columns group=Group; if not.*group="),
        ("m.csv", "uri,Label,LABEL\na,b,c\n", "'Label', 'LABEL': say which.*--columns label=Label"),
        ("m.csv", "uri,label\na.png,nan\n", "row 1: label is 'nan', which programs write"),
        ("m.csv", "uri,label,group\na.png,x,NaN\n", "row 1: group is 'NaN'"),
        ("m.jsonl", '{"uri": "a", "label": "x", "label": "y"}\n', "'label' is there twice"),
        ("m.jsonl", '{"uri": "a", "label": NaN}\n', "row 1: label is NaN"),
        ("m.jsonl", '{"uri": "a", "label": true}\n', "row 1: label is true, not text"),
        ("m.jsonl", '{"uri": "a", "label": 0.5}\n', "row 1: label is the number 0.5"),
        ("m.jsonl", '{"uri": "a", "label": {"name": "x"}}\n', "row 1: label is an object"),
        ("m.jsonl", '{"uri": ["a"], "label": "x"}\n', "row 1: uri is a list"),
        ("m.jsonl", '{"uri": "a", "label": "x", "group": ["p"]}\n', "row 1: group is a list"),
        ("m.jsonl", '{"uri": "a", "label": "x", "weight": true}\n', "weight True"),
        ("m.json", "[" * 100_000, "nested"),
        ("m.json", '{"a": 1}', "no column 'uri'"),
        ("m.json", '[{"uri": "a", "label": ' + "[" * 70 + "]" * 70 + "}]", "nested"),
    ],
)
def test_what_cannot_be_read_safely_is_refused_by_row(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_manifest(str(tmp_path / name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([["x"]]), "label is a list"),
        (pa.array([b"\xff"]), "bytes that are not UTF-8"),
        (pa.array([float("nan")]), "label is NaN"),
        (pa.array([dt.date(2026, 1, 1)]), "label is a date, not text"),
        (pa.array([True]), "label is true"),
    ],
)
def test_parquet_cells_that_are_no_names_are_refused(
    values: pa.Array, message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"uri": ["a.png"], "label": values}), tmp_path / "m.parquet")
    with pytest.raises(SourceError, match=f"row 1.*{message}"):
        read_manifest(str(tmp_path / "m.parquet"), multi_label=False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([0.0, 1.0]), ["0", "1"]),  # what pandas makes of whole numbers with a gap
        (pa.array([0, 1]), ["0", "1"]),
        (pa.array([b"x", b"y"]), ["x", "y"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array([["x", "y"], []]), ["x|y", ""]),
    ],
)
def test_parquet_cells_become_the_names_that_they_mean(
    values: Any, expected: list[str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"uri": ["a", "b"], "label": values}), tmp_path / "m.parquet")
    rows = read_manifest(str(tmp_path / "m.parquet"), multi_label=True)
    assert [row.label for row in rows] == expected


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["uri", "label", "label"])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(SourceError, match="'label' twice"):
        read_manifest(str(tmp_path / "m.parquet"))


def test_a_list_of_labels_needs_multi_label(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"uri": "a", "label": ["x"]}\n')
    with pytest.raises(SourceError, match=r"row 1: label is a list.*--multi-label"):
        read_manifest(str(tmp_path / "m.jsonl"), multi_label=False)


def test_padded_groups_are_one_group_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.csv").write_text("uri,label,group,split\na,x,P1,train\nb,y,P1 , val\n")
    rows = read_manifest(str(tmp_path / "m.csv"))
    assert [(row.group, row.split) for row in rows] == [("P1", "train"), ("P1", "val")]
    assert "blanks around 1 cells of group are left out" in caplog.text


def test_columns_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "m.csv").write_text("uri;label;patient\na;x;P1\n")
    read_manifest(str(tmp_path / "m.csv"))
    assert "columns that are not read: 'patient'" in caplog.text
    assert "separated by ';'" in caplog.text


def test_a_broken_gzip_file_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(quoted(",").encode() * 50)
    for content in (packed[:-20], b"not gzip", packed[:40]):
        (tmp_path / "m.csv.gz").write_bytes(content)
        with pytest.raises(SourceError, match=r"ends in mid-file|not what its suffix says"):
            read_manifest(str(tmp_path / "m.csv.gz"))


def test_local_uris_have_one_spelling(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "m.csv").write_text("uri,label\n./a.png,x\na.png,x\nb/../a.png,x\n")
    dataset = read_manifest(str(tmp_path / "m.csv"))
    assert {row.uri for row in dataset} == {f"{tmp_path}/a.png"}
    (tmp_path / "labels" / "m.csv").write_text("uri,label\n../images/a.png,x\n")
    [row] = read_manifest(str(tmp_path / "labels" / "m.csv"))
    assert (row.uri, row.key) == (f"{tmp_path}/images/a.png", "../images/a.png")


def test_uris_with_blanks_around_them_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.csv").write_text("uri,label\na.png ,x\n")
    [row] = read_manifest(str(tmp_path / "m.csv"))
    assert row.uri == f"{tmp_path}/a.png "
    assert "1 uris begin or end with a blank" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((" dark", " light"), "surrounding blanks: ' dark'"),
        (("caf\u00e9", "cafe\u0301"), r"look alike: 'cafe\\u0301', 'caf\\xe9'"),
        (("cat", "c\u200bat"), r"look alike: 'cat', 'c\\u200bat'"),
        (("type 1", "type\u00a01"), r"look alike: 'type 1', 'type\\xa01'"),
    ],
)
def test_names_that_look_alike_are_refused_so_that_one_sees_why(
    labels: tuple[str, str], message: str, tmp_path: Path
) -> None:
    lines = [f"{label}{i}.png,{label}" for label in labels for i in range(5)]
    (tmp_path / "m.csv").write_text("\n".join(["uri,label", *lines]))
    with pytest.raises(ConfigError, match=message):
        read_dataset(str(tmp_path / "m.csv"), val_fraction=0.2, test_fraction=0.2, seed=0)
