from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imgcls.data.keys import Key, as_name, hive_keys, values_of
from imgcls.errors import ConfigError, SourceError
from imgcls.sources.members import Member
from imgcls.storage import objects
from tests.data.dicoms import dicom_file

_PAD = 40_000


@dataclass(frozen=True)
class _Image:
    uri: str
    key: str = ""
    cells: dict[str, Any] = field(default_factory=dict)
    member: Member | None = None


def _of(text: str, *images: _Image) -> list[Any]:
    return Key.parse(text, "--group").values(images)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("folder:1", "siteA"),
        ("folder:2", "camera=3"),
        ("folder:-1", "LOT 7"),
        ("folder:-3", "siteA"),
        ("folder:4", None),
        ("camera", "3"),
        ("shift", "a/b"),
        (r"name:_(ok|nok)\.", "ok"),
        (r"name:^p\d+", "p17"),
        (r"name:(?:x)(?P<none>y)?|(?P<part>p\d+)", "p17"),
        (r"name:LOT (\d)/", "7"),
        ("name:nothing", None),
        (r"lot=name:LOT (\d)/", "7"),
    ],
)
def test_a_path_gives_its_folders_its_keys_and_what_a_pattern_finds(text: str, value: Any) -> None:
    here = _Image("s3://b/in/x", "siteA/camera=3/LOT 7/p17_ok.png")
    if text == "shift":
        here = _Image("s3://b/in/x", "shift=a%2Fb/x.png")
    other = _Image("s3://b/y", "a/camera=1/shift=0/LOT 0/d/nothing/p1_nok.png")
    key = Key.parse(text, "--group", is_required=False)
    assert key.values([here, other])[0] == value


def test_an_image_outside_of_the_root_is_read_from_its_bucket_on() -> None:
    assert _of("folder:1", _Image("", "s3://bucket/siteA/x.png")) == ["siteA"]
    assert _of("folder:2", _Image("", "/data/siteB/x.png")) == ["siteB"]


def test_a_column_keeps_its_type_and_goes_before_a_path() -> None:
    rows = [{"camera": 7}, {"camera": ""}, {}]
    images = [_Image("u", "camera=3/x.png", cells) for cells in rows]
    assert _of("camera", *images) == [7, None, "3"]
    assert [as_name(value) for value in (7, 7.0, 0.5, None, " x ", True)] == [
        "7", "7", "0.5", "", "x", "True",
    ]  # fmt: skip
    with pytest.raises(SourceError, match="holds a list, not one name"):
        as_name(["a"])  # type: ignore[arg-type]  (what a Parquet column may hold)


def test_a_folder_without_a_value_is_null() -> None:
    path = "a=/b=__HIVE_DEFAULT_PARTITION__/c=1/c=2/d"
    assert hive_keys(path) == {"a": None, "b": None, "c": "2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write a column"),
        ("folder:", "write a column"),
        ("folder:0", "folder:1 is the first"),
        ("folder:x", "folder:1 is the first"),
        ("name:(", "not a regular expression"),
        ("dicom:Patient", "'Patient' is not a DICOM element"),
        ("dicom:PixelData", "neither text nor a number"),
        ("dicom:0011,0010", "not an element of the DICOM dictionary"),
    ],
)
def test_what_is_not_a_key_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Key.parse(text, "--group")
    assert "--group" in str(raised.value)


def test_a_key_that_no_image_has_is_refused() -> None:
    with pytest.raises(SourceError, match=r"--group lot: none of 1 images has it, such as u"):
        _of("lot", _Image("u", "x.png"))
    assert Key.parse("lot", "--group", is_required=False).values([_Image("u", "x.png")]) == [None]


@pytest.mark.parametrize("syntax", ["2", "2.1", "2.2", "2.1.99"])
def test_a_header_gives_its_elements_whatever_its_encoding(tmp_path: Path, syntax: str) -> None:
    paths = [tmp_path / name for name in ("long.dcm", "short.dcm", "x.png", "cut.dcm", "gone.dcm")]
    whole = {
        "PatientID": " P-17 ", "PatientName": "Müller", "SpecificCharacterSet": "ISO_IR 192",
        "SliceThickness": "1.25", "SeriesNumber": "4", "ImageType": ["A", "B"],
    }  # fmt: skip
    # A comment before the patient, longer than what is read first.
    long = whole | {"ImageComments": "x" * 100, "RetrieveURI": "u" * _PAD}
    name = f"1.2.840.10008.1.{syntax}"
    paths[0].write_bytes(dicom_file(name, **long))
    paths[1].write_bytes(dicom_file(name, **whole))
    paths[2].write_bytes(b"\x89PNG\r\n")
    paths[3].write_bytes(dicom_file(name, **whole)[:150])
    texts = ("PatientID", "0010,0010", "SliceThickness", "SeriesNumber", "ImageType", "StudyID")
    keys = [Key.parse(f"dicom:{text}", "--group", is_required=False) for text in texts]
    values = values_of(keys, [_Image(str(path)) for path in paths])
    expected = ["P-17", "Müller", 1.25, 4, "A\\B", None]
    assert [each[0] for each in values] == [each[1] for each in values] == expected
    assert [each[2:] for each in values] == [[None] * 3] * len(keys)


@pytest.mark.s3
def test_of_an_object_only_the_beginning_is_read(s3_bucket: str) -> None:
    objects.put(f"{s3_bucket}/x.dcm", dicom_file(PatientID="P1", Modality="CT"))
    found = values_of(
        [Key.parse("dicom:PatientID", "--group"), Key.parse("dicom:Modality", "--group")],
        [_Image(f"{s3_bucket}/x.dcm")],
    )
    assert found == [["P1"], ["CT"]]
