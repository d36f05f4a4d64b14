import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imgcls.data.label_manifest import read_manifest, read_uris
from imgcls.errors import SourceError
from imgcls.storage import objects


def test_csv_labels_are_text_and_uris_relative_to_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(
        "\ufeffuri,label,group,weight,extra\r\n"
        'sub/a b.png,007,p1,2,x\r\n"/abs/c,d.png",7,,,\r\ns3://b/k#1.png,True,p2,0.5,\r\n'.encode()
    )
    rows = read_manifest(str(path))
    assert [row.uri for row in rows] == [
        f"{tmp_path}/sub/a b.png",
        "/abs/c,d.png",
        "s3://b/k#1.png",
    ]
    assert [row.key for row in rows] == ["sub/a b.png", "/abs/c,d.png", "s3://b/k#1.png"]
    assert [row.label for row in rows] == ["007", "7", "True"]
    assert [row.group for row in rows] == ["p1", "", "p2"]
    assert [row.weight for row in rows] == [2.0, 1.0, 0.5]


def test_parquet_and_jsonl_read_the_same(tmp_path: Path) -> None:
    table = {"uri": ["a.png", "b\nc.png"], "label": [1, 2], "split": ["train", "val"]}
    pq.write_table(pa.table({**table, "junk": [{"x": 1}] * 2}), tmp_path / "m.parquet")
    lines = [json.dumps({k: v[i] for k, v in table.items()}, ensure_ascii=False) for i in range(2)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n\n")
    rows = read_manifest(str(tmp_path / "m.parquet"))
    assert rows == read_manifest(str(tmp_path / "m.jsonl"))
    assert [(row.key, row.label, row.split) for row in rows] == [
        ("a.png", "1", "train"),
        ("b\nc.png", "2", "val"),
    ]


@pytest.mark.s3
def test_manifest_in_a_bucket_has_its_uris_there(s3_bucket: str) -> None:
    objects.put(f"{s3_bucket}/set/m.csv", b"uri,label\nx/1.png,a\ns3://other/2.png,b\n")
    rows = read_manifest(f"{s3_bucket}/set/m.csv")
    assert [row.uri for row in rows] == [f"{s3_bucket}/set/x/1.png", "s3://other/2.png"]
    with pytest.raises(SourceError, match=r"no manifest .*/n\.csv"):
        read_manifest(f"{s3_bucket}/set/n.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"url,label\na,b\n", "no column 'uri'.*'url', 'label'"),
        ("m.csv", b"uri,class\na,b\n", "no column 'label'.*'uri', 'class'"),
        ("m.csv", b"uri,label\n", "no rows"),
        ("m.csv", b"", "no column 'uri'"),
        ("m.csv", b"uri,label\n,x\n", "row 1 has no uri"),
        ("m.csv", b"uri,label\na.png\n", "row 1 has 1 cells, the header has 2"),
        ("m.csv", b"uri,label\na.png,\xff\x00\x01\n", "not what its suffix says"),
        ("m.jsonl", b'{"uri": "a", "label": "\xff"}\n', "not what its suffix says"),
        ("m.csv", b"uri,label,weight\na.png,x,-1\n", "row 1: weight '-1'"),
        ("m.jsonl", b'{"uri": "a"}\n', "no column 'label'"),
        ("m.jsonl", b"[1]\n", "not a JSON object"),
        ("m.jsonl", b"{oops\n", "line 1 is not JSON"),
        ("m.jsonl", b'{"uri": "a", "label": null}\n', "row 1 has no label"),
        ("m.parquet", b"PAR1oops", "not what its suffix says"),
    ],
)
def test_unusable_manifest_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_manifest(str(tmp_path / name))


def test_uris_need_no_labels(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri\na.png\n/b.png\n")
    assert list(read_uris(str(tmp_path / "m.csv"))) == [f"{tmp_path}/a.png", "/b.png"]
    (tmp_path / "n.csv").write_text("url\na.png\n")
    with pytest.raises(SourceError, match="no column 'uri'"):
        list(read_uris(str(tmp_path / "n.csv")))
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(SourceError, match="no rows"):
        list(read_uris(str(tmp_path / "e.jsonl")))


def test_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no manifest"):
        read_manifest(str(tmp_path / "m.csv"))
