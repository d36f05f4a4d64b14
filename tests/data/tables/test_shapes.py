"""Tables are read in the encoding, with the separators and under the names that people use."""

import logging
from pathlib import Path

import pytest

from imgcls.config.source_options import ListingOptions
from imgcls.data.label_manifest import is_manifest, read_manifest, read_uris
from imgcls.data.tables.shape import TableShape
from imgcls.errors import ConfigError, SourceError

_TEXT = "uri;label\r\nä/é.png;Größe\r\nb.png;klein\r\n"
_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")


def _shape(columns: str = "", root: str = "") -> TableShape:
    return TableShape.of(ListingOptions(columns=columns, root=root))


@pytest.mark.parametrize("encoding", _ENCODINGS)
def test_every_usual_encoding_gives_the_same_rows(encoding: str, tmp_path: Path) -> None:
    # Long enough for the zeros of UTF-16 to be seen.
    text = _TEXT + "".join(f"x{n}.png;klein\r\n" for n in range(50))
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    rows = read_manifest(str(tmp_path / "m.csv"))
    assert [(row.key, row.label) for row in rows[:2]] == [("ä/é.png", "Größe"), ("b.png", "klein")]


def test_a_guess_is_said_with_a_word_to_check_it_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m.csv").write_bytes(_TEXT.encode("cp1252"))
    read_manifest(str(tmp_path / "m.csv"))
    assert "read as Latin-1 (Windows-1252), so that it has 'ä/é.png'" in caplog.text


def test_columns_of_other_names_and_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "m.csv").write_text("File_Name,Finding,Weight\na.png,x,80\nb.png,y,55\n")
    rows = read_manifest(
        str(tmp_path / "m.csv"), shape=_shape("uri=file name,label=finding,weight=")
    )
    assert [(row.key, row.label, row.weight) for row in rows] == [
        ("a.png", "x", 1.0), ("b.png", "y", 1.0),
    ]  # fmt: skip
    assert "read 'File_Name' as uri, 'Finding' as label" in caplog.text
    (tmp_path / "n.csv").write_text("URI,LABEL\na.png,x\n")
    [row] = read_manifest(str(tmp_path / "n.csv"))
    assert (row.key, row.label) == ("a.png", "x")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Dateiname,Befund,Alter", "--columns uri=Dateiname,label=Befund"),
        ("uri,lable", "--columns label=lable"),
        ("uri,x", "--columns label=NAME"),
        (
            "uri,label,Weight",
            "'Weight'.*--columns weight=Weight; if not, --columns weight=",
        ),
    ],
)
def test_a_missing_column_is_refused_with_what_to_write(
    header: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text(f"{header}\n{',' * header.count(',')}\n")
    with pytest.raises(SourceError, match=message):
        read_manifest(str(tmp_path / "m.csv"))


@pytest.mark.parametrize("columns", ["File", "uri", "image=File", "uri=a,uri=b", "label=name:x"])
def test_columns_that_say_nothing_are_refused(columns: str) -> None:
    with pytest.raises(ConfigError, match=r"--columns|give --label name:x"):
        _shape(columns)


def test_names_are_relative_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "m.csv"
    path.write_text("uri,label\nx/a.png,l\n/abs/b.png,l\n")
    rows = read_manifest(str(path), shape=_shape(root="s3://bucket/scans/"))
    assert [(row.uri, row.key) for row in rows[:1]] == [("s3://bucket/scans/x/a.png", "x/a.png")]
    assert read_uris(str(path), _shape(root=str(tmp_path)))[0] == f"{tmp_path}/x/a.png"


def test_backslashes_are_separators_unless_a_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "odd\\name.png").touch()
    (tmp_path / "m.csv").write_text("uri,label\nl1\\a.png,x\nodd\\name.png,x\n")
    rows = read_manifest(str(tmp_path / "m.csv"))
    assert [row.key for row in rows] == ["l1/a.png", "odd\\name.png"]
    for given in ("D:\\x\\a.png", "\\\\server\\x\\a.png"):
        (tmp_path / "n.csv").write_text(f"uri,label\n{given},x\n")
        with pytest.raises(SourceError, match=r"row 1.*path of another system.*--root"):
            read_manifest(str(tmp_path / "n.csv"))


def test_a_workbook_is_refused_with_the_way_out() -> None:
    with pytest.raises(SourceError, match="save the sheet as CSV"):
        is_manifest("/x/befunde.xlsx")
